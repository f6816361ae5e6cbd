"""select, poll, epoll and selectors on listening, connecting and connected sockets, level and edge triggered."""

from __future__ import annotations

import contextlib
import errno
import select
import selectors
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import pytest

assert sys.platform == "linux"

from hvsock import (
    HV_GUID_LOOPBACK,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    ServiceId,
)
from hvsock.sockets.socket import socket as hv_socket
from tests.sockets.support import QUIET_SECONDS, WAIT_SECONDS, FakeBroker, World, pending, so_error

READ, WRITE = 1, 2
NOWHERE = (HV_GUID_LOOPBACK, ServiceId("12345678-1234-1234-1234-123456789abc"))
TYPES = [SOCK_STREAM, SOCK_SEQPACKET]

Look = Callable[[float], int]
"""Waits for up to so many seconds; returns READ and WRITE as far as they hold."""
Way = Callable[[hv_socket], AbstractContextManager[Look]]


@contextmanager
def by_select(sock: hv_socket) -> Iterator[Look]:
    def look(seconds: float) -> int:
        reading, writing, _ = select.select([sock], [sock], [], seconds)
        return (READ if reading else 0) | (WRITE if writing else 0)

    yield look


@contextmanager
def by_poll(sock: hv_socket) -> Iterator[Look]:
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)

    def look(seconds: float) -> int:
        events = sum(mask for _, mask in poll.poll(seconds * 1000))
        return (READ if events & select.POLLIN else 0) | (WRITE if events & select.POLLOUT else 0)

    yield look


@contextmanager
def by_epoll(sock: hv_socket) -> Iterator[Look]:
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLOUT)

        def look(seconds: float) -> int:
            events = sum(mask for _, mask in epoll.poll(seconds))
            return (READ if events & select.EPOLLIN else 0) | (WRITE if events & select.EPOLLOUT else 0)

        yield look


def by_selector(make: Callable[[], selectors.BaseSelector]) -> Way:
    @contextmanager
    def way(sock: hv_socket) -> Iterator[Look]:
        with make() as selector:
            selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
            yield lambda seconds: sum(events for _, events in selector.select(seconds))

    return way


WAYS = {
    "select": by_select,
    "poll": by_poll,
    "epoll": by_epoll,
    "SelectSelector": by_selector(selectors.SelectSelector),
    "PollSelector": by_selector(selectors.PollSelector),
    "EpollSelector": by_selector(selectors.EpollSelector),
}


@pytest.fixture(params=[pytest.param(way, id=name) for name, way in WAYS.items()])
def way(request: pytest.FixtureRequest) -> Way:
    found: Way = request.param
    return found


class TestLevel:
    @pytest.mark.parametrize("type_", TYPES)
    def test_listening(self, world: World, way: Way, type_: int) -> None:
        listener, service_id = world.loopback(type=type_)
        with listener, way(listener) as look, world.fresh(type=type_) as one, world.fresh(type=type_) as two:
            assert look(QUIET_SECONDS) == 0
            for sock in (one, two):
                sock.connect((HV_GUID_LOOPBACK, service_id))
            for _ in range(2):
                for _ in range(2):
                    assert look(WAIT_SECONDS) == READ
                listener.accept()[0].close()
            assert look(QUIET_SECONDS) == 0

    @pytest.mark.parametrize("type_", TYPES)
    def test_connecting_to_be_established(self, world: World, way: Way, type_: int) -> None:
        with pending(world, type=type_) as (sock, listener, _), way(sock) as look:
            assert look(QUIET_SECONDS) == 0
            listener.accept()[0].close()
            for _ in range(2):
                assert look(WAIT_SECONDS) == WRITE
            assert so_error(sock) == 0
            assert look(WAIT_SECONDS) == WRITE

    @pytest.mark.parametrize("type_", TYPES)
    def test_connecting_to_be_refused(self, fake: FakeBroker, way: Way, type_: int) -> None:
        """Writable and readable, as TCP's; SO_ERROR tells."""
        with fake.connector(type=type_) as sock:
            sock.connect_ex(NOWHERE)
            with way(sock) as look:
                assert look(QUIET_SECONDS) == 0
                fake.refuse(errno.EACCES, "no", type_)
                for _ in range(2):
                    assert look(WAIT_SECONDS) & WRITE
                assert so_error(sock) == errno.EACCES

    @pytest.mark.parametrize("type_", TYPES)
    def test_connecting_when_the_broker_dies(self, fake: FakeBroker, way: Way, type_: int) -> None:
        with fake.connector(type=type_) as sock:
            sock.connect_ex(NOWHERE)
            with way(sock) as look:
                fake.take(type_)[0].close()
                assert look(WAIT_SECONDS) & WRITE
                assert so_error(sock) == errno.ECONNREFUSED

    def test_connected(self, world: World, way: Way) -> None:
        near, far = world.pair()
        with near, far, way(near) as look:
            assert look(WAIT_SECONDS) == WRITE
            far.sendall(b"data")
            assert look(WAIT_SECONDS) == READ | WRITE
            assert near.recv(10) == b"data"
            assert look(WAIT_SECONDS) == WRITE
            near.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    near.send(bytes(50_000))
            assert look(QUIET_SECONDS) == 0
            far.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    far.recv(1 << 20)
            assert look(WAIT_SECONDS) == WRITE
            far.shutdown(socket.SHUT_WR)
            assert look(WAIT_SECONDS) == READ | WRITE

    def test_the_peer_closes(self, world: World, way: Way) -> None:
        near, far = world.pair()
        with near, way(near) as look:
            far.close()
            assert look(WAIT_SECONDS) & READ
            assert near.recv(1) == b""

    def test_the_peer_resets(self, world: World, way: Way) -> None:
        near, far = world.pair()
        with near, way(near) as look:
            near.sendall(b"unread")
            far.close()
            assert look(WAIT_SECONDS) & READ
            with pytest.raises(ConnectionResetError):
                near.recv(1)


