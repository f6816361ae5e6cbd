"""What partitions share: nobody gets it all, and everybody gets something."""

from __future__ import annotations

import sys

import pytest

assert sys.platform == "linux"

from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import VmId
from hvsock.fabric.broker.quota import Quota

HOST = VmId.new()
GUESTS = [VmId.new() for _ in range(20)]


def greedy(quota: Quota, partition: VmId) -> int:
    """Take all that a partition gets."""
    while quota.has_room(partition):
        quota.take(partition)
    return quota.held(partition)


def test_a_greedy_guest_gets_half_and_the_next_ones_get_theirs() -> None:
    quota = Quota(HOST, 900, 1000)
    assert [greedy(quota, guest) for guest in GUESTS[:4]] == [300, 150, 75, 38]
    assert greedy(quota, HOST) == 300


def test_the_host_has_its_own_share() -> None:
    quota = Quota(HOST, 900, 1000)
    assert greedy(quota, HOST) == 300
    assert greedy(quota, GUESTS[0]) == 300


def test_no_partition_gets_more_than_the_most() -> None:
    quota = Quota(HOST, 900, 10)
    assert greedy(quota, HOST) == 10
    assert greedy(quota, GUESTS[0]) == 10


@pytest.mark.parametrize("total", [0, 1, 2])
def test_of_next_to_nothing_somebody_gets_something(total: int) -> None:
    quota = Quota(HOST, total, 10)
    assert greedy(quota, HOST) == 1
    assert greedy(quota, GUESTS[0]) == 1


@given(st.integers(3, 300), st.lists(st.tuples(st.integers(0, 19), st.booleans()), max_size=300))
def test_guests_never_hold_more_than_their_share_and_a_newcomer_gets_one(
    total: int, acts: list[tuple[int, bool]]
) -> None:
    quota = Quota(HOST, total, 1000)
    held = dict.fromkeys(GUESTS, 0)
    for index, take in acts:
        guest = GUESTS[index]
        if take and quota.has_room(guest):
            quota.take(guest)
            held[guest] += 1
        elif not take and held[guest]:
            quota.give_back(guest)
            held[guest] -= 1
        assert quota.held(guest) == held[guest]
    in_use = sum(held.values())
    assert in_use <= max(1, total - total // 3)
    assert quota.has_room(VmId.new()) == (in_use < max(1, total - max(1, total // 3)))
    for guest in GUESTS:
        for _ in range(held[guest]):
            quota.give_back(guest)
    assert not quota._held
    assert quota._taken_by_guests == 0
