"""Connects that found the backlog of their listener full, or the broker short of descriptors.

They stand in a queue for each listener, the oldest first. An accept makes room and lets the next one try at
once: the broker sees its courier taken. Where no courier of its own can tell (the backlog is full with those
of a broker that was killed, or descriptors are short), the queues are tried in turn, so many in each pause.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor

    from .handover import Handover
    from .listeners import Listener

RETRY_SECONDS: Final = 0.02
"""Pause before queues are tried again when nothing tells that there is room."""
QUEUES_PER_RETRY: Final = 32
"""Queues that are tried after each pause; more of them take turns."""
TRIES_PER_TURN: Final = 16
"""Connects of one queue that are tried before others have their turn."""


class WaitingRoom:
    """The queues of all listeners that have one."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._queues: OrderedDict[Listener, None] = OrderedDict()
        self._ready: OrderedDict[Listener, None] = OrderedDict()
        self._retries = False
        self._serves = False

    def __len__(self) -> int:
        return sum(len(listener.waiting) for listener in self._queues)

    def join(self, listener: Listener, handover: Handover) -> None:
        """Stand at the end of a listener's queue; who stands in it already keeps his place."""
        listener.waiting[handover] = None
        self._queues[listener] = None
        if not self._retries:
            self._retries = True
            self._reactor.after(RETRY_SECONDS, self._retry)

    def leave(self, listener: Listener, handover: Handover) -> None:
        """Leave a listener's queue."""
        del listener.waiting[handover]
        if not listener.waiting:
            self._queues.pop(listener, None)

    def wake(self, listener: Listener) -> None:
        """There may be room now, or the listener is gone: its queue is tried after this turn."""
        if listener.waiting:
            self._ready[listener] = None
            if not self._serves:
                self._serves = True
                self._reactor.after(0, self._serve)

    def _serve(self) -> None:
        self._serves = False
        for _ in range(len(self._ready)):
            listener, _ = self._ready.popitem(last=False)
            if self._try(listener, TRIES_PER_TURN):
                self.wake(listener)

    def _try(self, listener: Listener, tries: int) -> bool:
        """Try the oldest ones of a queue; tells whether there may be room for more."""
        for _ in range(tries):
            if not listener.waiting:
                return False
            oldest = next(iter(listener.waiting))
            oldest.attempt()
            if oldest in listener.waiting:
                return False
        return True

    def _retry(self) -> None:
        self._retries = False
        for _ in range(min(QUEUES_PER_RETRY, len(self._queues))):
            if not self._queues:
                break
            listener = next(iter(self._queues))
            self._queues.move_to_end(listener)
            if self._try(listener, TRIES_PER_TURN):
                self.wake(listener)
        if self._queues and not self._retries:
            self._retries = True
            self._reactor.after(RETRY_SECONDS, self._retry)
