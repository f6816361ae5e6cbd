"""connect, listen and forward with URLs of every kind."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.hybrid.profiles import FIRECRACKER, HVSOCK
from tests.cli.helpers import ended, invoke, line_of, started
from tests.cli.helpers import hvsock as run
from tests.hybrid.peers import guest_of, until_end, vmm


@pytest.fixture
def path() -> Iterator[Path]:
    """A short path for a VMM."""
    with tempfile.TemporaryDirectory(prefix="hvsock-") as made:
        yield Path(made) / "v"


def test_connect(path: Path) -> None:
    with vmm(path, guest_of(HVSOCK, {"5005"})):
        url = f"unix:{path}?hybrid=5005"
        done = run("connect", "--verbose", "--wait", "9", "--timeout", "9", url, input=b"hello")
        assert done.stdout == b"hello, over"
        assert done.stderr.startswith(b"hvsock: connected to ")
    with vmm(path, guest_of(FIRECRACKER, {"5005"})):
        done = run("connect", f"unix:{path}?hybrid=7&profile=firecracker", code=1)
        assert b"firecracker at" in done.stderr
        assert b"nothing listens on 7" in done.stderr


def test_listen(path: Path) -> None:
    with started("listen", "--verbose", "--once", "--echo", f"unix:{path}?hybrid=6006") as process:
        assert line_of(process.stderr).endswith(" 6006\n")
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(f"{path}_6006")
            guest.sendall(b"hello")
            guest.shutdown(socket.SHUT_WR)
            assert until_end(guest) == b"hello"
        assert ended(process)[0] == 0
    assert os.listdir(path.parent) == []


def test_forward(path: Path) -> None:
    target = path.with_name("web")
    with (
        vmm(target, lambda sock: sock.sendall(b"from the server")),
        started("forward", f"unix:{path}?hybrid=6006=unix:{target}") as process,
    ):
        assert line_of(process.stderr).startswith("hvsock: forwarding unix:")
        with socket.socket(socket.AF_UNIX) as guest:
            guest.connect(f"{path}_6006")
            assert until_end(guest) == b"from the server"
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("connect", "unix:/v"), "says no service: add ?hybrid=PORT"),
        (("listen", "unix:/v?hybrid=echo"), "is a port or a GUID"),
        (("connect", "vsock://web01:5"), "the CID in"),
        (("listen", "http://a/b"), "not an address: 'http://a/b'"),
        (("connect", "parent"), "Missing argument 'SERVICE'"),
        (("forward", "Echo=unix:/v?hybrid=5005"), "not into a VMM's guest"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], why: str) -> None:
    assert why in invoke(*arguments, code=2).stderr


def test_a_configuration_with_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[profiles.default]\ntransport = 'hybird'")
    done = run("connect", "parent", "5", code=2, env={"HVSOCK_CONFIG": str(file), "HVSOCK_TRANSPORT": ""})
    expected = f"hvsock: {file}: profiles.default.transport is 'hybird'; it may be: fabric, vsock, hybrid\n"
    assert done.stderr.decode() == expected
