"""Two sockets joined: all bytes both ways, half-close, backpressure, and who learns of what end."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest

assert sys.platform == "linux"

from hvsock.fabric.reactor import Reactor
from hvsock.relay import connection
from hvsock.relay.connection import CHUNK_BYTES, Joined

UNIX, TCP = "unix", "tcp"
MANY = 3_000_000
"""Bytes that no buffer holds."""


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


class World:
    """A client and a server, with the relay's two sockets between them, and a reactor that is turned by hand."""

    def __init__(self, kind: str) -> None:
        self.reactor = Reactor()
        self.client, near = socket.socketpair()
        target, self.server = socket.socketpair() if kind == UNIX else tcp_pair()
        for sock in (self.client, near, target, self.server):
            sock.setblocking(False)
        self.ends: list[Joined] = []
        self.inside = (near, target)
        self.joined = Joined(self.reactor, near, target, self._on_end)

    def _on_end(self, joined: Joined) -> None:
        assert joined is self.joined
        self.ends.append(joined)

    def ended(self) -> int:
        """How often the end was told of."""
        return len(self.ends)

    def turn(self, times: int = 1) -> None:
        for _ in range(times):
            self.reactor.call_from_thread(lambda: None)  # so that it does not wait
            self.reactor.run_once()

    def exchange(self, sender: socket.socket, receiver: socket.socket, data: bytes) -> bytes:
        """Send all of `data`, close that direction, and read to its end."""
        view, got, shut, idle = memoryview(data), bytearray(), False, 0
        while idle < 2000:
            idle += 1
            try:
                if view:
                    view = view[sender.send(view) :]
                elif not shut:
                    sender.shutdown(socket.SHUT_WR)
                    shut = True
            except BlockingIOError:
                pass
            self.turn()
            try:
                piece = receiver.recv(1 << 20)
            except BlockingIOError:
                continue
            if not piece:
                return bytes(got)
            got += piece
            idle = 0
        raise AssertionError(f"stuck after {len(got)} of {len(data)} bytes")

    def read(self, sock: socket.socket) -> bytes:
        """What comes next: bytes, or none for the end of the stream."""
        for _ in range(2000):
            self.turn()
            try:
                return sock.recv(1 << 20)
            except BlockingIOError:
                continue
        raise AssertionError("nothing came")


@pytest.fixture(params=[UNIX, TCP])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    try:
        yield made
    finally:
        made.joined.close()
        made.reactor.close()
        made.client.close()
        made.server.close()
        assert all(sock.fileno() < 0 for sock in made.inside)


def test_all_bytes_arrive_both_ways_and_each_way_ends_by_itself(world: World) -> None:
    data, answer = os.urandom(MANY), os.urandom(MANY)
    assert world.exchange(world.client, world.server, data) == data
    assert not world.ended()
    assert world.exchange(world.server, world.client, answer) == answer
    world.turn(3)
    assert world.ended() == 1


def test_the_server_may_end_first(world: World) -> None:
    assert world.exchange(world.server, world.client, b"greeting") == b"greeting"
    assert not world.ended()
    assert world.exchange(world.client, world.server, b"thanks") == b"thanks"
    world.turn(3)
    assert world.ended() == 1


def test_what_was_sent_before_a_close_arrives(world: World) -> None:
    world.client.sendall(b"last words")
    world.client.close()
    assert world.read(world.server) == b"last words"
    assert world.read(world.server) == b""


def test_a_slow_reader_stops_its_sender_and_bounds_what_is_held(world: World) -> None:
    sent = idle = 0
    while idle < 50:
        try:
            sent += world.client.send(bytes(CHUNK_BYTES))
            idle = 0
        except BlockingIOError:
            idle += 1
        world.turn()
    way = world.joined._ways[0]
    assert 0 < len(way.pending) <= CHUNK_BYTES
    assert sent < 64 << 20  # what the kernel's buffers take, and one chunk
    world.server.sendall(b"the other way is free")
    assert world.read(world.client) == b"the other way is free"
    got = 0
    while got < sent:
        got += len(world.read(world.server))


def test_a_server_that_is_gone_is_told_by_a_failed_send(world: World) -> None:
    world.server.close()
    assert world.read(world.client) == b""
    for _ in range(1000):
        try:
            world.client.send(b"x")
        except (BrokenPipeError, ConnectionResetError):
            break
        world.turn()
    world.turn(3)
    assert world.ended() == 1


def test_a_client_that_is_gone_leaves_nothing_behind(world: World) -> None:
    """Although the server, who was told of the end, does nothing about it."""
    world.client.close()
    assert world.read(world.server) == b""
    world.turn(5)
    if world.server.family == socket.AF_UNIX:
        assert world.ended() == 1
    else:  # it may have unread data still, which a reset would take back: until it closes, or is too slow
        assert world.joined._draining is not None
        world.server.close()
        world.turn(5)
        assert world.ended() == 1


def test_a_tcp_server_that_reads_late_gets_all_of_a_client_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(TCP)
    sent = 0
    try:
        while True:
            try:
                sent += world.client.send(bytes(10_000))
            except BlockingIOError:
                break
            world.turn()
        world.client.close()
        world.turn(20)
        world.server.sendall(b"an answer to nobody, which no reset may follow")
        world.turn(5)
        got = 0
        while piece := world.read(world.server):
            got += len(piece)
        assert got == sent
    finally:
        world.joined.close()
        world.reactor.close()
        world.server.close()


def test_a_tcp_server_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DRAIN_SECONDS", 0.0)
    world = World(TCP)
    try:
        world.client.close()
        while not world.ended():
            world.turn()
    finally:
        world.reactor.close()
        world.server.close()


def test_a_reset_of_the_server_ends_both(world: World) -> None:
    world.client.sendall(b"unread")
    world.turn(3)
    if world.server.family != socket.AF_UNIX:
        world.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    world.server.close()
    for _ in range(100):
        world.turn()
        if world.ended():
            break
    assert world.ended() == 1
    assert world.client.recv(10) == b""


def test_a_reset_is_shown_to_a_client_that_was_not_heard_out() -> None:
    """AF_UNIX shows one exactly where something is left unread."""
    world = World(TCP)
    try:
        for _ in range(2000):
            try:
                world.client.send(bytes(CHUNK_BYTES))
            except BlockingIOError:
                break
            world.turn()
        world.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        world.server.close()
        while not world.ended():
            world.turn()
        with pytest.raises(ConnectionResetError):
            world.client.recv(1)
    finally:
        world.reactor.close()
        world.client.close()


def test_a_reset_of_the_client_is_one_to_a_tcp_server() -> None:
    world = World(TCP)
    try:
        world.server.sendall(b"unread")
        while not world.client.recv(1, socket.MSG_PEEK):
            world.turn()
    except BlockingIOError:
        world.turn(5)
    try:
        world.client.close()  # with something unread: a reset
        while not world.ended():
            world.turn()
        with pytest.raises(ConnectionResetError):
            world.server.recv(1)
    finally:
        world.reactor.close()
        world.server.close()


def test_closing_resets_what_is_under_way() -> None:
    world = World(TCP)
    world.joined.close()
    world.joined.close()
    with pytest.raises(ConnectionResetError):
        world.server.recv(1)
    assert world.client.recv(1) == b""
    world.reactor.close()
    world.client.close()
    world.server.close()
    assert not world.ended()
