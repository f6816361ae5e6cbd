"""Offset and round trip out of four time stamps, and which measurements are stale (pure).

All times are whole nanoseconds. The offset is what has to be added to the guest's clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

SECOND: Final = 1_000_000_000
MAX_ROUND_TRIP: Final = SECOND // 2
"""A sample with a longer round trip is stale: half of it is what the offset may be wrong by. Local ones take
a millisecond, and those of an emulated guest some ten."""
MAX_DRIFT: Final = SECOND // 20
"""Most nanoseconds by which the guest's monotonic clock may fall behind the host's since a sample, which crystals
do in minutes: beyond it, the guest was paused, its clock stood still, and the sample is stale."""
MAX_AGE: Final = 10 * SECOND
"""A sample that is older, by the host's monotonic clock, is stale."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One exchange of time stamps.

    Attributes:
        sent: the host's clock when its question left.
        received: the guest's clock when it came.
        answered: the guest's clock when the answer left.
        arrived: the host's clock when it came.
        host_monotonic: the host's monotonic clock when the question left.
        guest_monotonic: the guest's monotonic clock when it came.
    """

    sent: int
    received: int
    answered: int
    arrived: int
    host_monotonic: int = 0
    guest_monotonic: int = 0

    @property
    def offset(self) -> int:
        """How far the guest's clock is behind the host's; wrong by half the round trip at most."""
        return ((self.sent - self.received) + (self.arrived - self.answered)) // 2

    @property
    def round_trip(self) -> int:
        """How long question and answer were under way."""
        return (self.arrived - self.sent) - (self.answered - self.received)


def best_of(measurements: Iterable[Measurement]) -> Measurement | None:
    """The one with the shortest round trip, whose offset is the surest; None where there is none.

    One with a negative round trip counts not at all: a clock was set in its midst.
    """
    good = [one for one in measurements if one.round_trip >= 0]
    return min(good, key=lambda one: one.round_trip, default=None)


def why_stale(best: Measurement | None, host_monotonic: int, guest_monotonic: int) -> str:
    """Why a measurement may not be acted upon; an empty text where it may.

    Args:
        best: the measurement.
        host_monotonic: the host's monotonic clock, as its last message says.
        guest_monotonic: the guest's monotonic clock when that came.
    """
    if best is None:
        return "there is no measurement"
    if best.round_trip > MAX_ROUND_TRIP:
        return (
            f"the round trip took {milliseconds(best.round_trip)}, and {milliseconds(MAX_ROUND_TRIP)} is the most"
        )
    host_moved = host_monotonic - best.host_monotonic
    guest_moved = guest_monotonic - best.guest_monotonic
    if host_moved < 0:
        return "the host's monotonic clock went back: this is of a host that was restored, or no host's"
    if (age := max(host_moved, guest_moved)) > MAX_AGE:
        return f"the sample is {age / SECOND:.1f} s old, and {MAX_AGE / SECOND:g} s is the most"
    # the guest's may be ahead by what the last message was under way, and behind by what the sample was
    if (paused := host_moved - guest_moved) > MAX_DRIFT + best.round_trip:
        return f"the guest was paused for {milliseconds(paused)} since the sample"
    return ""


def milliseconds(nanoseconds: int) -> str:
    """A duration for people, in milliseconds."""
    return f"{nanoseconds / 1_000_000:.3f} ms"
