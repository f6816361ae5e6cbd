"""Whether a guest's clock is set, slewed or left alone, when nobody says it (pure).

A guest that was not heard of before has booted, or was paused or restored, or its agent was started anew: what its
clock shows is by chance, and it is set. Of a guest that was, the clock was right once: it is slewed, unless it was
the host's own clock that leapt, which its guests follow at once. What else is far off, somebody in the guest has
set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .arithmetic import SECOND, Measurement
from .protocol import MAX_SLEW, Kind

NEAR: Final = SECOND // 50
"""Nanoseconds: an offset up to this is slewed even where it may be set, so that a guest that was right all
the while sees no leap; the slew takes 40 s."""


@dataclass(frozen=True, slots=True)
class HostClock:
    """What the host's clocks show at one instant, in nanoseconds.

    Attributes:
        now: since 1970, UTC.
        monotonic: since some instant, without the time that the host slept.
    """

    now: int
    monotonic: int

    def leapt_since(self, before: HostClock) -> bool:
        """Whether the host was set to another time since, or slept: which its guests cannot know."""
        return abs((self.now - before.now) - (self.monotonic - before.monotonic)) > MAX_SLEW


def decide(best: Measurement, *, known: bool, leapt: bool) -> Kind:
    """What is done about a clock.

    Args:
        best: how far it is off.
        known: whether the clock was set or found right over the same connection before.
        leapt: whether the host's clock leapt since then.

    Returns:
        SYNC to set it, SAMPLE to slew it, PROBE to leave it.
    """
    off = abs(best.offset)
    if off <= best.round_trip // 2:  # it may be right
        return Kind.PROBE
    if not known or leapt:
        return Kind.SAMPLE if off <= NEAR else Kind.SYNC
    return Kind.SAMPLE if off <= MAX_SLEW else Kind.PROBE
