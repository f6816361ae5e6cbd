"""A machine's clock, to be read, set and slewed."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Final, Protocol

if sys.platform != "linux":
    raise ImportError("clocks are set in Linux guests")

_MICROSECONDS: Final = 1_000_000


class Clock(Protocol):
    """A clock in whole nanoseconds."""

    def now(self) -> int:
        """Nanoseconds since 1970, UTC."""

    def monotonic(self) -> int:
        """Nanoseconds since some instant, never going back."""

    def set(self, offset: int) -> None:
        """Add `offset` nanoseconds to it, at once.

        Raises:
            PermissionError: this process may not.
        """

    def slew(self, offset: int) -> None:
        """Let it go faster or slower until `offset` nanoseconds are added; that is a second's 1/2000 per second.

        Raises:
            PermissionError: this process may not.
        """


class SystemClock:
    """The clock of this machine."""

    def now(self) -> int:
        """See :class:`Clock`."""
        return time.time_ns()

    def monotonic(self) -> int:
        """See :class:`Clock`."""
        return time.monotonic_ns()

    def set(self, offset: int) -> None:
        """See :class:`Clock`."""
        _adjtime(0)  # what an earlier slew has left would be added besides
        time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME) + offset)

    def slew(self, offset: int) -> None:
        """See :class:`Clock`."""
        _adjtime(offset)


class _Timeval(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("microseconds", ctypes.c_long))


def _adjtime(offset: int) -> None:
    """The C library's adjtime, which is adjtimex with ADJ_OFFSET_SINGLESHOT."""
    library = ctypes.CDLL(None, use_errno=True)
    delta = _Timeval(*divmod(offset // 1000, _MICROSECONDS))
    if library.adjtime(ctypes.byref(delta), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"adjtime: {os.strerror(number)}")
