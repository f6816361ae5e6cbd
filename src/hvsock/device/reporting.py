"""The counters of a device at a socket: who connects gets them as one JSON object, and the end of stream."""

from __future__ import annotations

import json
import logging
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor

log = logging.getLogger(__name__)

MAX_READERS: Final = 16
"""Readers of the counters at once; one that does not read keeps its place, and no more than that."""


class Reports:
    """Gives out reports.

    Args:
        reactor: watches the descriptors.
        listener: where readers come in, non-blocking; closed by close().
        report: makes one, as JSON takes it.
    """

    def __init__(self, reactor: Reactor, listener: socket.socket, report: Callable[[], dict[str, Any]]) -> None:
        self._reactor = reactor
        self._listener = listener
        self._report = report
        self._readers: dict[socket.socket, memoryview] = {}
        reactor.watch(listener.fileno(), select.EPOLLIN, self._accept)

    def close(self) -> None:
        """Give out nothing any more."""
        for sock in (self._listener, *self._readers):
            self._reactor.forget(sock.fileno())
            sock.close()
        self._readers.clear()

    def _accept(self, events: int) -> None:
        try:
            reader, _ = self._listener.accept()
        except OSError:
            return
        reader.setblocking(False)
        if len(self._readers) >= MAX_READERS:
            reader.close()
            return
        self._readers[reader] = memoryview(json.dumps(self._report()).encode())
        self._send(reader)

    def _send(self, reader: socket.socket) -> None:
        rest = self._readers[reader]
        try:
            rest = rest[reader.send(rest) :]
            if rest:
                self._reactor.watch(reader.fileno(), select.EPOLLOUT, lambda events: self._send(reader))
                self._readers[reader] = rest
                return
        except BlockingIOError:
            return
        except OSError:
            log.debug("a reader of the counters left")
        del self._readers[reader]
        self._reactor.forget(reader.fileno())
        reader.close()
