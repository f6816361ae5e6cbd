"""One synchronisation of one VM, by its host."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from hvsock.errors import LostError, ProtocolError
from hvsock.services.connecting import CONNECT_SECONDS, connect

from .arithmetic import Measurement, best_of
from .protocol import Act, Kind, Sample, Stamp, TimeSynchronization

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

PROBES: Final = 8
"""Questions that measure, in one synchronisation; the one with the shortest round trip counts."""
EXCHANGE_SECONDS: Final = 10.0
"""How long one synchronisation may take; it takes milliseconds, and a second in an emulated guest."""
_SANE: Final = range(-(1 << 62), 1 << 62)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a synchronisation.

    Attributes:
        offset: nanoseconds by which the guest's clock was behind the host's, as this side measured it.
        round_trip: nanoseconds that the measurement took.
        act: what the guest says that it did.
        reason: why it refused, as it says; empty else.
        measurements: all of them.
    """

    offset: int
    round_trip: int
    act: Act
    reason: str
    measurements: tuple[Measurement, ...]


async def synchronize(
    vm: str,
    kind: Kind = Kind.PROBE,
    *,
    partition: str | None = None,
    connect_timeout: float = CONNECT_SECONDS,
    timeout: float = EXCHANGE_SECONDS,
    wait: bool = False,
) -> Outcome:
    """Measure the clock of a VM, and let it be set or slewed.

    Args:
        vm: a name or a VmId.
        kind: PROBE measures, SYNC sets the guest's clock, SAMPLE slews it.
        partition: the partition's folder to connect from; by default that of the process.
        connect_timeout: seconds until it has to be connected.
        timeout: seconds for the exchange.
        wait: wait for a guest that is not there yet, as long as `connect_timeout` allows.

    Raises:
        RefusedError: the guest's machine is not its own, or its agent may not set the clock.
        ProtocolError: the guest answers what nobody asked.
        OSError, HvsockError: there is no connection, or it ended.
    """
    async with connect(TimeSynchronization, vm, partition=partition, timeout=connect_timeout, wait=wait) as guest:
        return await exchange(guest, lambda best: kind, timeout=timeout)


async def exchange(
    guest: TimeSynchronization,
    decide: Callable[[Measurement], Kind],
    *,
    timeout: float = EXCHANGE_SECONDS,
) -> Outcome:
    """Measure the clock of a guest that is connected, and then do what is decided by that.

    Args:
        guest: what stands for its service, see :func:`hvsock.services.connecting.connect`.
        decide: is given the best measurement, and says what comes of it; PROBE leaves the clock alone.
        timeout: seconds for all of it.

    Raises:
        OSError, HvsockError: as :func:`synchronize` says.
    """
    async with asyncio.timeout(timeout):
        return await _Exchange(decide).run(guest)


class _Exchange:
    """One exchange: questions in lockstep with their answers."""

    def __init__(self, decide: Callable[[Measurement], Kind]) -> None:
        self._decide = decide
        self._due = PROBES
        self._answers: asyncio.Queue[Stamp] = asyncio.Queue()
        self._asked: Sample | None = None
        self._measured: list[Measurement] = []
        self._last = Stamp(0, 0, 0)

    async def run(self, guest: TimeSynchronization) -> Outcome:
        """Ask all questions.

        Raises:
            OSError, HvsockError: it was not answered.
        """
        number = 0
        async with contextlib.aclosing(guest.synchronize(self._samples())) as stamps:
            async for stamp in stamps:
                arrived = time.time_ns()
                number += 1
                self._take(stamp, number, arrived)
                self._answers.put_nowait(stamp)
        best = best_of(self._measured)
        if number != self._due:
            raise LostError(f"the guest ended it after {number} of {self._due} answers")
        if best is None:
            raise ProtocolError("a clock was set while it was measured; try again")
        return Outcome(best.offset, best.round_trip, self._last.act, self._last.reason, tuple(self._measured))

    def _take(self, stamp: Stamp, number: int, arrived: int) -> None:
        asked, self._asked = self._asked, None
        if asked is None or stamp.sequence != asked.sequence or number > self._due:
            raise ProtocolError(f"an answer with the number {stamp.sequence}, which nobody asked for")
        if stamp.received not in _SANE or stamp.answered not in _SANE:
            raise ProtocolError(f"a time of {stamp.received} ns, which no clock shows")
        if stamp.act is not Act.NONE and asked.kind is Kind.PROBE:
            raise ProtocolError(f"the guest says {stamp.act.name}, and was only asked for its time")
        self._last = stamp
        self._arrived = arrived
        if asked.kind is Kind.PROBE:
            self._measured.append(Measurement(asked.sent, stamp.received, stamp.answered, arrived))

    async def _samples(self) -> AsyncIterator[Sample]:
        self._arrived = 0
        for number in range(1, PROBES + 1):
            yield self._ask(number, Kind.PROBE)
            await self._answers.get()
        best = best_of(self._measured)
        if best is not None and (kind := self._decide(best)) is not Kind.PROBE:
            self._due += 1
            yield self._ask(self._due, kind)
            await self._answers.get()

    def _ask(self, number: int, kind: Kind) -> Sample:
        self._asked = Sample(number, kind, time.time_ns(), time.monotonic_ns(), self._arrived)
        return self._asked
