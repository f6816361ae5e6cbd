"""Time synchronisation over a local fabric, with a clock that is made for it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

assert sys.platform == "linux"

from hvsock.constants import TIME_SYNCHRONIZATION
from hvsock.errors import HvsockError, LostError, ProtocolError, RefusedError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import MYSELF, Caller
from hvsock.services.predefined.timesync.arithmetic import MAX_DRIFT, SECOND, Measurement
from hvsock.services.predefined.timesync.clock import SystemClock
from hvsock.services.predefined.timesync.deciding import NEAR as NEAR_ENOUGH
from hvsock.services.predefined.timesync.deciding import HostClock, decide
from hvsock.services.predefined.timesync.host import Outcome, synchronize
from hvsock.services.predefined.timesync.keeping import News, Timekeeper
from hvsock.services.predefined.timesync.protocol import (
    MAX_SAMPLES,
    MAX_SLEW,
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
UNDER_WAY: Final = SECOND // 5
"""How late an answer is, so that its round trip is longer than what a busy machine takes to give it."""
NEAR: Final = 10 * SECOND
"""How far a measurement may be off here: a loaded machine's pauses, and nothing like an hour."""

SPANS = st.integers(min_value=0, max_value=1 << 40)


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
    last = probe(
        2, kind=Kind.SYNC, arrived=time.time_ns() + UNDER_WAY, monotonic=first.monotonic + 2 * MAX_DRIFT + NEAR
    )
    stamp = told(clock, first, last)[-1]
    assert stamp.act is Act.REFUSED
    assert "paused" in stamp.reason or "old" in stamp.reason
    assert clock.done == []


def test_of_two_that_set_the_clock_one_is_refused() -> None:
    """What the other measured before the clock was set is wrong by what was set."""

    async def run(service: TimeSynchronization) -> Stamp:
        async def slow() -> AsyncIterator[Sample]:
            yield probe(1)
            fast = await _all(service, [probe(1), probe(2, kind=Kind.SYNC, arrived=time.time_ns() + UNDER_WAY)])
            assert fast[-1].act is Act.SET
            yield probe(2, kind=Kind.SYNC, arrived=time.time_ns() + UNDER_WAY)

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


# -- clocks that are kept right


def off_by(offset: int, round_trip: int = 2) -> Measurement:
    return Measurement(offset, 0, 0, offset + round_trip)


@given(st.integers(-HOUR, HOUR), SPANS, st.booleans(), st.booleans())
def test_what_may_be_right_is_left(offset: int, trip: int, known: bool, leapt: bool) -> None:
    best = off_by(offset, trip)
    if abs(best.offset) <= trip // 2:
        assert decide(best, known=known, leapt=leapt) is Kind.PROBE


@pytest.mark.parametrize(
    ("offset", "known", "leapt", "kind"),
    [
        (HOUR, False, False, Kind.SYNC),
        (-HOUR, False, False, Kind.SYNC),
        (NEAR_ENOUGH + 2, False, False, Kind.SYNC),
        (NEAR_ENOUGH - 1, False, False, Kind.SAMPLE),
        (NEAR_ENOUGH + 2, True, False, Kind.SAMPLE),
        (-MAX_SLEW + 2, True, False, Kind.SAMPLE),
        (MAX_SLEW + 2, True, False, Kind.PROBE),
        (HOUR, True, True, Kind.SYNC),
        (NEAR_ENOUGH - 1, True, True, Kind.SAMPLE),
    ],
)
def test_a_new_guest_is_set_and_a_known_one_slewed(offset: int, known: bool, leapt: bool, kind: Kind) -> None:
    assert decide(off_by(offset), known=known, leapt=leapt) is kind


def test_a_host_that_slept_or_was_set() -> None:
    before = HostClock(HOUR, 7)
    assert not HostClock(HOUR + 5 * SECOND, 7 + 5 * SECOND).leapt_since(before)
    assert HostClock(HOUR + 5 * SECOND, 7).leapt_since(before)
    assert HostClock(0, 7).leapt_since(before)


