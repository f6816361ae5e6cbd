"""Credit against a model whose counters never wrap."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.virtio.credit import WRAP, Incoming, Outgoing
from tests.support import sample

STARTS = [0, 1, (1 << 32) - 1000, (1 << 32) - 1, 1 << 31]
"""Where the counters begin; they wrap at 2**32."""

amounts = st.integers(0, 3000)
starts = st.sampled_from(STARTS)


@settings(max_examples=sample(200, 20_000))
@given(starts, st.lists(st.tuples(amounts, amounts, amounts)))
def test_what_may_be_sent_is_what_the_model_says(start: int, steps: list[tuple[int, int, int]]) -> None:
    outgoing = Outgoing()
    outgoing.sent = outgoing.fwd_cnt = start
    sent = forwarded = start
    for wanted, room, read in steps:
        forwarded = min(sent, forwarded + read)
        assert outgoing.told(room, forwarded & WRAP)
        assert outgoing.free == max(0, room - (sent - forwarded))
        count = min(wanted, outgoing.free)
        outgoing.take(count)
        sent += count
        assert outgoing.sent == sent & WRAP


@pytest.mark.parametrize("start", STARTS)
def test_nobody_can_have_passed_on_more_than_was_sent(start: int) -> None:
    outgoing = Outgoing()
    outgoing.sent = outgoing.fwd_cnt = start
    assert outgoing.told(1000, start)
    outgoing.take(10)
    assert not outgoing.told(1000, (start + 11) & WRAP)
    assert (outgoing.fwd_cnt, outgoing.free) == (start, 990)


@pytest.mark.parametrize("start", STARTS)
def test_news_that_are_older_than_what_is_known_are_ignored(start: int) -> None:
    outgoing = Outgoing()
    outgoing.sent = outgoing.fwd_cnt = start
    assert outgoing.told(1000, start)
    outgoing.take(100)
    assert outgoing.told(1000, (start + 60) & WRAP)
    assert outgoing.told(5000, (start + 59) & WRAP)
    assert outgoing.free == 960


def test_a_guest_that_takes_back_room_in_use_gets_nothing_until_it_is_free() -> None:
    outgoing = Outgoing()
    assert outgoing.told(1000, 0)
    outgoing.take(800)
    assert outgoing.told(500, 0)
    assert outgoing.free == 0
    assert outgoing.told(500, 700)
    assert outgoing.free == 400


@settings(max_examples=sample(200, 20_000))
@given(starts, st.integers(1, 4000), st.lists(st.tuples(amounts, amounts)))
def test_what_may_come_is_what_the_model_says(start: int, room: int, steps: list[tuple[int, int]]) -> None:
    incoming = Incoming(room)
    incoming.received = incoming.fwd_cnt = incoming.told_fwd_cnt = start
    received = forwarded = told = start
    for came, read in steps:
        fits = received - forwarded + came <= room
        assert incoming.receive(came) is fits
        received += came if fits else 0
        assert incoming.received == received & WRAP
        count = min(read, received - forwarded)
        incoming.forward(count)
        forwarded += count
        assert incoming.fwd_cnt == forwarded & WRAP
        assert incoming.should_tell is (forwarded - told >= room // 2)
        if incoming.should_tell:
            told, incoming.told_fwd_cnt = forwarded, incoming.fwd_cnt


def test_a_packet_longer_than_counters_reach_has_no_credit() -> None:
    incoming = Incoming(1000)
    assert not incoming.receive(WRAP)
    assert not incoming.receive(1 << 32)
    assert incoming.receive(1000)
    assert not incoming.receive(1)
