"""Readiness and timers on one epoll, for one thread.

asyncio is not used here: the broker has to watch descriptors for a hang-up alone (while a request lies
unread, they are readable all the time), edge-triggered, and a connect passes through in some 50 µs.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import sys
import time
from collections.abc import Callable

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it is built on epoll")

log = logging.getLogger(__name__)

MAX_EVENTS_PER_WAKE_UP = 256
"""Descriptors served before timers are looked at again."""

Handler = Callable[[int], None]
Clock = Callable[[], float]


class Timer:
    """A call that is due at a time; cancel it by :meth:`cancel`."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Never make the call; calling this twice is fine."""
        self.callback = None


class Reactor:
    """Watches descriptors and timers until :meth:`stop`.

    An exception from a handler is a defect of the broker: it is logged, the descriptor is watched no
    more, and everything else goes on.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._wake_up = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake_up, select.EPOLLIN)
        self._handlers[self._wake_up] = self._woken
        self._calls: list[Callable[[], None]] = []
        self._stopped = False

    def watch(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call `handler(events)` when `descriptor` has one of `events` (EPOLLHUP and EPOLLERR always count).

        Watching a descriptor again changes its events and its handler.
        """
        if descriptor in self._handlers:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def forget(self, descriptor: int) -> None:
        """Watch no more; to be called before the descriptor is closed. Unknown descriptors are fine."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, `seconds` from now."""
        timer = Timer(self.clock() + seconds, callback)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """Have the reactor's thread call `callback`; safe from any thread and from signal handlers."""
        self._calls.append(callback)
        os.eventfd_write(self._wake_up, 1)

    def stop(self) -> None:
        """End :meth:`run`; safe from any thread and from signal handlers."""
        self._stopped = True
        os.eventfd_write(self._wake_up, 1)

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        while not self._stopped:
            self.run_once()

    def run_once(self) -> None:
        """Wait for one batch of events or for the next timer, and serve what is due."""
        for descriptor, events in self._epoll.poll(self._patience(), MAX_EVENTS_PER_WAKE_UP):
            handler = self._handlers.get(descriptor)
            if handler is None:  # forgotten by a handler earlier in this batch
                continue
            try:
                handler(events)
            except Exception:
                log.exception("a handler failed; its descriptor is dropped")
                self.forget(descriptor)
        self._run_due()

    def close(self) -> None:
        """Close the reactor's own descriptors; what it watched stays open."""
        self._handlers.clear()
        self._epoll.close()
        os.close(self._wake_up)

    def _patience(self) -> float:
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - self.clock()) if self._timers else -1

    def _run_due(self) -> None:
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            callback = heapq.heappop(self._timers)[2].callback
            if callback is not None:
                try:
                    callback()
                except Exception:
                    log.exception("a timer failed")

    def _woken(self, events: int) -> None:
        os.eventfd_read(self._wake_up)
        calls, self._calls = self._calls, []
        for call in calls:
            call()