class TestEdge:
    """With EPOLLET each change is told once; a loop that misses none of them must get all."""

    EDGES = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET

    @contextmanager
    def edges(self, sock: hv_socket) -> Iterator[Look]:
        with select.epoll() as epoll:
            epoll.register(sock, self.EDGES)
            yield lambda seconds: sum(mask for _, mask in epoll.poll(seconds))

    def test_listening(self, world: World) -> None:
        listener, service_id = world.loopback()
        listener.settimeout(0)
        with listener, self.edges(listener) as look:
            for count in (1, 3):
                for _ in range(count):
                    with world.fresh() as sock:
                        sock.connect((HV_GUID_LOOPBACK, service_id))
                assert look(WAIT_SECONDS) == select.EPOLLIN
                for _ in range(count):
                    listener.accept()[0].close()
                with pytest.raises(BlockingIOError):
                    listener.accept()
            assert look(QUIET_SECONDS) == 0

    @pytest.mark.parametrize("type_", TYPES)
    @pytest.mark.parametrize("registered", ["before", "after"])
    def test_connecting_to_be_established(self, fake: FakeBroker, type_: int, registered: str) -> None:
        with fake.connector(type=type_) as sock:
            if registered == "after":
                sock.connect_ex(NOWHERE)
            with self.edges(sock) as look:
                if registered == "before":
                    look(0)  # hangs up, as every socket that is not connected
                    sock.connect_ex(NOWHERE)
                assert look(QUIET_SECONDS) == 0
                with fake.establish(type_):
                    assert look(WAIT_SECONDS) == select.EPOLLOUT
                    assert look(QUIET_SECONDS) == 0
                    assert so_error(sock) == 0

    @pytest.mark.parametrize("type_", TYPES)
    @pytest.mark.parametrize("registered", ["before", "after"])
    def test_connecting_to_be_refused(self, fake: FakeBroker, type_: int, registered: str) -> None:
        with fake.connector(type=type_) as sock:
            if registered == "after":
                sock.connect_ex(NOWHERE)
            with self.edges(sock) as look:
                if registered == "before":
                    look(0)
                    sock.connect_ex(NOWHERE)
                assert look(QUIET_SECONDS) == 0
                fake.refuse(errno.EHOSTUNREACH, "no", type_)
                seen = 0
                while not seen & select.EPOLLERR:
                    events = look(WAIT_SECONDS)
                    assert events
                    seen |= events
                assert so_error(sock) == errno.EHOSTUNREACH

    def test_connecting_against_a_broker_at_work(self, world: World) -> None:
        """Nothing is missed however fast the broker is."""
        listener, service_id = world.loopback()
        with listener:
            for _ in range(50):
                with world.fresh(blocking=False) as sock, self.edges(sock) as look:
                    look(0)
                    sock.connect_ex((HV_GUID_LOOPBACK, service_id))
                    assert look(WAIT_SECONDS) == select.EPOLLOUT
                    assert so_error(sock) == 0
                listener.accept()[0].close()

    def test_connected(self, world: World) -> None:
        near, far = world.pair()
        with near, far, self.edges(near) as look:
            assert look(WAIT_SECONDS) == select.EPOLLOUT
            assert look(0) == 0
            far.sendall(b"data")
            assert look(WAIT_SECONDS) & select.EPOLLIN
            assert look(0) == 0
            assert near.recv(10) == b"data"
            far.shutdown(socket.SHUT_WR)
            assert look(WAIT_SECONDS) & select.EPOLLRDHUP
            assert near.recv(1) == b""
            far.close()
            assert look(WAIT_SECONDS) & select.EPOLLHUP


def test_a_level_triggered_loop_over_many(world: World) -> None:
    """A hundred connects at once with one selector, each side non-blocking; every one arrives, with its data."""
    listener, service_id = world.loopback(backlog=8)
    listener.settimeout(0)
    count, done = 100, 0
    received: set[int] = set()
    with listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        sockets = [world.fresh(blocking=False) for _ in range(count)]
        for number, sock in enumerate(sockets):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, int(WAIT_SECONDS * 1000))
            code = sock.connect_ex((HV_GUID_LOOPBACK, service_id))
            assert code == errno.EINPROGRESS
            selector.register(sock, selectors.EVENT_WRITE, number)
        while len(received) < count:
            ready = selector.select(WAIT_SECONDS)
            assert ready, f"{done} connected, {len(received)} received"
            for key, _ in ready:
                sock = cast("hv_socket", key.fileobj)
                if sock is listener:
                    accepted, _ = listener.accept()
                    accepted.settimeout(0)
                    selector.register(accepted, selectors.EVENT_READ)
                elif key.data is not None:
                    assert so_error(sock) == 0
                    sock.sendall(str(key.data).encode())
                    selector.unregister(sock)
                    sock.close()
                    done += 1
                else:
                    received.add(int(sock.recv(100)))
                    selector.unregister(sock)
                    sock.close()
    assert received == set(range(count))
