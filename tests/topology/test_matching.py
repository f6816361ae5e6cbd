"""The most specific binding wins."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest

from hvsock.addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    VmId,
    describe_vm_id,
)
from hvsock.topology.matching import WILDCARD_BINDS, accepts, match, specificity
from tests.topology.world import Listener, World

NARROW_TO_WIDE = (
    # S, L: the bindings that take it, the winner first; a VmId is that of S
    ("web", "host", (None, HV_GUID_CHILDREN, HV_GUID_WILDCARD)),
    ("db", "web", (None, HV_GUID_WILDCARD)),
    ("host", "web", (HV_GUID_PARENT, HV_GUID_WILDCARD)),
    ("web", "box", (HV_GUID_SILOHOST, HV_GUID_PARENT, HV_GUID_WILDCARD)),
    ("web", "web", (HV_GUID_LOOPBACK, HV_GUID_WILDCARD)),
)


@pytest.mark.parametrize(("source", "target", "bindings"), NARROW_TO_WIDE)
def test_most_specific_wins_in_whatever_order(source: str, target: str, bindings: tuple[VmId | None, ...]) -> None:
    world = World()
    listeners = [Listener(binding or world[source].id) for binding in bindings]
    bystanders = [Listener(world["lone"].id), Listener(HV_GUID_BROADCAST)]
    for count in range(1, len(listeners) + 1):
        for some in combinations(listeners, count):
            winner = min(some, key=listeners.index)
            for order in permutations([*some, *bystanders]):
                assert match(world.tree, world[target], order, world[source]) is winner


@pytest.mark.parametrize(("source", "target", "bindings"), NARROW_TO_WIDE)
def test_without_wildcards_the_wide_ones_are_left_out(
    source: str, target: str, bindings: tuple[VmId | None, ...]
) -> None:
    world = World()
    wide = [Listener(vm_id) for vm_id in (HV_GUID_WILDCARD, HV_GUID_CHILDREN)]
    assert match(world.tree, world[target], wide, world[source], wildcards=False) is None
    for binding in bindings:
        if binding not in WILDCARD_BINDS:
            narrow = Listener(binding or world[source].id)
            for order in permutations([*wide, narrow]):
                assert match(world.tree, world[target], order, world[source], wildcards=False) is narrow


def test_no_listeners_no_match() -> None:
    world = World()
    assert match(world.tree, world["host"], (), world["web"]) is None


def test_passthru_is_off_where_it_is_not_named() -> None:
    world = World()
    host, box = world["host"], world["box"]
    listener = Listener(HV_GUID_CHILDREN)
    assert not accepts(world.tree, host, HV_GUID_CHILDREN, box)
    assert match(world.tree, host, [listener], box) is None
    assert match(world.tree, host, [listener], box, passthru=True) is listener


def test_order_of_specificity() -> None:
    order = [
        World()["web"].id,
        HV_GUID_SILOHOST,
        HV_GUID_PARENT,
        HV_GUID_CHILDREN,
        HV_GUID_WILDCARD,
    ]
    assert sorted(order, key=specificity, reverse=True) == order
    assert specificity(HV_GUID_LOOPBACK) == specificity(HV_GUID_PARENT)


def test_bindings_of_one_specificity_never_take_the_same_connection() -> None:
    """So the winner does not hang on the order of the listeners."""
    world = World()
    words = [HV_GUID_CHILDREN, HV_GUID_LOOPBACK, HV_GUID_PARENT, HV_GUID_SILOHOST, HV_GUID_WILDCARD]
    every = [*words, *(partition.id for partition in world.tree)]
    for one, other in combinations(every, 2):
        if specificity(one) == specificity(other):
            for source in world.tree:
                for target in world.tree:
                    for passthru in (False, True):
                        both = [accepts(world.tree, target, bound, source, passthru) for bound in (one, other)]
                        assert not all(both), (describe_vm_id(one), describe_vm_id(other), source, target)
