"""The vsock transport in real guests: over the kernel's own loopback, and to the host by a device."""

from __future__ import annotations

import json
import re
import socket as stdlib
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import hvsock
from hvsock.addresses import ServiceId
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.testing import applicable_checks

assert sys.platform == "linux"

from hvsock.fabric import client
from hvsock.vm import launch
from hvsock.vm.overlay import overlay
from hvsock.vm.runs import Run
from tests.support import SOAK
from tests.transports.support import ALL_PASSED, CLIENT, PORTS, SERVICE, results
from tests.vm.guest_scripts import vsock_conformance, vsock_host, vsock_sockets
from tests.vm.guest_scripts.vsock_host import Services
from tests.vm.support import PATIENCE, default_guest, guest_image, needs_qemu, started, wait_for_line

pytestmark = [needs_qemu, pytest.mark.timeout(300)]

SCRIPTS = Path(__file__).parent / "guest_scripts"
END = "\nthat was all"


def bring(folder: Path, *commands: str, beside: str = "") -> Iterator[bytes]:
    """An archive with scripts, which run one after the other in place of the guest's own program.

    Args:
        folder: where it is put together.
        commands: each begins with a script's name.
        beside: one more, of examples/anywhere, which runs all the time.
    """
    brought = folder / "overlay" / "root"
    brought.mkdir(parents=True)
    for path in (SERVICE, CLIENT, *(SCRIPTS / command.split()[0] for command in commands)):
        brought.joinpath(path.name).write_bytes(path.read_bytes())
    run = "; ".join(f"python3 /root/{command}" for command in commands)
    if beside:
        run = f"python3 /root/{beside} >/dev/null & {run}"
    return overlay(str(brought.parent), f"{run}; echo; echo that was all")


def results_of(run: Run) -> list[dict[str, Any]]:
    """What each script in a guest says of its checks."""
    said = wait_for_line(run, END)
    # the guest's shell writes its prompt whenever it likes
    starts = [one.start() for one in re.finditer(r'\{"checks"', said)]
    return [json.JSONDecoder().raw_decode(said, start)[0]["checks"] for start in starts]


CONFORMANCE = applicable_checks(vsock_conformance.FEATURES)
"""Every check of the suite that the kernel's AF_VSOCK can pass."""
OVER_LOOPBACK = tuple(
    one for one in vsock_sockets.CHECKS if one not in (vsock_sockets.NO_DEVICE, *vsock_sockets.SLOW)
)
"""What a guest with a device tries over its own loopback in `make test`, which boots none without one."""
OF_THE_HOST = tuple(one for one in vsock_host.CHECKS if SOAK or one != vsock_host.SLOW)


@pytest.mark.soak
@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_loopback(series: str, tmp_path: Path) -> None:
    """Sockets, the suite, and the service and client that run anywhere; without a device."""
    made = guest_image(series)
    run = Run(str(tmp_path), "loopback")
    archive = bring(tmp_path, "vsock_conformance.py", "vsock_sockets.py", "anywhere.py")
    with started(run, default_guest("loopback", made), made=made, overlay=archive):
        assert results_of(run) == [
            dict.fromkeys(CONFORMANCE, "passed"),
            dict.fromkeys(vsock_sockets.CHECKS, "passed"),
            ALL_PASSED,
        ]


@contextmanager
def echoing(name: str, type: int = stdlib.SOCK_STREAM) -> Iterator[None]:
    """A service of the host that echoes, each connection in a thread."""

    def answer(sock: hvsock.socket) -> None:
        with sock:
            while data := sock.recv(256 * 1024):
                sock.sendall(data)
            sock.shutdown(stdlib.SHUT_WR)

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(sock,)))
            threads[-1].start()

    with hvsock.create_server(("children", name), type=type) as server:
        threads = [threading.Thread(target=serve)]
        threads[0].start()
        try:
            yield
        finally:
            server.shutdown(stdlib.SHUT_RDWR)
            threads[0].join()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("series", ["6.1", "6.12"] if SOAK else ["6.1"])
def test_the_host_of_a_guest(series: str, hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    made = guest_image(series)
    partition = hvsock_fabric.create_partition("web01")
    hvsock_fabric.registry.register(Services.ECHO, port_alias=vsock_host.ALIAS)
    hvsock_fabric.register(Services.MESSAGES, ServiceId.from_port(5_001))
    hvsock_fabric.register(Services.NO_PORT)
    for port in PORTS:
        hvsock_fabric.register(f"port {port}", ServiceId.from_port(port))
    hvsock_fabric.register(Services.SILENT, ServiceId.from_port(5_002))
    listening = hvsock_fabric.register("in the guest", ServiceId.from_port(vsock_host.GUEST_PORT))
    cid = client.call(hvsock_fabric.host.folder, "resolve", vm="web01", service=None)["cid"]
    run = Run(hvsock_fabric.folder, "web01")
    settings = default_guest("web01", made, vm_id=str(partition.id), device=launch.device_command("web01", cid))
    with ExitStack() as stack:
        stack.enter_context(echoing(Services.ECHO))
        stack.enter_context(echoing(Services.MESSAGES, stdlib.SOCK_SEQPACKET))
        of_the_host = " ".join(["vsock_host.py", *OF_THE_HOST])
        over_loopback = " ".join(["vsock_sockets.py", *OVER_LOOPBACK])
        archive = bring(tmp_path, of_the_host, over_loopback, beside="service.py parent")
        stack.enter_context(started(run, settings, made=made, overlay=archive))
        target = (partition.id, listening.id)
        with hvsock.create_connection(target, timeout=PATIENCE, retry=True) as sock:
            assert sock.getpeername() == target
            sock.sendall(b"the host")
            assert sock.recv(99) == b"who? the host"
            assert sock.recv(99) == b""
        assert results_of(run) == [dict.fromkeys(OF_THE_HOST, "passed"), dict.fromkeys(OVER_LOOPBACK, "passed")]
        assert results() == ALL_PASSED  # the client is here, and its service in the guest
