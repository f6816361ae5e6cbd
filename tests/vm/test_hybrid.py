"""Hybrid sockets against the real vhost-device-vsock with a real guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

from benchmarks.vm.programs import CRATE, CRATE_VERSION, installed_vhost_device
from hvsock.hybrid.connecting import connect
from hvsock.hybrid.listening import listen
from hvsock.hybrid.profiles import VHOST_DEVICE
from hvsock.vm.image import Image
from hvsock.vm.overlay import overlay
from hvsock.vm.qemu import DEVICE_SOCKET
from hvsock.vm.runs import Run
from tests.transports.support import ALL_PASSED, SERVICE, results
from tests.vm.support import PATIENCE, default_guest, needs_qemu, started, wait_for_line

PROGRAM = installed_vhost_device()

pytestmark = [
    needs_qemu,
    pytest.mark.skipif(
        PROGRAM is None,
        reason=f"{CRATE} is missing: cargo install {CRATE} --version {CRATE_VERSION} --locked, or make bench-vm",
    ),
]

IN_GUEST = r"""
python3 - << 'END'
import socket
listener = socket.socket(socket.AF_VSOCK)
listener.bind((socket.VMADDR_CID_ANY, 5005))
listener.listen()
host = socket.socket(socket.AF_VSOCK)
host.connect((2, 6006))
host.sendall(b"the guest listens\n")
while True:
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)
END
"""
ANYWHERE = "cd /root; HVSOCK_TRANSPORT=vsock python3 service.py parent"
MUCH = bytes(range(256)) * 256


def test_both_ways(tmp_path: Path, guest: Image) -> None:
    path = str(tmp_path / "v.sock")
    device = (str(PROGRAM), "--guest-cid", "3", "--socket", DEVICE_SOCKET, "--uds-path", path)
    settings = default_guest("web01", guest, device=device)
    run = Run(str(tmp_path), "web01")
    with listen(path, 6006, profile=VHOST_DEVICE) as listener:
        listener.sock.settimeout(PATIENCE)
        with started(run, settings, made=guest, overlay=overlay(command=IN_GUEST)), listener.accept() as called:
            assert called.recv(99) == b"the guest listens\n"
            for _ in range(2):
                with connect(path, 5005, profile=VHOST_DEVICE, timeout=PATIENCE) as sock:
                    sock.settimeout(PATIENCE)
                    for place in range(0, len(MUCH), 8192):  # its room is small, and the echo is read in between
                        sock.sendall(MUCH[place : place + 8192])
                        received = b""
                        while len(received) < 8192:
                            received += sock.recv(8192)
                        assert received == MUCH[place : place + 8192]
            with pytest.raises(ConnectionRefusedError, match="nothing listens on 5007"):
                connect(path, 5007, profile=VHOST_DEVICE, timeout=PATIENCE)


@pytest.mark.soak
def test_the_same_service_and_client_as_everywhere(tmp_path: Path, guest: Image) -> None:
    path = tmp_path / "v.sock"
    config = tmp_path / "config.toml"
    config.write_text(
        f'[profiles.default]\ntransport = "hybrid"\nvmm = "vhost-device-vsock"\n'
        f'[profiles.default.vms.web01]\npath = "{path}"\n'
    )
    brought = tmp_path / "overlay"
    (brought / "root").mkdir(parents=True)
    (brought / "root" / SERVICE.name).write_bytes(SERVICE.read_bytes())
    device = (str(PROGRAM), "--guest-cid", "3", "--socket", DEVICE_SOCKET, "--uds-path", str(path))
    settings = default_guest("web01", guest, device=device)
    run = Run(str(tmp_path), "web01")
    with started(run, settings, made=guest, overlay=overlay(str(brought), ANYWHERE)):
        wait_for_line(run, "listening on")
        assert results(HVSOCK_CONFIG=str(config), HVSOCK_TRANSPORT="") == ALL_PASSED
