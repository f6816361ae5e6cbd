"""Programs in real guests that know nothing of hvsock, and services of the host: both ways, whole, unchanged."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass

import pytest

import hvsock

assert sys.platform == "linux"

from tests.support import sample
from tests.vm.guest_scripts.traffic import RECEIVE_BYTES
from tests.vm.support import needs_qemu
from tests.vm.traffic.programs import Programs
from tests.vm.traffic.world import Guest, World, beside

pytestmark = [needs_qemu, pytest.mark.timeout(sample(180, 600))]

SIZE = sample(1 << 20, 32 << 20)

CONNECT = """
import socket, sys, threading
with socket.socket(socket.AF_VSOCK) as sock:
    sock.connect((socket.VMADDR_CID_HOST, int(sys.argv[1])))
    def send():
        sock.sendall(sys.stdin.buffer.read())
        sock.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    while data := sock.recv(65536):
        sys.stdout.buffer.write(data)
    sender.join()
"""
LISTEN = """
import socket, sys
with socket.socket(socket.AF_VSOCK) as listener:
    listener.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
    listener.listen()
    with listener.accept()[0] as sock:
        while data := sock.recv(65536):
            sock.sendall(data)
"""


@dataclass(frozen=True, slots=True)
class Program:
    """A program of a guest; PORT in its words is a port.

    Attributes:
        connect: sends its input to the host, and prints what comes back.
        listen: echoes a connection.
        at_once: most bytes that it may be sent before it has echoed them.
    """

    connect: tuple[str, ...]
    listen: tuple[str, ...]
    at_once: int = SIZE


PROGRAMS = {
    # socat gives the other direction half a second once one has ended, if it is not told otherwise
    "socat": Program(
        ("socat", "-t", "30", "-", "VSOCK-CONNECT:2:PORT"), ("socat", "-t", "30", "VSOCK-LISTEN:PORT", "PIPE")
    ),
    # ncat waits for its child to take more, and its child for ncat, once the pipes between them are full
    "ncat": Program(
        ("ncat", "--vsock", "2", "PORT"), ("ncat", "--vsock", "--listen", "PORT", "--exec", "/bin/cat"), 16 * 1024
    ),
    "python": Program(("python3", "-c", CONNECT, "PORT"), ("python3", "-c", LISTEN, "PORT")),
    "go": Program(("go-echo", "connect", "PORT"), ("go-echo", "listen", "PORT")),
    "rust": Program(("rust-echo", "connect", "PORT"), ("rust-echo", "listen", "PORT")),
}


def words_for(name: str, side: str, port: int, programs: Programs) -> list[str]:
    """The command of a program with a port; the test is skipped where there is no such program."""
    if name in programs.missing:
        pytest.skip(programs.missing[name])
    words = [word.replace("PORT", str(port)) for word in getattr(PROGRAMS[name], side)]
    return [f"/usr/local/bin/{words[0]}", *words[1:]] if words[0].endswith("-echo") else words


def echo(listener: hvsock.socket) -> int:
    """Echo one connection; how many bytes came."""
    count = 0
    with listener.accept()[0] as sock:
        sock.settimeout(listener.gettimeout())
        while data := sock.recv(RECEIVE_BYTES):
            sock.sendall(data)
            count += len(data)
        sock.shutdown(hvsock.SHUT_WR)
        return count


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_connects_to_the_host(world: World, programs: Programs, guest: Guest, name: str) -> None:
    port = world.port()
    words = words_for(name, "connect", port, programs)
    data = os.urandom(SIZE)
    with world.listen(port) as listener, beside(lambda: echo(listener)) as echoed:
        code, output = guest.output(*words, input=data)
    assert code == 0, output[-1000:]
    assert output == data
    assert echoed.result() == len(data)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_host_connects_to_a_program(world: World, programs: Programs, guest: Guest, name: str) -> None:
    port = world.port()
    data = os.urandom(SIZE)
    at_once = PROGRAMS[name].at_once
    pid = guest.ask("start", command=words_for(name, "listen", port, programs))
    try:
        with world.connect(guest, port, retry=True) as sock:
            for start in range(0, SIZE, at_once):
                piece = data[start : start + at_once]
                with beside(functools.partial(sock.sendall, piece)):
                    received = bytearray()
                    while len(received) < len(piece):
                        received += sock.recv(RECEIVE_BYTES)
                assert received == piece
            sock.shutdown(hvsock.SHUT_WR)
            assert sock.recv(1) == b""
    finally:
        guest.ask("kill", pid=pid)


def test_nobody_listens(world: World, programs: Programs, guest: Guest) -> None:
    """Refused at once, in both directions."""
    port = world.port()
    code, output = guest.output(*words_for("socat", "connect", port, programs))
    assert code == 1
    assert b"reset by peer" in output  # Linux calls a refusal so
    with pytest.raises(ConnectionRefusedError):
        world.connect(guest, port)
