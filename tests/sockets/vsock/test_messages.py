"""Messages that go whole or not at all, over AF_UNIX; guests of tests/vm show that Linux needs that."""

from __future__ import annotations

import os
import select
import socket as stdlib
import sys
from collections.abc import Iterator

import pytest

assert sys.platform == "linux"

from hvsock.sockets.vsock import messages

Pair = tuple[stdlib.socket, stdlib.socket]
SIZE = 16 * 1024


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of which the first does not wait."""
    near, far = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_SEQPACKET)
    with near, far:
        near.setblocking(False)
        yield near, far


def filled(sock: stdlib.socket) -> int:
    """Send until there is no more room; how many messages."""
    count = 0
    while True:
        try:
            sock.send(bytes(SIZE))
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize(
    ("name", "argument"), [("send", b"hello"), ("sendall", b"hello"), ("sendmsg", [b"hel", b"lo"])]
)
def test_there_is_room(pair: Pair, name: str, argument: object) -> None:
    near, far = pair
    before = near.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDTIMEO, 16)
    assert messages.send(near, 0, name, argument) == (None if name == "sendall" else 5)
    assert far.recv(100) == b"hello"
    assert not os.get_blocking(near.fileno())
    assert near.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDTIMEO, 16) == before


def test_there_is_none(pair: Pair) -> None:
    near, far = pair
    count = filled(near)
    with pytest.raises(BlockingIOError):
        messages.send(near, 0, "send", b"late")
    with pytest.raises(TimeoutError, match="timed out"):
        messages.send(near, 0.01, "send", b"late")
    for _ in range(count):
        assert far.recv(2 * SIZE) == bytes(SIZE)
    assert messages.send(near, 0, "send", b"in time") == 7
    assert far.recv(100) == b"in time"


class HasRoom:
    """A poll that finds room in any case, as there is for the beginning of a message."""

    def register(self, sock: stdlib.socket, events: int) -> None:
        """What is asked does not matter."""

    def poll(self, milliseconds: float) -> list[tuple[int, int]]:
        """There is room."""
        return [(0, select.POLLOUT)]


def test_there_is_none_for_the_rest(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can follow what was begun, so the connection is over."""
    near, far = pair
    count = filled(near)
    monkeypatch.setattr(messages, "REST_SECONDS", 0.05)
    monkeypatch.setattr(select, "poll", HasRoom)
    with pytest.raises(ConnectionResetError, match=r"no room for the rest of a message in 0\.05 s"):
        messages.send(near, 0, "send", bytes(SIZE))
    assert not os.get_blocking(near.fileno())
    for _ in range(count):
        assert far.recv(2 * SIZE) == bytes(SIZE)
    assert far.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        near.send(b"more")
