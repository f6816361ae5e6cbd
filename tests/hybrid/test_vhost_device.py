"""The client's half against the real vhost-device-vsock, with a guest that is a driver in this process."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.vm.programs import CRATE, CRATE_VERSION, installed_vhost_device
from hvsock.hybrid.connecting import connect
from hvsock.hybrid.listening import is_served, listen
from hvsock.hybrid.profiles import VHOST_DEVICE
from tests.device.guest import Guest
from tests.waiting import wait_until

assert sys.platform == "linux"

PORT = 5005
FIRST_PORT = 5006
PATIENCE = 30.0
PROGRAM = installed_vhost_device()

pytestmark = pytest.mark.skipif(
    PROGRAM is None,
    reason=f"{CRATE} is missing: cargo install {CRATE} --version {CRATE_VERSION} --locked, or make bench-vm",
)


@contextlib.contextmanager
def device(folder: Path) -> Iterator[tuple[str, str]]:
    """The device, up: the path for a front end, and that for programs of the host."""
    paths = str(folder / "device"), str(folder / "v.sock")
    assert PROGRAM is not None
    words = [PROGRAM, "--guest-cid", "3", "--socket", paths[0], "--uds-path", paths[1]]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: all(is_served(str(folder), Path(path).name) for path in paths))
            yield paths
        finally:
            process.kill()


@contextlib.contextmanager
def booted(front_end: str, path: str) -> Iterator[Guest]:
    """A guest, once packets go both ways: before that, the device may forget a request that it took."""
    with socket.socket(socket.AF_UNIX) as connection:
        wait_until(lambda: connection.connect_ex(front_end) == 0)  # it binds before it listens
        with Guest(connection).boot() as guest:
            with listen(path, FIRST_PORT) as listener:
                guest.connect(FIRST_PORT)
                listener.accept().close()
            yield guest


def test_a_service_of_the_guest(tmp_path: Path) -> None:
    with device(tmp_path) as (front_end, path), booted(front_end, path) as guest:
        guest.listen(PORT)
        with connect(path, PORT, profile=VHOST_DEVICE, timeout=PATIENCE) as program:
            end = guest.accept(PORT)
            program.sendall(b"hello")
            assert end.receive() == b"hello"
            end.send(b"answer")
            assert program.recv(99) == b"answer"


def test_a_service_of_the_host(tmp_path: Path) -> None:
    with (
        device(tmp_path) as (front_end, path),
        booted(front_end, path) as guest,
        listen(path, PORT, profile=VHOST_DEVICE) as listener,
    ):
        end = guest.connect(PORT)
        with listener.accept() as program:
            end.send(b"hello")
            assert program.recv(99) == b"hello"
            program.sendall(b"answer")
            assert end.receive() == b"answer"


def test_its_refusals(tmp_path: Path) -> None:
    with device(tmp_path) as (front_end, path):
        with pytest.raises(ConnectionRefusedError, match="closed without an answer"):  # no guest yet
            connect(path, PORT, profile=VHOST_DEVICE, timeout=PATIENCE)
        with booted(front_end, path) as guest:
            with pytest.raises(ConnectionRefusedError, match="closed without an answer"):
                connect(path, PORT, profile=VHOST_DEVICE, timeout=PATIENCE)
            guest.ignores = True
            with pytest.raises(TimeoutError, match="did not answer"):
                connect(path, PORT, profile=VHOST_DEVICE, timeout=0.05)
