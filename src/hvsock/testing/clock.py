"""A clock that stands still until it is told to go on."""

from __future__ import annotations

import math
import threading


class FakeClock:
    """Stands in for :func:`time.monotonic` wherever time is an argument.

    Call it for the time, :meth:`advance` it to let time pass. Nothing ever waits on it. It can be shared
    between threads.

    Args:
        start: the first time that it tells, in seconds. Not 0, so that code which takes a time for a truth
            value, or a fresh clock for "never", shows in tests.

    Raises:
        ValueError: `start` is not a finite number (the caller's doing).
    """

    def __init__(self, start: float = 1_000.0) -> None:
        self._now = _finite(start, "start")
        self._lock = threading.Lock()

    def __call__(self) -> float:
        """The time, in seconds."""
        return self._now

    @property
    def now(self) -> float:
        """The time, in seconds; the same as calling the clock."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Lets time pass.

        Args:
            seconds: how much; 0 is allowed, a monotonic clock never goes back.

        Returns:
            The new time, in seconds.

        Raises:
            ValueError: `seconds` is negative or not a finite number (the caller's doing); no time passed.
        """
        if _finite(seconds, "seconds") < 0:
            raise ValueError(f"a monotonic clock cannot go back, seconds is {seconds}")
        with self._lock:
            self._now += seconds
            return self._now

    def __repr__(self) -> str:
        return f"<FakeClock at {self._now} s>"


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number of seconds, not {value}")
    return float(value)
