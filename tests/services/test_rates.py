"""Tokens, peers that are kept apart, and peers that are too slow; by clocks of the tests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.services.rates import Bucket, PerPeer, Slowness, Verdict


def test_a_bucket_gives_what_it_holds_and_then_by_the_time() -> None:
    bucket = Bucket(rate=2, most=3)
    assert [bucket.take(100) for _ in range(4)] == [True, True, True, False]
    assert bucket.is_empty
    assert not bucket.take(100.4)
    assert bucket.take(100.5)
    assert not bucket.take(99)  # a clock that goes back gives nothing
    assert [bucket.take(1000) for _ in range(4)] == [True, True, True, False]


def test_tokens_that_are_taken_ahead_come_one_by_one() -> None:
    bucket = Bucket(rate=2, most=3)
    assert [bucket.take_ahead(7) for _ in range(6)] == [0, 0, 0, 0.5, 1, 1.5]
    assert not bucket.take(8.4)
    assert bucket.take_ahead(8.5) == 0.5
    assert bucket.take_ahead(100) == 0


@given(
    rate=st.floats(0.1, 100),
    most=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 10), max_size=200),
)
def test_a_bucket_never_gives_more(rate: float, most: int, pauses: list[float]) -> None:
    bucket, now, taken = Bucket(rate, most), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
        assert taken <= most + now * rate + 1e-6


def test_peers_are_apart_and_what_was_left_out_is_told_once() -> None:
    peers = PerPeer(rate=1, most=2, peers=10)
    assert peers.ask("a", 0) == Verdict(through=True)
    assert peers.ask("a", 0) == Verdict(through=True, last=True)
    assert [peers.ask("a", 0).through for _ in range(7)] == [False] * 7
    assert peers.ask("b", 0) == Verdict(through=True)
    assert peers.ask("a", 1) == Verdict(through=True, left_out=7, last=True)
    assert peers.ask("a", 10) == Verdict(through=True)


def test_of_too_many_peers_the_quietest_is_forgotten() -> None:
    peers = PerPeer(rate=1, most=1, peers=2)
    for peer in ("a", "b", "a", "c"):
        peers.ask(peer, 0)
    assert len(peers) == 2
    assert not peers.ask("a", 0).through
    assert peers.ask("b", 0) == Verdict(through=True, last=True)
    assert len(peers) == 2


def test_a_peer_may_be_slow_for_a_while_and_not_for_good() -> None:
    fast = Slowness(rate=64, seconds=120)
    assert all(fast.waited(10, 640) for _ in range(1000))
    slow = Slowness(rate=64, seconds=120)
    assert [slow.waited(10, 1) for _ in range(13)] == [True] * 12 + [False]
    quiet = Slowness(rate=64, seconds=120)
    assert quiet.waited(119, 1 << 20)
    assert quiet.waited(119, 1)  # a lot before gives the whole time again, and no more
    assert not quiet.waited(119, 1)


def test_a_peer_that_says_it_is_busy_has_more_time() -> None:
    busy = Slowness(rate=64, seconds=120)
    for _ in range(1000):
        assert busy.waited(5, 5)
        busy.excuse(5)
    assert [busy.waited(60, 0) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_without_a_rate_there_is_no_bound(seconds: float) -> None:
    assert Slowness(rate=0, seconds=120).waited(seconds, 1)
