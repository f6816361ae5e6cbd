"""Offset and round trip out of four time stamps, and which samples are stale."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

assert sys.platform == "linux"

from hvsock.services.predefined.timesync.arithmetic import (
    MAX_AGE,
    MAX_DRIFT,
    MAX_ROUND_TRIP,
    SECOND,
    Measurement,
    best_of,
    milliseconds,
    why_stale,
)

times = st.integers(0, 1 << 62)
spans = st.integers(0, 10 * SECOND)
offsets = st.integers(-(1 << 61), 1 << 61)
GOOD = Measurement(0, 0, 0, 1000, host_monotonic=5 * SECOND, guest_monotonic=7 * SECOND)


def measured(sent: int, there: int, thinking: int, back: int, offset: int) -> Measurement:
    """What is measured of a guest whose clock is behind by `offset`."""
    received = sent + there - offset
    return Measurement(sent, received, received + thinking, sent + there + thinking + back)


@given(times, spans, spans, spans, offsets)
def test_the_offset_is_right_within_half_the_round_trip(
    sent: int, there: int, thinking: int, back: int, offset: int
) -> None:
    found = measured(sent, there, thinking, back, offset)
    assert found.round_trip == there + back
    assert abs(found.offset - offset) <= found.round_trip / 2 + 1


@given(st.lists(st.tuples(spans, spans, offsets), max_size=8))
def test_the_best_is_the_shortest_and_impossible_ones_count_not_at_all(drawn: list[tuple[int, int, int]]) -> None:
    good = [measured(0, there, 1, back, offset) for there, back, offset in drawn]
    impossible = Measurement(100, 0, 500, 200)
    assert impossible.round_trip < 0
    best = best_of([impossible, *good])
    assert best == (min(good, key=lambda one: one.round_trip) if good else None)


@pytest.mark.parametrize(
    ("best", "host", "guest", "text"),
    [
        (None, 0, 0, "there is no measurement"),
        (replace(GOOD, arrived=MAX_ROUND_TRIP + 1), 0, 0, "the round trip took 500.000 ms"),
        (GOOD, -1, 0, "went back"),
        (GOOD, MAX_AGE + 1, MAX_AGE + 1, "10.0 s old, and 10 s is the most"),
        (GOOD, 0, MAX_AGE + 1, "s old"),
        (GOOD, MAX_DRIFT + 1001, 0, "the guest was paused for 50.001 ms"),
        (GOOD, MAX_AGE, MAX_AGE, ""),
        (GOOD, MAX_DRIFT + 1000, 0, ""),
        (GOOD, 0, MAX_AGE, ""),
        (replace(GOOD, arrived=MAX_ROUND_TRIP), 0, 0, ""),
    ],
)
def test_stale_samples(best: Measurement | None, host: int, guest: int, text: str) -> None:
    """`host` and `guest` are how far the monotonic clocks went on."""
    found = why_stale(best, GOOD.host_monotonic + host, GOOD.guest_monotonic + guest)
    assert text in found
    assert bool(found) == bool(text)


@given(moved=st.integers(0, MAX_AGE), there=st.integers(0, MAX_ROUND_TRIP), back=st.integers(0, SECOND))
def test_a_fresh_sample_counts(moved: int, there: int, back: int) -> None:
    """However long the sample and the last message were under way."""
    fresh = Measurement(0, 0, 0, there, host_monotonic=5, guest_monotonic=7 + there)
    assert why_stale(fresh, 5 + moved, min(7 + moved + back, 7 + there + MAX_AGE)) == ""


def test_durations_for_people() -> None:
    assert milliseconds(-1_234_567) == "-1.235 ms"
