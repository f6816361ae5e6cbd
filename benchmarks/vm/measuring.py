"""Measures one work on all ways in turn, and compares."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from benchmarks.ratios import Ratio
from hvsock.errors import StateError

from .devices import THEIRS
from .subjects import DEVICE, Sample, Subject, Work

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

AIM_DEVICE: Final = 1.0
"""At least as fast as the other device, and at most its processor time."""
AIM_OTHERS: Final = 3.0
"""At least that many times the throughput of ways that are no vsock."""
FIRST_BYTES: Final = 64 << 10
FIRST_COUNT: Final = 20
"""The amounts that a work is tried with at first."""
MAX_GROWTH: Final = 16
"""How much more is tried at once than before."""
MAX_BYTES: Final = 8 << 30
LIMITS_FROM: Final = 0.75
"""A party that runs, or waits for a processor, for this part of the time is what limits; else waking up is."""


@dataclass
class Measured:
    """What came of one work on one way.

    Attributes:
        work: what.
        subject: on which way.
        amount: how much at a time.
        first: the samples; those of a yardstick that have a counterpart in `again` before ours.
        again: those after ours; of ours there are none.
        failure: why it failed; empty where it did not.
    """

    work: Work
    subject: Subject
    amount: int = 0
    first: list[Sample] = field(default_factory=list)
    again: list[Sample] = field(default_factory=list)
    failure: str = ""

    def calibrate(self, seconds: float) -> None:
        """Find the amount that takes about so long."""
        work = self.work
        amount = work.step * (max(1, FIRST_BYTES // work.step) if work.is_stream else FIRST_COUNT)
        while True:
            sample = self.subject.sample(work, amount)
            growth = seconds / sample.seconds
            if growth < MAX_GROWTH / 4 or amount >= MAX_BYTES:
                break
            amount *= MAX_GROWTH if growth > MAX_GROWTH else int(growth)
        self.amount = max(1, round(amount * growth / work.step)) * work.step

    def measure(self, into: list[Sample]) -> None:
        """One sample more."""
        into.append(self.subject.sample(self.work, self.amount))

    def attempt(self, action: Callable[[], None]) -> None:
        """Do something with it; nothing more after a failure."""
        if not self.failure:
            try:
                action()
            except (StateError, OSError) as error:
                self.failure = str(error) or type(error).__name__

    @property
    def samples(self) -> list[Sample]:
        """All of them."""
        return self.first + self.again

    def rates(self, samples: Sequence[Sample]) -> list[float]:
        """Bytes, round trips or connections per second."""
        return [self.work.count(sample) / sample.seconds for sample in samples]

    @property
    def rate(self) -> float:
        """The median of all rates."""
        return statistics.median(self.rates(self.samples))

    def costs(self, samples: Sequence[Sample]) -> list[float]:
        """The device's seconds on a processor for each GiB, or for a thousand of what is counted."""
        unit = 1 << 30 if self.work.is_stream else 1000
        return [sample.used[DEVICE].ran / self.work.count(sample) * unit for sample in samples]

    @property
    def cost(self) -> float:
        """The median of all costs."""
        return statistics.median(self.costs(self.samples))

    def shares(self) -> dict[str, float]:
        """By party, the part of the time in which it ran or would have, had a processor been free."""
        names = self.samples[0].used
        return {
            name: statistics.median((s.used[name].ran + s.used[name].waited) / s.elapsed for s in self.samples)
            for name in names
        }

    @property
    def limit(self) -> str:
        """Who limits it."""
        shares = self.shares()
        name = max(shares, key=lambda one: shares[one])
        word = f"{name} {shares[name]:.0%}"
        return word if shares[name] >= LIMITS_FROM else f"wake-ups ({word})"

    def report(self) -> dict[str, Any]:
        """As JSON takes it."""
        found: dict[str, Any] = {"name": self.subject.name}
        if self.failure:
            return {**found, "failure": self.failure}
        return {
            **found,
            "amount": self.amount,
            "rates": self.rates(self.samples),
            "device_seconds": self.costs(self.samples),
            "shares": self.shares(),
            "limit": self.limit,
            "told": dict(self.samples[-1].told),
        }


@dataclass(frozen=True)
class Row:
    """Our figure against one yardstick's.

    Attributes:
        ours, theirs: what was measured.
        ratio: of the rates; None where one failed.
        cost_ratio: of the device's processor times; None where the yardstick is no such device.
        aim: least ratio of the rates; None where none was set.
    """

    ours: Measured
    theirs: Measured
    ratio: Ratio | None
    cost_ratio: Ratio | None
    aim: float | None

    @property
    def met(self) -> bool:
        """Whether the rates are as aimed at."""
        if self.ours.failure:
            return False
        return self.aim is None or self.ratio is None or self.ratio.meets(self.aim, more_is_better=True)

    @property
    def cost_met(self) -> bool:
        """Whether the processor time is as aimed at."""
        if self.cost_ratio is None or not self.ours.work.is_stream:
            return True
        return self.cost_ratio.meets(AIM_DEVICE, more_is_better=False)


def compare(
    work: Work, subjects: Sequence[Subject], runs: int, seconds: float, tick: Callable[[], None]
) -> list[Row]:
    """The rows of one work: the first subject, ours, against each of the others.

    Args:
        work: what is measured.
        subjects: where.
        runs: how often; the yardsticks twice as often, before and after ours.
        seconds: how long one measurement is to take.
        tick: called after each run.
    """
    ours, *others = (Measured(work, subject) for subject in subjects if subject.does(work))
    for one in (ours, *others):
        one.attempt(partial(one.calibrate, seconds))
    for _ in range(runs):
        for one in (*others, ours):
            one.attempt(partial(one.measure, one.first))
        for one in others:
            one.attempt(partial(one.measure, one.again))
        tick()
    return [_row(ours, theirs) for theirs in others]


def _row(ours: Measured, theirs: Measured) -> Row:
    is_device = theirs.subject.name == THEIRS
    aim = AIM_DEVICE if is_device else AIM_OTHERS if ours.work.is_stream else None
    if ours.failure or theirs.failure:
        return Row(ours, theirs, None, None, aim)
    ratio = Ratio.of(ours.rates(ours.first), theirs.rates(theirs.first), theirs.rates(theirs.again))
    if not is_device:
        return Row(ours, theirs, ratio, None, aim)
    cost_ratio = Ratio.of(ours.costs(ours.first), theirs.costs(theirs.first), theirs.costs(theirs.again))
    return Row(ours, theirs, ratio, cost_ratio, aim)


def report(rows: Sequence[Row], setting: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows as JSON takes them; each with its setting."""
    return [
        {
            **setting,
            "processors": os.cpu_count(),
            "work": row.ours.work.name,
            "ours": row.ours.report(),
            "theirs": row.theirs.report(),
            "ratio": row.ratio and row.ratio.value,
            "spread": row.ratio and row.ratio.spread,
            "cost_ratio": row.cost_ratio and row.cost_ratio.value,
            "cost_spread": row.cost_ratio and row.cost_ratio.spread,
            "aim": row.aim,
            "met": row.met,
            "cost_met": row.cost_met,
        }
        for row in rows
    ]
