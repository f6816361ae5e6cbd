"""The service and its messages, and the guest half.

One synchronisation is one exchange: the host asks some times, each question with the instant at which the answer
before it came; so the guest has all four time stamps of each. The last question says what to do with them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from hvsock.constants import TIME_SYNCHRONIZATION
from hvsock.errors import ProtocolError, RefusedError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.service import Service, exchange
from hvsock.services.types import Limit, UInt32, UInt64

from .arithmetic import SECOND, Measurement, best_of, milliseconds, why_stale
from .clock import Clock, SystemClock

log = logging.getLogger(__name__)

MAX_SAMPLES: Final = 64
"""Most questions of one exchange; eight find a round trip that is near the shortest."""
MAX_SLEW: Final = SECOND // 2
"""Greatest offset that is slewed: it takes 1000 s. What is further off is set or left."""
MAX_MESSAGE_BYTES: Final = 1024
"""Most bytes of a message; the longest has a line of text."""
MAX_REASON_BYTES: Final = 500
"""Longest reason."""
_SANE: Final = range(1 << 62)
"""Times up to the year 2116; others would overflow somewhere on the way."""


class Kind(IntEnum):
    """What a question is for, with the numbers of the original's flags."""

    PROBE = 0
    """Measure alone."""
    SYNC = 1
    """Set the clock, as after a boot or a restore."""
    SAMPLE = 2
    """Slew the clock, if it is near."""


class Act(IntEnum):
    """What the guest did."""

    NONE = 0
    """It measured."""
    SET = 1
    """It set its clock."""
    SLEWED = 2
    """It lets its clock catch up."""
    REFUSED = 3
    """It did nothing, and says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The host's question.

    Attributes:
        sequence: its number, from 1.
        kind: what it is for; all but PROBE end the exchange.
        sent: the host's clock, in nanoseconds since 1970, UTC.
        monotonic: the host's monotonic clock, in nanoseconds.
        arrived: the host's clock when the answer before came; 0 in the first question.
        leap: of the host's clock as NTP counts it (0 no warning, 1 and 2 a leap second, 3 unknown).
        stratum: of the host's clock as NTP counts it; 0 is unknown.
    """

    sequence: UInt64
    kind: Kind
    sent: int
    monotonic: int
    arrived: int = 0
    leap: UInt32 = 3
    stratum: UInt32 = 0


@dataclass(frozen=True, slots=True)
class Stamp:
    """The guest's answer.

    Attributes:
        sequence: that of the question.
        received: the guest's clock when the question came.
        answered: the guest's clock when the answer left.
        act: what it did.
        reason: why it refused; empty else.
        offset: nanoseconds that were added to its clock, or are being added.
    """

    sequence: UInt64
    received: int
    answered: int
    act: Act = Act.NONE
    reason: Annotated[str, Limit(MAX_REASON_BYTES)] = ""
    offset: int = 0


class TimeSynchronization(
    Service, name=TIME_SYNCHRONIZATION.name, port=TIME_SYNCHRONIZATION.port, short="timesync"
):
    """Time synchronisation, and its guest half.

    Args:
        surroundings: the guest's.
        clock: that of the machine.
    """

    def __init__(self, surroundings: Surroundings, clock: Clock | None = None) -> None:
        self._surroundings = surroundings
        self._clock = SystemClock() if clock is None else clock
        self._settings = 0

    @exchange(max_bytes=MAX_MESSAGE_BYTES)
    async def synchronize(self, caller: Caller, samples: AsyncIterator[Sample]) -> AsyncIterator[Stamp]:
        """Measure, and at the end do what the host says.

        Raises:
            RefusedError: the clock is that of somebody else's machine, or this process may not set it.
            ProtocolError: questions without order; the host's doing.
        """
        measured: list[Measurement] = []
        before: tuple[Sample, int, int, int] | None = None
        settings = self._settings
        number = 0
        async for sample in samples:
            received, monotonic = self._clock.now(), self._clock.monotonic()
            number += 1
            _check(sample, number)
            if before is not None:
                asked, came, left, ticked = before
                measured.append(Measurement(asked.sent, came, left, sample.arrived, asked.monotonic, ticked))
            if sample.kind is not Kind.PROBE:
                self._surroundings.check_own_machine("setting the clock")
                best = best_of(measured)
                stale = why_stale(best, sample.monotonic, monotonic)
                if settings != self._settings:
                    stale = "another synchronisation set the clock meanwhile"
                act, reason, offset = self._act(sample.kind, best, stale)
                log.info("%s: %s by %s %s", caller, act.name.lower(), milliseconds(offset), reason)
                yield Stamp(sample.sequence, received, self._clock.now(), act, reason, offset)
                if await anext(samples, None) is not None:
                    raise ProtocolError("a sample after the last")
                return
            left = self._clock.now()
            before = (sample, received, left, monotonic)
            yield Stamp(sample.sequence, received, left)

    def _act(self, kind: Kind, best: Measurement | None, stale: str) -> tuple[Act, str, int]:
        """Set or slew by what was measured; what was done, why not, and by how much."""
        if best is None or stale:
            return Act.REFUSED, stale, 0
        if kind is Kind.SAMPLE and abs(best.offset) > MAX_SLEW:
            far = f"the clock is {milliseconds(best.offset)} off, and only {milliseconds(MAX_SLEW)} are slewed"
            return Act.REFUSED, f"{far}: set it", 0
        try:
            if kind is Kind.SYNC:
                self._clock.set(best.offset)
                self._settings += 1
                return Act.SET, "", best.offset
            self._clock.slew(best.offset)
            return Act.SLEWED, "", best.offset
        except PermissionError:
            raise RefusedError("this agent may not set the clock; it needs root, or CAP_SYS_TIME") from None


def _check(sample: Sample, number: int) -> None:
    """Refuse a question that no host of ours asks.

    Raises:
        ProtocolError: it is one.
    """
    if sample.sequence != number:
        raise ProtocolError(f"sample {sample.sequence} where {number} is due")
    if number > MAX_SAMPLES:
        raise ProtocolError(f"more than {MAX_SAMPLES} samples")
    for time in (sample.sent, sample.monotonic, sample.arrived):
        if time not in _SANE:
            raise ProtocolError(f"a time of {time} ns, which no clock shows")
