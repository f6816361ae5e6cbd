"""Readiness and timers on one epoll, for one thread: the loop of the broker, and of a VM's device.

asyncio is not used here: both have to watch descriptors for a hang-up alone (while a request lies
unread, they are readable all the time), edge-triggered, and a connect passes through in some 50 µs.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

if sys.platform != "linux":
    raise ImportError("the reactor needs Linux: it is built on epoll")

log = logging.getLogger(__name__)

MAX_EVENTS_PER_WAKE_UP: Final = 256
"""Descriptors served before timers are looked at again."""
CANCELLED_KEPT: Final = 64
"""Cancelled timers that stay in the heap in any case; more of them go when they are half of it."""

_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int], None]
Clock = Callable[[], float]


@contextlib.contextmanager
def ending_by_signals(reactor: Reactor, stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`, in the main thread; afterwards they are ignored for good, without an error.

    A signal that comes in just before the reactor waits does not end that wait: Python calls handlers between two
    of its own instructions, and the wait is one. So each signal also writes a byte that the reactor sees.
    Ignored they are, since the interpreter takes handlers away before it has ended, and one more signal
    would spoil a clean end. An error leaves them as they were before.

    Args:
        reactor: whose waits end.
        stop: safe to be called at any point of the main thread.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def drain(_: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(reading, 4096)

    reactor.watch(reading, select.EPOLLIN, drain)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    after = {number: signal.signal(number, lambda number, frame: stop()) for number in _ENDING_SIGNALS}
    try:
        yield
        after = dict.fromkeys(_ENDING_SIGNALS, signal.SIG_IGN)
    finally:
        for number, handler in after.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        reactor.forget(reading)
        os.close(reading)
        os.close(writing)


class Timer:
    """A call that is due at a time; cancel it by :meth:`cancel`."""

    __slots__ = ("_reactor", "callback", "queued")

    def __init__(self, reactor: Reactor, callback: Callable[[], None]) -> None:
        self._reactor = reactor
        self.callback: Callable[[], None] | None = callback
        self.queued = True

    def cancel(self) -> None:
        """Never make the call; calling this twice, or after the call, is fine."""
        if self.callback is not None:
            self.callback = None
            if self.queued:
                self._reactor.timer_cancelled()


class Reactor:
    """Watches descriptors and timers until :meth:`stop`.

    Handlers deal with their own errors. An exception that gets here is a defect of the program: it is
    logged, the descriptor is watched no more, and everything else goes on.

    ``turn`` is held while handlers and timers run, so whoever has it finds nothing half done.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.turn = threading.Lock()
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled = 0
        self._order = itertools.count()
        self._calls: list[Callable[[], None]] = []
        self._soon: list[Callable[[], None]] = []
        self._stopped = False
        self._closed = False
        try:
            self._wake_up = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.watch(self._wake_up, select.EPOLLIN, self._woken)
        except BaseException:
            self._epoll.close()
            raise

    def watch(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call `handler(events)` when `descriptor` has one of `events` (EPOLLHUP and EPOLLERR always count).

        Watching a descriptor again changes its events and its handler.

        Raises:
            OSError: ENOSPC: the user watches too many (max_user_watches); ENOMEM. Nothing was changed.
        """
        if descriptor in self._handlers:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def forget(self, descriptor: int) -> None:
        """Watch no more; to be called before the descriptor is closed. Unknown descriptors are fine."""
        if self._handlers.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(descriptor)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, `seconds` from now, and never before this turn is over."""
        timer = Timer(self, callback)
        heapq.heappush(self._timers, (self.clock() + seconds, next(self._order), timer))
        return timer

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the handlers of this turn are through; of the reactor's thread only."""
        self._soon.append(callback)

    def timer_cancelled(self) -> None:
        """Count a cancelled timer, and sort the cancelled ones out when they are many."""
        self._cancelled += 1
        if self._cancelled > CANCELLED_KEPT and 2 * self._cancelled > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def call_from_thread(self, callback: Callable[[], None]) -> None:
        """Have the reactor's thread call `callback`; safe from any thread and from signal handlers."""
        self._calls.append(callback)
        self._wake()

    def stop(self) -> None:
        """End :meth:`run`; safe from any thread and from signal handlers."""
        self._stopped = True
        self._wake()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        while not self._stopped:
            self.run_once()

    def run_once(self) -> None:
        """Wait for one batch of events or for the next timer, and serve what is due."""
        ready = self._epoll.poll(self._patience(), MAX_EVENTS_PER_WAKE_UP)
        with self.turn:
            # a handler may close a descriptor of this batch, and its number may be somebody else's at once
            for descriptor, events, handler in [(fd, events, self._handlers.get(fd)) for fd, events in ready]:
                if handler is None or self._handlers.get(descriptor) is not handler:
                    continue
                try:
                    handler(events)
                except Exception:
                    log.exception("a handler failed; its descriptor is watched no more")
                    self.forget(descriptor)
            if self._soon:
                calls, self._soon = self._soon, []
                for call in calls:
                    _call(call)
            if self._timers:
                self._run_due()

    def close(self) -> None:
        """Close the reactor's own descriptors; what it watched stays open. Calling this twice is fine."""
        if not self._closed:
            self._closed = True
            self._handlers.clear()
            self._timers.clear()
            self._epoll.close()
            os.close(self._wake_up)

    def _wake(self) -> None:
        if not self._closed:
            os.eventfd_write(self._wake_up, 1)

    def _patience(self) -> float:
        if self._soon:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
            self._cancelled -= 1
        return max(0.0, self._timers[0][0] - self.clock()) if self._timers else -1

    def _run_due(self) -> None:
        now = self.clock()
        due = []
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            timer.queued = False
            if timer.callback is None:
                self._cancelled -= 1
            else:
                due.append(timer)
        for timer in due:
            callback, timer.callback = timer.callback, None
            if callback is not None:  # None: cancelled by one before it
                _call(callback)

    def _woken(self, events: int) -> None:
        os.eventfd_read(self._wake_up)
        calls, self._calls = self._calls, []
        for call in calls:
            _call(call)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        log.exception("a timer or a call failed")
