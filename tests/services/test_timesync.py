"""Time synchronisation over a local fabric, with a clock that is made for it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import pytest

assert sys.platform == "linux"

from hvsock.constants import TIME_SYNCHRONIZATION
from hvsock.errors import HvsockError, LostError, ProtocolError, RefusedError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import MYSELF, Caller
from hvsock.services.predefined.timesync.arithmetic import MAX_DRIFT, SECOND
from hvsock.services.predefined.timesync.clock import SystemClock
from hvsock.services.predefined.timesync.host import Outcome, synchronize
from hvsock.services.predefined.timesync.protocol import (
    MAX_SAMPLES,
    Act,
    Kind,
    Sample,
    Stamp,
    TimeSynchronization,
)
from hvsock.services.service import exchange
from hvsock.services.serving import serve
from hvsock.testing.fabric import fabric

HOUR: Final = 3600 * SECOND
NEAR: Final = 10 * SECOND
"""How far a measurement may be off here: a loaded machine's pauses, and nothing like an hour."""


class FakeClock:
    """A clock that is off, and notes what is done to it."""

    def __init__(self, off: int = 0) -> None:
        self.off = off
        self.done: list[tuple[str, int]] = []
        self.refuses = False

    def now(self) -> int:
        return time.time_ns() + self.off

    def monotonic(self) -> int:
        return time.monotonic_ns()

    def set(self, offset: int) -> None:
        self._check()
        self.off += offset
        self.done.append(("set", offset))

    def slew(self, offset: int) -> None:
        self._check()
        self.done.append(("slew", offset))

    def _check(self) -> None:
        if self.refuses:
            raise PermissionError(1, "Operation not permitted")


def half(clock: FakeClock, *, own: bool = True) -> TimeSynchronization:
    return TimeSynchronization(Surroundings(own_machine=own, state_folder="/nowhere"), clock)


def synchronized(service: TimeSynchronization, kind: Kind) -> Outcome:
    """One synchronisation of a partition."""

    async def run(host: str, folder: str) -> Outcome:
        async with serve(service, bind="parent", partition=folder):
            return await synchronize("web01", kind, partition=host)

    with fabric() as made:
        return asyncio.run(run(made.host.folder, made.create_partition("web01").folder))


def test_measuring_is_allowed_everywhere() -> None:
    clock = FakeClock(-HOUR)
    found = synchronized(half(clock, own=False), Kind.PROBE)
    assert found.act is Act.NONE
    assert len(found.measurements) == 8
    assert abs(found.offset - HOUR) < NEAR
    assert 0 <= found.round_trip < NEAR
    assert found.round_trip == min(one.round_trip for one in found.measurements)
    assert clock.done == []


@pytest.mark.parametrize("kind", [Kind.SYNC, Kind.SAMPLE])
def test_setting_is_refused_on_somebody_elses_machine(kind: Kind) -> None:
    clock = FakeClock(-HOUR)
    with pytest.raises(RefusedError, match="setting the clock is refused here"):
        synchronized(half(clock, own=False), kind)
    assert clock.done == []


@pytest.mark.parametrize("off", [HOUR, -HOUR, 365 * 24 * HOUR])
def test_a_clock_that_is_far_off_is_set(off: int) -> None:
    clock = FakeClock(off)
    found = synchronized(half(clock), Kind.SYNC)
    assert (found.act, found.reason) == (Act.SET, "")
    ((what, offset),) = clock.done
    assert what == "set"
    assert abs(offset + off) <= found.round_trip // 2 + 1
    assert abs(clock.off) <= found.round_trip // 2 + 1


