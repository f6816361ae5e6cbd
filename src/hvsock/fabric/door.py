"""A listening socket of a reactor: who comes in, some at a time, and not while descriptors are short."""

from __future__ import annotations

import logging
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if sys.platform != "linux":
    raise ImportError("doors need Linux: the reactor is built on epoll")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor, Timer

log = logging.getLogger(__name__)

ACCEPTS_PER_TURN: Final = 64
"""Peers taken before other work has its turn."""
REST_SECONDS: Final = 0.05
"""Rest of a listener that cannot accept, since this process has no descriptor left; peers wait in the kernel."""


class Door:
    """Takes what connects to a listener, which is the door's now.

    Args:
        reactor: watches the listener.
        listener: non-blocking.
        admit: gets each peer's socket, non-blocking, and owns it.
    """

    def __init__(self, reactor: Reactor, listener: socket.socket, admit: Callable[[socket.socket], None]) -> None:
        self._reactor = reactor
        self._listener = listener
        self._admit = admit
        self._rest: Timer | None = None
        self._is_short = False
        self._open()

    def close(self) -> None:
        """Take nobody any more, and close the listener."""
        if self._rest is not None:
            self._rest.cancel()
        self._reactor.forget(self._listener.fileno())
        self._listener.close()

    def _open(self) -> None:
        self._rest = None
        self._reactor.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def _accept(self, events: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                peer, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if not self._is_short:
                    self._is_short = True
                    log.warning("peers have to wait: %s", error.strerror)
                self._reactor.forget(self._listener.fileno())
                self._rest = self._reactor.after(REST_SECONDS, self._open)
                return
            self._is_short = False
            peer.setblocking(False)
            self._admit(peer)
