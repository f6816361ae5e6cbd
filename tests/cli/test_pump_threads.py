"""The pump of threads, which is Windows', over what this system has: pipes and a terminal."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket as stdlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("its terminal and its sockets are Linux's", allow_module_level=True)

import pty

import hvsock
from hvsock.cli.pump_threads import Pump, execute_over_pipes
from hvsock.sockets.socket import socket

PATIENCE = 20.0
SIZE = 1 << 20


@pytest.fixture
def ends() -> Iterator[tuple[socket, socket]]:
    """The pump's end of a connection, and the peer's."""
    near, far = hvsock.socketpair()
    with near, far:
        far.settimeout(PATIENCE)
        yield near, far


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends, of which the writing one may be closed meanwhile."""
    read, write = os.pipe()
    try:
        yield read, write
    finally:
        for one in (read, write):
            with contextlib.suppress(OSError):
                os.close(one)


def test_both_ways_at_once(ends: tuple[socket, socket], tmp_path: Path) -> None:
    near, far = ends
    data = os.urandom(SIZE)
    source, sink = tmp_path / "source", tmp_path / "sink"
    source.write_bytes(data)

    def echo() -> None:
        with far.makefile("rb") as file:
            got = file.read()
        far.sendall(got[::-1])
        far.shutdown(stdlib.SHUT_WR)

    peer = threading.Thread(target=echo)
    peer.start()
    with source.open("rb") as read, sink.open("wb") as write:
        pump = Pump(near, read.fileno(), write.fileno())
        pump.run()
    peer.join(PATIENCE)
    assert (pump.sent, pump.received) == (SIZE, SIZE)
    assert hashlib.sha256(sink.read_bytes()).digest() == hashlib.sha256(data[::-1]).digest()


def test_a_peer_that_closes_early_has_said_its_last(ends: tuple[socket, socket], tmp_path: Path) -> None:
    near, far = ends
    far.sendall(b"goodbye")
    far.close()
    with pipe() as (read, write), (tmp_path / "sink").open("w+b") as sink:
        os.write(write, b"what nobody takes")
        os.close(write)
        with pytest.raises(ConnectionError, match="the peer closed before it took everything"):
            Pump(near, read, sink.fileno()).run()
        sink.seek(0)
        assert sink.read() == b"goodbye"


def test_nobody_reads_the_sink(ends: tuple[socket, socket]) -> None:
    near, far = ends
    far.sendall(b"x")
    with pipe() as (read, write), pipe() as (source, source_end):
        os.close(read)
        with pytest.raises(BrokenPipeError):
            Pump(near, source, write).run()
        os.close(source_end)  # what waits for the source ends
    assert far.recv(1) == b""


def test_a_terminal_goes_with_its_peer(ends: tuple[socket, socket], tmp_path: Path) -> None:
    near, far = ends
    far.shutdown(stdlib.SHUT_WR)
    master, slave = pty.openpty()
    with (tmp_path / "sink").open("wb") as sink:
        Pump(near, slave, sink.fileno()).run()  # it ends, though the terminal says nothing
    os.write(master, b"\x04")  # and so does what waits for the terminal
    assert far.recv(1) == b""
    for one in (master, slave):
        os.close(one)


@pytest.mark.parametrize(
    ("command", "said", "code"),
    [
        ("cat", b"a question", 0),
        ("exit 7", b"", 7),
        ("printf answer; exec cat >/dev/null", b"answer", 0),
        ("printf $HVSOCK_PEER_VMID", b"it", 0),
    ],
)
def test_a_command(ends: tuple[socket, socket], command: str, said: bytes, code: int) -> None:
    near, far = ends
    codes: list[int] = []
    environ = {**os.environ, "HVSOCK_PEER_VMID": "it"}
    thread = threading.Thread(target=lambda: codes.append(execute_over_pipes(near, command, environ)))
    thread.start()
    with contextlib.suppress(BrokenPipeError):  # one that reads nothing may have ended by then
        far.sendall(b"a question")
        far.shutdown(stdlib.SHUT_WR)
    with far.makefile("rb") as file:
        assert file.read() == said
    thread.join(PATIENCE)
    assert codes == [code]


def test_a_command_ends_though_its_peer_does_not(ends: tuple[socket, socket]) -> None:
    near, far = ends
    assert execute_over_pipes(near, "printf done", os.environ) == 0
    assert far.recv(9) == b"done"
    assert far.recv(9) == b""


def test_a_command_whose_peer_is_gone(ends: tuple[socket, socket]) -> None:
    near, far = ends
    far.close()
    assert execute_over_pipes(near, "exec yes", os.environ) != 0