def test_a_clock_that_is_near_is_slewed() -> None:
    clock = FakeClock(SECOND // 10)
    found = synchronized(half(clock), Kind.SAMPLE)
    assert found.act is Act.SLEWED
    ((what, offset),) = clock.done
    assert what == "slew"
    assert abs(offset + SECOND // 10) <= found.round_trip // 2 + 1


def test_a_clock_that_is_far_off_is_not_slewed() -> None:
    clock = FakeClock(HOUR)
    found = synchronized(half(clock), Kind.SAMPLE)
    assert found.act is Act.REFUSED
    assert "only 500.000 ms are slewed: set it" in found.reason
    assert clock.done == []


def test_an_agent_that_may_not_set_the_clock() -> None:
    clock = FakeClock(HOUR)
    clock.refuses = True
    with pytest.raises(RefusedError, match="CAP_SYS_TIME"):
        synchronized(half(clock), Kind.SYNC)


def test_the_clock_of_this_machine_is_read() -> None:
    clock = SystemClock()
    before = time.time_ns()
    assert before <= clock.now() <= time.time_ns()
    assert clock.monotonic() <= time.monotonic_ns()


# -- the guest, asked what no host of ours asks


async def _all(service: TimeSynchronization, samples: list[Sample]) -> list[Stamp]:
    async def asked() -> AsyncIterator[Sample]:
        for one in samples:
            yield one

    handler = TimeSynchronization.synchronize.handler
    return [one async for one in handler(service, MYSELF, asked())]


def told(clock: FakeClock, *samples: Sample) -> list[Stamp]:
    return asyncio.run(_all(half(clock), list(samples)))


def probe(number: int, *, kind: Kind = Kind.PROBE, arrived: int = 0, monotonic: int | None = None) -> Sample:
    ticks = time.monotonic_ns() if monotonic is None else monotonic
    return Sample(number, kind, time.time_ns(), ticks, arrived)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([probe(2)], "sample 2 where 1 is due"),
        ([probe(1), probe(1)], "sample 1 where 2 is due"),
        ([probe(2**64 - 1)], "where 1 is due"),
        ([Sample(1, Kind.PROBE, -1, 1)], "which no clock shows"),
        ([Sample(1, Kind.PROBE, 2**63 - 1, 1)], "which no clock shows"),
        ([probe(one) for one in range(1, MAX_SAMPLES + 2)], f"more than {MAX_SAMPLES}"),
    ],
)
def test_samples_without_order(samples: list[Sample], reason: str) -> None:
    clock = FakeClock(HOUR)
    with pytest.raises(ProtocolError, match=reason):
        told(clock, *samples)
    assert clock.done == []


def test_a_setting_without_a_measurement_is_refused() -> None:
    clock = FakeClock(HOUR)
    (stamp,) = told(clock, probe(1, kind=Kind.SYNC))
    assert (stamp.act, stamp.reason) == (Act.REFUSED, "there is no measurement")
    assert clock.done == []


def test_a_stale_sample_is_refused() -> None:
    clock = FakeClock(HOUR)
    first = probe(1)
    last = probe(2, kind=Kind.SYNC, arrived=time.time_ns() + 1, monotonic=first.monotonic + 2 * MAX_DRIFT + NEAR)
    stamp = told(clock, first, last)[-1]
    assert stamp.act is Act.REFUSED
    assert "paused" in stamp.reason or "old" in stamp.reason
    assert clock.done == []


def test_of_two_that_set_the_clock_one_is_refused() -> None:
    """What the other measured before the clock was set is wrong by what was set."""

    async def run(service: TimeSynchronization) -> Stamp:
        async def slow() -> AsyncIterator[Sample]:
            yield probe(1)
            fast = await _all(service, [probe(1), probe(2, kind=Kind.SYNC, arrived=time.time_ns() + 1)])
            assert fast[-1].act is Act.SET
            yield probe(2, kind=Kind.SYNC, arrived=time.time_ns())

        handler = TimeSynchronization.synchronize.handler
        stamps: list[Stamp] = [one async for one in handler(service, MYSELF, slow())]
        return stamps[-1]

    stamp = asyncio.run(run(half(FakeClock(HOUR))))
    assert stamp.reason == "another synchronisation set the clock meanwhile"


# -- the host, answered what no guest of ours answers


class Lying(TimeSynchronization):
    """Answers each question by `answer`."""

    def __init__(self, answer: Callable[[Sample], list[Stamp]]) -> None:
        super().__init__(Surroundings(own_machine=True, state_folder="/nowhere"), FakeClock())
        self._answer = answer

    @exchange
    async def synchronize(self, caller: Caller, samples: AsyncIterator[Sample]) -> AsyncIterator[Stamp]:
        async for sample in samples:
            for stamp in self._answer(sample):
                yield stamp
            if sample.sequence == 3:
                return


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (lambda one: [Stamp(one.sequence + 1, 1, 1)], ProtocolError, "which nobody asked for"),
        (lambda one: [Stamp(one.sequence, 1, 1)] * 3, ProtocolError, "which nobody asked for"),
        (lambda one: [Stamp(one.sequence, 2**63 - 1, 1)], ProtocolError, "which no clock shows"),
        (lambda one: [Stamp(one.sequence, 1, 1, Act.SET)], ProtocolError, "only asked for its time"),
        (lambda one: [Stamp(one.sequence, 1, 1)], LostError, "ended"),
    ],
)
def test_a_guest_that_lies(answer: Callable[[Sample], list[Stamp]], error: type[HvsockError], reason: str) -> None:
    with pytest.raises(error, match=reason):
        synchronized(Lying(answer), Kind.SYNC)


def test_a_guest_that_never_answers() -> None:
    async def run(host: str, folder: str) -> None:
        async with serve(Lying(lambda one: []), bind="parent", partition=folder):
            with pytest.raises(TimeoutError):
                await synchronize("web01", partition=host, timeout=0.1)

    with fabric() as made:
        asyncio.run(run(made.host.folder, made.create_partition("web01").folder))


def test_it_is_in_the_box() -> None:
    assert TIME_SYNCHRONIZATION.name == TimeSynchronization.NAME