class Followed:
    """A guest whose clock is kept right, and what was told of it."""

    def __init__(self, host: str, guest: str, clock: FakeClock) -> None:
        self.host = host
        self.guest = guest
        self.clock = clock
        self.news: list[News] = []
        self.host_leapt = 0
        self._changed = asyncio.Event()

    def tell(self, news: News) -> None:
        self.news.append(news)
        self._changed.set()

    def host_clock(self) -> HostClock:
        return HostClock(time.time_ns() + self.host_leapt, time.monotonic_ns())

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    def times(self, what: str) -> int:
        return sum(done == what for done, _ in self.clock.done)


def followed(test: Callable[[Followed], Awaitable[None]], *, off: int = -HOUR) -> None:
    """Run `test` with a guest that is followed, and that nobody serves yet."""

    async def run(host: str, guest: str) -> None:
        one = Followed(host, guest, FakeClock(off))
        async with Timekeeper(one.tell, partition=host, period=0.02, clock=one.host_clock) as keeper:
            await keeper.follow(["web01"])
            await test(one)

    with fabric() as made:
        asyncio.run(run(made.host.folder, made.create_partition("web01").folder))


def test_a_clock_is_set_when_its_guest_comes_and_comes_again() -> None:
    async def test(one: Followed) -> None:
        await one.until(lambda: bool(one.news))  # nobody was there
        assert one.news[0].outcome is None
        for count in (1, 2):
            async with serve(half(one.clock), bind="parent", partition=one.guest):
                await one.until(lambda: one.times("set") == count)  # noqa: B023
            assert abs(one.clock.off) < NEAR
            one.clock.off = HOUR  # a restored guest shows another time

    followed(test)


def test_a_clock_that_somebody_sets_is_left_and_told_of() -> None:
    async def test(one: Followed) -> None:
        async with serve(half(one.clock), bind="parent", partition=one.guest):
            await one.until(lambda: one.times("set") == 1)
            one.clock.off = HOUR
            await one.until(lambda: "it is left" in one.news[-1].problem)
            count = len(one.news)
            one.clock.off = SECOND // 5
            await one.until(lambda: one.times("slew") > 0)
            assert one.times("set") == 1
            assert all(not news.problem for news in one.news[count:])

    followed(test)


def test_a_clock_follows_its_hosts() -> None:
    """Here it is the guest's that moves, by what a host that slept is ahead of it."""

    async def test(one: Followed) -> None:
        async with serve(half(one.clock), bind="parent", partition=one.guest):
            await one.until(lambda: one.times("set") == 1)
            one.host_leapt, one.clock.off = HOUR, -HOUR
            await one.until(lambda: one.times("set") == 2)

    followed(test)


def test_who_may_not_be_set_is_told_of_once() -> None:
    async def test(one: Followed) -> None:
        one.clock.refuses = True
        async with serve(half(one.clock), bind="parent", partition=one.guest):
            await one.until(lambda: "CAP_SYS_TIME" in one.news[-1].problem if one.news else False)
            count = len(one.news)
            one.clock.refuses = False
            await one.until(lambda: one.times("set") == 1)
            assert len(one.news) == count + 1

    followed(test)


def test_a_guest_that_is_not_followed_any_more() -> None:
    async def run(host: str, guest: str) -> None:
        service = half(FakeClock())
        async with (
            serve(service, bind="parent", partition=guest) as (serving,),
            Timekeeper(partition=host) as keeper,
        ):
            await keeper.follow(["web01"])
            async with asyncio.timeout(30):
                while not serving.connections:
                    await asyncio.sleep(0.01)
                await keeper.follow([])
                while serving.connections:
                    await asyncio.sleep(0.01)

    with fabric() as made:
        asyncio.run(run(made.host.folder, made.create_partition("web01").folder))


def test_it_is_in_the_box() -> None:
    assert TIME_SYNCHRONIZATION.name == TimeSynchronization.NAME
