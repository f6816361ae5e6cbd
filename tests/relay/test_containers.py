"""Containers as partitions: real ones, by namespaces, that have their partition's folder and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock.addresses import ServiceId
from hvsock.fabric.embedded import EmbeddedFabric
from tests.cli.helpers import broker
from tests.containers import container_command, missing
from tests.waiting import wait_until

SERVICE = ServiceId("11111111-2222-4333-8444-555555555555")
IN_CONTAINER = Path(__file__).parent.parent / "vm" / "guest_scripts" / "in_container.py"

_WHY_NOT = missing()
pytestmark = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))


@contextlib.contextmanager
def saying(words: str, partition: str, service: ServiceId = SERVICE) -> Iterator[None]:
    """A host's service that says who it is and who asks."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, peer = listener.accept()
                with sock, contextlib.suppress(ConnectionError):
                    sock.sendall(f"{words} to {peer.vm_id}".encode())
                    sock.shutdown(socket.SHUT_WR)
                    sock.recv(1)

    with hvsock.create_server(("children", str(service)), partition=partition) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_container_and_the_parents_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host, a VM of it with a fabric inside, by `hvsock up --uplink`, and a container in that one."""
    with tempfile.TemporaryDirectory(prefix="hvsock-") as hidden, EmbeddedFabric(f"{hidden}/outer") as outer:
        outer.register("who", SERVICE)
        web01 = outer.create_partition("web01")
        inside = f"{hidden}/inner"
        monkeypatch.setenv("HVSOCK_DIR", inside)
        monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
        with broker(inside, "--uplink", f"unix:{web01.folder}"):
            box = made(inside, "partition", "create", "box", "--kind", "container", "--json")
            made(inside, "service", "register", "who", "--id", str(SERVICE))
            host = f"{inside}/partitions/host"

            def is_up() -> bool:
                with contextlib.suppress(OSError), hvsock.socket(partition=host) as sock:
                    sock.connect((hvsock.HV_GUID_PARENT, SERVICE))
                    return True
                return False

            with saying("the host", outer.host.folder), saying("the VM", host):
                wait_until(is_up)
                folder = box["folder"]
                command = [sys.executable, str(IN_CONTAINER), str(SERVICE), inside]
                done = subprocess.run(
                    container_command(folder, hidden, command), capture_output=True, text=True, check=False
                )
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            assert found == {
                "parent": f"the VM to {box['id']}",
                "silohost": f"the VM to {box['id']}",
                "passthru": f"the host to {web01.id}",
                "interfaces": ["lo"],
                "processes": found["processes"],
                "sees the fabric": False,
            }
            assert found["processes"] < 5
            assert not os.path.ismount("/mnt"), "its mounts are its own"


def made(folder: str, *words: str) -> dict[str, str]:
    """What an `hvsock` command prints as JSON, if it does."""
    command = [sys.executable, "-m", "hvsock", *words]
    done = subprocess.run(
        command, env={**os.environ, "HVSOCK_DIR": folder}, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout) if "--json" in words else {}
    return found
