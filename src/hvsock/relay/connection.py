"""Two connected sockets, joined: what one receives the other sends, both ways, with bounded memory.

Each direction has at most :data:`CHUNK_BYTES` in hand. While its sink takes nothing more, nothing more is read
from its source, so a slow reader holds up its own sender and nobody else. An end of stream is passed on when all
before it was, and leaves the other direction alone. A reset ends both, and is passed on as one where that can be
shown: TCP always can, AF_UNIX only to an end that has sent what nobody read yet.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor, Timer

CHUNK_BYTES: Final = 64 << 10
"""Most bytes that one direction of one connection has in hand: a third of what a Unix socket buffers itself."""
TURN_BYTES: Final = 256 << 10
"""Bytes after which the other connections have their turn: some 100 µs of work."""
DRAIN_SECONDS: Final = 30.0
"""How long a TCP target may take for its last data once the other end is gone: a close with something unread would
reset it, and take those data back."""

_EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger of socket(7): on, with no time at all


class _End:
    """One of the two sockets, and what is known of it since it was last asked."""

    __slots__ = ("gone", "readable", "sock", "writable")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.readable = self.writable = True
        self.gone = False


class _Way:
    """One direction."""

    __slots__ = ("done", "ended", "pending", "sink", "source")

    def __init__(self, source: _End, sink: _End) -> None:
        self.source = source
        self.sink = sink
        self.pending: memoryview | bytes = b""
        self.ended = False
        self.done = False


class Joined:
    """The two sockets, from the beginning to :meth:`close`; it owns both.

    Args:
        reactor: watches them.
        near: the connection of the fabric, non-blocking.
        target: the connection to the existing server, non-blocking.
        on_end: called once when both are closed.

    Raises:
        OSError: the user watches too many descriptors; both sockets are closed, and `on_end` is not called.
    """

    def __init__(
        self, reactor: Reactor, near: socket.socket, target: socket.socket, on_end: Callable[[Joined], None]
    ) -> None:
        self._reactor = reactor
        self._on_end = on_end
        self._near, self._target = _End(near), _End(target)
        self._ways = (_Way(self._near, self._target), _Way(self._target, self._near))
        self._queued = self._closed = False
        self._draining: Timer | None = None
        try:
            for end in (self._near, self._target):
                reactor.watch(end.sock.fileno(), _EVENTS, partial(self._ready, end))
        except BaseException:
            self._let_go()
            raise

    def close(self) -> None:
        """Close both sockets, as a reset where that can be shown. Calling this twice is fine."""
        if not self._closed:
            _reset(self._target.sock)
            self._let_go()

    def _let_go(self) -> None:
        self._closed = True
        if self._draining is not None:
            self._draining.cancel()
        for end in (self._near, self._target):
            self._reactor.forget(end.sock.fileno())
            end.sock.close()

    def _end(self, *, reset: bool = False) -> None:
        if reset:
            _reset(self._target.sock)
        self._let_go()
        self._on_end(self)

    def _ready(self, end: _End, events: int) -> None:
        if events & (select.EPOLLIN | select.EPOLLRDHUP | _GONE):
            end.readable = True
        if events & (select.EPOLLOUT | _GONE):
            end.writable = True
        if events & _GONE:
            end.gone = True
        if not self._queued:
            self._work()

    def _work(self) -> None:
        self._queued = False
        if self._closed:
            return
        if self._draining is not None:
            self._drain()
            return
        more = False
        for way in self._ways:
            try:
                more |= not way.done and self._move(way)
            except OSError:
                self._end(reset=True)
                return
        if all(way.done for way in self._ways):
            self._end()
        elif self._ways[0].done and self._near.gone:  # nobody is left who could be answered
            self._answer_nobody()
        elif self._ways[1].done and self._target.gone:
            self._end()
        elif more:
            self._later()

    def _later(self) -> None:
        self._queued = True
        self._reactor.soon(self._work)

    def _move(self, way: _Way) -> bool:
        """Pass on what can be passed on now; whether there is more for the next turn.

        Raises:
            OSError: the source was reset; what it sent before is passed on.
        """
        left = TURN_BYTES
        source, sink = way.source, way.sink
        while True:
            if way.pending:
                if not sink.writable:
                    return False
                try:
                    sent = sink.sock.send(way.pending)
                except BlockingIOError:
                    sink.writable = False
                    return False
                except OSError:
                    self._nobody_reads(way)
                    return False
                way.pending = memoryview(way.pending)[sent:] if sent < len(way.pending) else b""
                left -= sent
            elif way.ended:
                way.done = True
                _shut(sink.sock, socket.SHUT_WR)
                return False
            elif not source.readable:
                return False
            elif left <= 0:
                return True
            else:
                try:
                    way.pending = source.sock.recv(CHUNK_BYTES)
                except BlockingIOError:
                    source.readable = False
                    return False
                way.ended = not way.pending

    def _nobody_reads(self, way: _Way) -> None:
        """The sink takes nothing any more: its source is told so, and what comes the other way goes on."""
        way.pending, way.done = b"", True
        way.sink.readable = True  # its own end may be there, too
        _shut(way.source.sock, socket.SHUT_RD)

    def _answer_nobody(self) -> None:
        if self._target.sock.family == socket.AF_UNIX:  # what was sent stays there after the close
            self._end()
            return
        self._target.readable = True
        self._draining = self._reactor.after(DRAIN_SECONDS, self._end)
        self._drain()

    def _drain(self) -> None:
        """Read what a TCP target still says, for nobody, until it ends."""
        left = TURN_BYTES
        try:
            while left > 0:
                data = self._target.sock.recv(CHUNK_BYTES)
                if not data:
                    break
                left -= len(data)
            else:
                self._later()
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end()


def _shut(sock: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the other end is gone, and needs no word
        sock.shutdown(how)


def _reset(sock: socket.socket) -> None:
    """Have the close of `sock`, if it is TCP's, be a reset."""
    if sock.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
