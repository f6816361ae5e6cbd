"""Log lines that peers cause: each peer has so many, whatever it does, and the log says how many were left out.

Whoever has a connection says whose it is, by :func:`lines_of`; all that goes on within, callbacks and tasks
that begin there too, is that peer's. The filter is on the loggers that tell of peers alone, grpclib's among them.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Final

from .rates import PerPeer

LINES_PER_SECOND: Final = 5.0
"""Lines of one peer in a second, in the long run: some 40 MB in a day, which what rotates logs copes with."""
LINES_AT_ONCE: Final = 200
"""Lines of one peer at once: an operator's work with a guest causes some dozens."""
MAX_PEERS: Final = 1024
"""Peers of which something is known, of some 300 bytes each; more are never connected to one service."""
_LOGGERS: Final = (
    *(f"hvsock.services.{name}" for name in ("serving", "session", "wire")),
    *("grpclib.server", "grpclib.protocol"),
)

_peer: ContextVar[str] = ContextVar("hvsock_peer", default="")


@contextlib.contextmanager
def lines_of(peer: str) -> Iterator[None]:
    """Say whose doing it is what goes on within the context.

    Args:
        peer: its name in the log.
    """
    token = _peer.set(peer)
    try:
        yield
    finally:
        _peer.reset(token)


class LinesOfPeers(logging.Filter):
    """Lets each peer have so many lines; lines that are nobody's are let through.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._peers = PerPeer(LINES_PER_SECOND, LINES_AT_ONCE, MAX_PEERS)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; one that is says what was left out before it, and whether more will be."""
        peer = _peer.get()
        if not peer:
            return True
        verdict = self._peers.ask(peer, self._clock())
        if not verdict.through:
            return False
        notes = [f"{verdict.left_out} lines of {peer} before this were left out"] if verdict.left_out else []
        if verdict.last:
            notes.append(f"more of {peer} are left out for now")
        if notes:
            record.msg, record.args = f"{record.getMessage()} ({'; '.join(notes)})", ()
        return True


_filter = LinesOfPeers()
for _name in _LOGGERS:
    logging.getLogger(_name).addFilter(_filter)
