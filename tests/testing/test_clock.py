"""The fake clock."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from hvsock.testing import FakeClock


def test_it_stands_still_until_it_is_advanced() -> None:
    clock = FakeClock(start=10)
    assert (clock(), clock.now) == (10.0, 10.0)
    assert clock.advance(2.5) == 12.5
    assert clock.advance(0) == 12.5
    assert (clock(), clock.now) == (12.5, 12.5)
    assert repr(clock) == "<FakeClock at 12.5 s>"


def test_a_fresh_clock_is_not_at_zero() -> None:
    assert FakeClock()() > 0


@pytest.mark.parametrize("seconds", [-0.001, -math.inf, math.inf, math.nan])
def test_it_goes_forward_and_by_finite_steps_only(seconds: float) -> None:
    clock = FakeClock()
    before = clock.now
    with pytest.raises(ValueError, match="seconds"):
        clock.advance(seconds)
    assert clock.now == before


@pytest.mark.parametrize("start", [math.inf, math.nan])
def test_it_starts_at_a_finite_time(start: float) -> None:
    with pytest.raises(ValueError, match="start must be a finite number"):
        FakeClock(start)


def test_threads_share_it() -> None:
    clock = FakeClock(start=0)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(clock.advance, [1.0] * 1_000))
    assert clock.now == 1_000
