"""The pump between a connection and two descriptors, over each kind of descriptor."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvsock
from hvsock.cli.pump import Pump
from hvsock.sockets.socket import socket
from tests.support import sample

assert sys.platform == "linux"

SIZE = sample(4 << 20, 256 << 20)
PATIENCE = 20.0


@pytest.fixture
def ends() -> Iterator[tuple[socket, socket]]:
    """The pump's end of a connection, and the peer's."""
    near, far = hvsock.socketpair()
    with near, far:
        far.settimeout(PATIENCE)
        yield near, far


@pytest.fixture
def pipes() -> Iterator[Callable[[], tuple[int, int]]]:
    """Makes pipes; what is left of them is closed in the end."""
    made: list[int] = []

    def make() -> tuple[int, int]:
        made.extend(os.pipe())
        return made[-2], made[-1]

    yield make
    for descriptor in made:
        with contextlib.suppress(OSError):
            os.close(descriptor)


class Running:
    """Something in a thread: its result, or its error."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._result


def data_of(size: int) -> bytes:
    """Bytes in which nothing repeats within a block."""
    return hashlib.shake_256(b"pump").digest(size)


def read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.close(descriptor)


def receive_all(sock: socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_everything_goes_both_ways_at_once(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]], tmp_path: Path, kind: str
) -> None:
    near, far = ends
    up, down = data_of(SIZE), data_of(SIZE)[::-1]
    path = tmp_path / "sink"
    if kind == "pipe":
        (source, feed), (drain, sink) = pipes(), pipes()
        feeding = Running(lambda: write_all(feed, up))
        draining = Running(lambda: read_all(drain))
    else:
        (tmp_path / "source").write_bytes(up)
        source = os.open(tmp_path / "source", os.O_RDONLY)
        sink = os.open(path, os.O_WRONLY | os.O_CREAT)
    pump = Pump(near, source, sink)
    pumping = Running(pump.run)

    def send() -> None:
        far.sendall(down)
        far.shutdown(hvsock.SHUT_WR)

    sending = Running(send)
    assert receive_all(far) == up
    sending.result()
    pumping.result()
    assert (pump.sent, pump.received) == (SIZE, SIZE)
    os.close(sink)
    if kind == "pipe":
        feeding.result()
        assert draining.result() == down
    else:
        os.close(source)
        assert path.read_bytes() == down


def test_a_terminal_as_source_and_sink(ends: tuple[socket, socket]) -> None:
    near, far = ends
    master, slave = pty.openpty()
    try:
        tty.setraw(slave)
        pumping = Running(Pump(near, slave, slave).run)
        os.write(master, b"typed")
        assert far.recv(100) == b"typed"
        far.sendall(b"shown")
        assert os.read(master, 100) == b"shown"
        far.close()
        pumping.result()
    finally:
        os.close(master)
        os.close(slave)


def test_an_end_of_the_source_leaves_the_other_direction_alone(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]]
) -> None:
    near, far = ends
    (source, feed), (drain, sink) = pipes(), pipes()
    pumping = Running(Pump(near, source, sink).run)
    write_all(feed, b"question")
    assert receive_all(far) == b"question"
    time.sleep(0.05)
    assert pumping.alive
    far.sendall(b"answer")
    far.close()
    pumping.result()
    assert os.read(drain, 100) == b"answer"


def test_an_end_of_the_peer_leaves_the_source_alone(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]]
) -> None:
    near, far = ends
    (source, feed), (_, sink) = pipes(), pipes()
    pumping = Running(Pump(near, source, sink).run)
    far.shutdown(hvsock.SHUT_WR)
    time.sleep(0.05)
    assert pumping.alive
    write_all(feed, data_of(500_000))
    assert receive_all(far) == data_of(500_000)
    pumping.result()


def test_a_peer_that_is_gone_ends_it_though_the_source_is_open(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]]
) -> None:
    near, far = ends
    (source, _), (_, sink) = pipes(), pipes()
    pumping = Running(Pump(near, source, sink).run)
    far.close()
    pumping.result()


def test_what_the_peer_did_not_take_is_an_error(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]]
) -> None:
    near, far = ends
    (source, feed), (_, sink) = pipes(), pipes()
    pumping = Running(Pump(near, source, sink).run)
    feeding = Running(lambda: write_all(feed, data_of(4 << 20)))
    assert far.recv(10)
    far.close()
    with pytest.raises(ConnectionError):
        pumping.result()
    os.close(source)
    with pytest.raises(BrokenPipeError):
        feeding.result()


def test_what_nobody_took_before_the_peer_left_is_an_error(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]]
) -> None:
    near, far = ends
    (source, feed), (_, sink) = pipes(), pipes()
    os.write(feed, b"too late")
    far.close()
    with pytest.raises(ConnectionError, match="before it took everything"):
        Pump(near, source, sink).run()


def test_a_sink_that_nobody_reads_ends_it(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]]
) -> None:
    near, far = ends
    (source, _), (drain, sink) = pipes(), pipes()
    pumping = Running(Pump(near, source, sink).run)
    far.sendall(b"some")
    assert os.read(drain, 10) == b"some"
    os.close(drain)  # nothing more has to come for that to be seen
    with pytest.raises(BrokenPipeError):
        pumping.result()
    assert far.recv(1) == b""


def test_a_source_that_cannot_be_read_ends_it(ends: tuple[socket, socket], tmp_path: Path) -> None:
    near, far = ends
    folder = os.open(tmp_path, os.O_RDONLY)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        with pytest.raises(IsADirectoryError):
            Pump(near, folder, sink).run()
    finally:
        os.close(folder)
        os.close(sink)
    assert far.recv(1) == b""


def test_a_slow_sink_holds_nobody_else_up(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]]
) -> None:
    """While the sink is full, the other direction goes on, and what the sink holds can be taken."""
    near, far = ends
    (source, feed), (drain, sink) = pipes(), pipes()
    pumping = Running(Pump(near, source, sink).run)
    far.settimeout(0.3)
    filled = 0
    with contextlib.suppress(TimeoutError):
        while True:
            filled += far.send(bytes(65536))
    far.settimeout(PATIENCE)
    os.write(feed, b"still here")
    assert far.recv(100) == b"still here"
    assert os.read(drain, 1) == b"\0"
    draining = Running(lambda: read_all(drain))
    os.close(feed)
    far.shutdown(hvsock.SHUT_WR)
    assert receive_all(far) == b""
    pumping.result()
    os.close(sink)
    assert len(draining.result()) == filled - 1


def test_a_reader_of_the_sink_is_served_while_the_connection_is_quiet(
    ends: tuple[socket, socket], pipes: Callable[[], tuple[int, int]]
) -> None:
    """A splice that waited for the connection would hold the lock of the pipe, and reading it would hang."""
    near, far = ends
    (source, feed), (drain, sink) = pipes(), pipes()
    pumping = Running(Pump(near, source, sink).run)
    for number in range(200):
        write = f"{number}".encode()
        os.write(feed, write)
        assert far.recv(100) == write
        far.sendall(write)
        assert Running(lambda: os.read(drain, 100)).result() == write
    far.close()
    pumping.result()
    os.close(feed)
