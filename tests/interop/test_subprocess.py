"""Programs whose standard input and output is a Hyper-V socket, which they take for any socket."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

from tests.interop.support import MIB, WAIT_SECONDS, Wire, digest, in_background, payload, receive_all

DATA = payload(4 * MIB)

REVERSED = """
import socket
connection = socket.socket(fileno=0)
with connection.makefile("rb") as lines:
    answer = [line[:-1][::-1] + b"\\n" for line in lines]
connection.sendall(b"".join(answer))
"""


@pytest.mark.parametrize(
    "command", [["cat"], ["sh", "-c", "gzip -1 | gzip -d"], ["dd", "status=none"]], ids=lambda command: command[0]
)
def test_filters(wire: Wire, command: list[str]) -> None:
    """What the guest sends comes back through a program of the host, while it is still sending."""
    near, far = wire.pair()
    with near:
        with far:
            program = subprocess.Popen(command, stdin=far.fileno(), stdout=far.fileno())

        def send() -> None:
            near.sendall(DATA)
            near.shutdown(socket.SHUT_WR)

        with program, in_background(send):
            assert digest(receive_all(near)) == digest(DATA)
            assert program.wait(WAIT_SECONDS) == 0


def test_sha256sum(wire: Wire) -> None:
    """It reads up to the guest's half-close, and answers after it."""
    near, far = wire.pair()
    with near:
        with far:
            program = subprocess.Popen(["sha256sum"], stdin=far.fileno(), stdout=far.fileno())
        with program:
            near.sendall(DATA)
            near.shutdown(socket.SHUT_WR)
            assert receive_all(near).split()[0].decode() == digest(DATA)
            assert program.wait(WAIT_SECONDS) == 0


def test_input_alone(wire: Wire) -> None:
    """The program's output goes elsewhere."""
    near, far = wire.pair()
    with near, far:

        def send() -> None:
            near.sendall(DATA)
            near.close()

        with in_background(send):
            done = subprocess.run(
                ["sha256sum"], stdin=far.fileno(), capture_output=True, timeout=WAIT_SECONDS, check=True
            )
    assert done.stdout.split()[0].decode() == digest(DATA)


def test_output_alone(wire: Wire, tmp_path: Path) -> None:
    """A file of the guest, read by the host."""
    (tmp_path / "data").write_bytes(DATA)
    near, far = wire.pair()
    near.settimeout(None)  # a time-out would make the descriptor non-blocking, for the program too
    far.settimeout(WAIT_SECONDS)
    with far:
        with near:
            program = subprocess.Popen(["cat", str(tmp_path / "data")], stdout=near.fileno())
        with program:
            assert digest(receive_all(far)) == digest(DATA)
            assert program.wait(WAIT_SECONDS) == 0


def test_standard_socket_of_a_program(wire: Wire) -> None:
    """A program that was started with a connection, as by inetd, makes a standard socket object of it."""
    near, far = wire.pair()
    lines = [payload(32, seed).hex() for seed in range(2_000)]
    with near:
        with far:
            program = subprocess.Popen([sys.executable, "-c", REVERSED], stdin=far.fileno())
        with program:
            near.sendall("".join(f"{line}\n" for line in lines).encode())
            near.shutdown(socket.SHUT_WR)
            answer = receive_all(near)
            assert program.wait(WAIT_SECONDS) == 0
    assert digest(answer) == digest("".join(f"{line[::-1]}\n" for line in lines).encode())
