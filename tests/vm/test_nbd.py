"""The guest kernel's own NBD client on a disk that the host serves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import hvsock
from hvsock.addresses import ServiceId
from hvsock.fabric.embedded import EmbeddedFabric

assert sys.platform == "linux"

from hvsock.fabric import client
from hvsock.vm import launch
from hvsock.vm.runs import Run
from tests.vm.guest_scripts import nbd_disk
from tests.vm.support import console_log, default_guest, guest_image, needs_qemu, started, wait_until
from tests.vm.test_vsock_transport import bring, results_of

_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_MISSING = [tool for tool in ("qemu-nbd", "debugfs", "e2fsck") if shutil.which(tool, path=_PATH) is None]
DISK_BYTES: Final = 16 << 20

pytestmark = [
    needs_qemu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        bool(_MISSING),
        reason=f"{', '.join(_MISSING)} missing; as root: apt-get install -y --no-install-recommends "
        "qemu-utils e2fsprogs",
    ),
]


@contextlib.contextmanager
def disk_server(disk: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`qemu-nbd` that serves `disk` at a Unix socket, to one client after the other."""
    command = ["qemu-nbd", "--format=raw", "--persistent", f"--socket={path}", str(disk)]
    with subprocess.Popen(command) as server:
        try:
            wait_until(path.exists)
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def forwarding(name: str, path: Path) -> Iterator[None]:
    """`hvsock forward` of a service to a Unix socket."""
    command = [sys.executable, "-m", "hvsock", "forward", f"{name}=unix:{path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as relay:
        try:
            assert relay.stderr is not None
            assert relay.stderr.readline().startswith(b"hvsock: forwarding")
            yield
        finally:
            relay.terminate()


@contextlib.contextmanager
def doing(name: str, act: Callable[[], object], undo: Callable[[], object] = lambda: None) -> Iterator[None]:
    """A service that does something when it is connected to, and undoes it when that connection ends."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            with sock:
                act()
                sock.sendall(b"ended")
                sock.recv(1)
            undo()

    with hvsock.create_server(("children", name)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.soak  # it boots a VM of its own
@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_a_file_system_on_a_disk_of_the_host(series: str, hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    made = guest_image(series)
    disk, path = tmp_path / "disk.img", tmp_path / "nbd"
    disk.touch()
    os.truncate(disk, DISK_BYTES)
    partition = hvsock_fabric.create_partition("web01")
    hvsock_fabric.register(nbd_disk.DISK, ServiceId.from_port(10_809))
    hvsock_fabric.register(nbd_disk.KILLER, ServiceId.from_port(10_810))
    hvsock_fabric.register(nbd_disk.STOPPER, ServiceId.from_port(10_811))
    cid = client.call(hvsock_fabric.host.folder, "resolve", vm="web01", service=None)["cid"]
    run = Run(hvsock_fabric.folder, "web01")
    settings = default_guest("web01", made, vm_id=str(partition.id), device=launch.device_command("web01", cid))
    with (
        disk_server(disk, path) as server,
        forwarding(nbd_disk.DISK, path),
        doing(nbd_disk.KILLER, server.kill),
        doing(
            nbd_disk.STOPPER,
            lambda: server.send_signal(signal.SIGSTOP),
            lambda: server.send_signal(signal.SIGCONT),
        ),
        started(run, settings, made=made, overlay=bring(tmp_path, "nbd_disk.py")),
    ):
        try:
            assert results_of(run) == [dict.fromkeys(nbd_disk.CHECKS, "passed")]
        finally:
            print(console_log(run)[-4000:])  # what the kernel says
    copy = tmp_path / "copy"
    environment = {**os.environ, "PATH": _PATH}
    subprocess.run(["debugfs", "-R", f"dump file {copy}", disk], env=environment, check=True, capture_output=True)
    assert copy.read_bytes() == nbd_disk.contents()
    checked = subprocess.run(["e2fsck", "-f", "-n", disk], env=environment, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout
