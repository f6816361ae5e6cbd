"""The host's side of one connection of a guest: a socket of the fabric, and the mark of a clean end.

AF_UNIX shows the death of a device as an end of stream. So a connection of a VM has an *end mark*, an eventfd that
its other end has too: the device sets it before it ends a stream, and an end without it is a reset
(:mod:`hvsock.fabric.marks`).
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hvsock.fabric.marks import EndMark
from hvsock.virtio.connection import BROKEN, END, WOULD_BLOCK, Connection, Reason

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor
    from hvsock.virtio.muxer import Muxer

WATCHED: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
"""Events of every end, edge-triggered: who was told of something readable reads all of it."""
_READABLE = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLHUP | select.EPOLLERR


class HostEnd:
    """The host's side of one connection; an :class:`~hvsock.virtio.connection.End`.

    It owns its descriptors, from the beginning to close().

    Args:
        reactor: watches the socket.
        muxer: is told of what happens.
        changed: called when the muxer was told something.
        sock: the socket, non-blocking.
        mark: the own end mark, which the other end has too; None for a connection without.
        peer_mark: the end mark of a device at the other end.
    """

    __slots__ = ("_armed", "_changed", "_mark", "_muxer", "_peer_mark", "_reactor", "connection", "sock")

    def __init__(
        self,
        reactor: Reactor,
        muxer: Muxer,
        changed: Callable[[], None],
        sock: socket.socket,
        mark: EndMark | None,
        peer_mark: EndMark | None = None,
    ) -> None:
        self._reactor = reactor
        self._muxer = muxer
        self._changed = changed
        self.sock = sock
        self._mark = mark
        self._peer_mark = peer_mark
        self._armed = False
        self.connection: Connection | None = None

    def watch(self) -> None:
        """Tell the muxer from now on what happens.

        Raises:
            OSError: the user watches too many descriptors.
        """
        self._reactor.watch(self.sock.fileno(), WATCHED, self._ready)

    def send(self, pieces: list[Any]) -> int:
        """See :meth:`hvsock.virtio.connection.End.send`."""
        try:
            if len(pieces) == 1:
                piece = pieces[0]
                sent = self.sock.send(piece)
                if sent < len(piece):
                    self._arm(True)
                return sent
            sent = self.sock.sendmsg(pieces)
        except BlockingIOError:
            self._arm(True)
            return 0
        except OSError:
            return BROKEN
        if sent < sum(map(len, pieces)):
            self._arm(True)
        return sent

    def receive(self, views: list[memoryview]) -> int:
        """See :meth:`hvsock.virtio.connection.End.receive`."""
        try:
            count, _, flags, _ = self.sock.recvmsg_into(views)
            if flags & socket.MSG_TRUNC:
                return BROKEN
            if flags & socket.MSG_CTRUNC and self.connection is not None:
                # descriptors are not passed on; a read that comes to some is short with more behind them
                self.connection.ending = True
        except BlockingIOError:
            return WOULD_BLOCK
        except OSError:
            return BROKEN
        if count:
            return count
        return BROKEN if self._peer_mark is not None and not self._peer_mark.is_set() else END

    def finish(self) -> None:
        """See :meth:`hvsock.virtio.connection.End.finish`."""
        if self._mark is not None:
            self._mark.set()
        self._shutdown(socket.SHUT_WR)

    def deafen(self) -> None:
        """See :meth:`hvsock.virtio.connection.End.deafen`."""
        self._shutdown(socket.SHUT_RD)

    def is_closed(self) -> bool:
        """See :meth:`hvsock.virtio.connection.End.is_closed`."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return bool(poll.poll(0))

    def accept(self) -> None:
        """See :meth:`hvsock.virtio.connection.End.accept`."""

    def refuse(self, reason: Reason) -> None:
        """See :meth:`hvsock.virtio.connection.End.refuse`."""

    def close(self) -> None:
        """See :meth:`hvsock.virtio.connection.End.close`."""
        self._reactor.forget(self.sock.fileno())
        self.sock.close()
        for mark in (self._mark, self._peer_mark):
            if mark is not None:
                mark.close()
        self._mark = self._peer_mark = None
        self.connection = None

    def _shutdown(self, how: int) -> None:
        with contextlib.suppress(OSError):  # the other end is gone, and needs no word
            self.sock.shutdown(how)

    def _arm(self, wanted: bool) -> None:
        """Be told of room, or no more."""
        if wanted is not self._armed:
            self._armed = wanted
            with contextlib.suppress(OSError):  # watched already, so nothing is short
                events = WATCHED | select.EPOLLOUT if wanted else WATCHED
                self._reactor.watch(self.sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        connection, muxer = self.connection, self._muxer
        if connection is None:
            return
        if events & select.EPOLLOUT:
            muxer.writable(connection)
            if connection.pending is None and self.connection is not None:
                self._arm(False)
        if events & _READABLE:
            muxer.readable(connection, ending=bool(events & select.EPOLLRDHUP))
        if events & _GONE:
            muxer.hung_up(connection)
        self._changed()
