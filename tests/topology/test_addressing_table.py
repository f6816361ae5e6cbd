"""The addressing rules, row by row: which binding takes a connection from whom, and what S connects to.

The ids of the tests quote the rows of the table.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

import pytest

from hvsock.addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    HV_GUID_ZERO,
    VmId,
    describe_vm_id,
)
from hvsock.topology.decision import Grant
from hvsock.topology.matching import accepts, may_bind
from hvsock.topology.reachability import Relation, own_view, relation, view
from hvsock.topology.refusals import Reason, Refusal
from tests.topology.world import NAMES, UNKNOWN_VM, World, outcome


class Pair(NamedTuple):
    """S connects to L by the address `to`; what S is to L, and whether it hosts the container L."""

    source: str
    target: str
    to: VmId | str
    source_is: Relation
    passthru: bool = False
    hosts: bool = False

    def __str__(self) -> str:
        to = self.to if not isinstance(self.to, VmId) else describe_vm_id(self.to).upper()
        option = " with PASSTHRU" if self.passthru else ""
        return f"{self.source} to {self.target} by {to}{option}"


PAIRS = (
    Pair("host", "host", HV_GUID_LOOPBACK, Relation.SAME),
    Pair("web", "web", HV_GUID_LOOPBACK, Relation.SAME),
    Pair("box", "box", HV_GUID_LOOPBACK, Relation.SAME),
    Pair("box", "box", HV_GUID_LOOPBACK, Relation.SAME, passthru=True),
    # a parent reaches its children by their VmIds
    Pair("host", "web", "web", Relation.PARENT),
    Pair("host", "jail", "jail", Relation.PARENT, hosts=True),
    Pair("web", "box", "box", Relation.PARENT, hosts=True),
    Pair("web", "nested", "nested", Relation.PARENT),
    Pair("box", "inner", "inner", Relation.PARENT, hosts=True),
    Pair("jail", "cell", "cell", Relation.PARENT, hosts=True),
    # a child reaches its parent
    Pair("web", "host", HV_GUID_PARENT, Relation.CHILD),
    Pair("jail", "host", HV_GUID_PARENT, Relation.CHILD),
    Pair("jail", "host", HV_GUID_SILOHOST, Relation.CHILD),
    Pair("box", "web", HV_GUID_PARENT, Relation.CHILD),
    Pair("box", "web", HV_GUID_SILOHOST, Relation.CHILD),
    Pair("inner", "box", HV_GUID_PARENT, Relation.CHILD),
    Pair("nested", "web", HV_GUID_PARENT, Relation.CHILD),
    Pair("pod", "nested", HV_GUID_PARENT, Relation.CHILD),
    # members of one group reach each other by their VmIds
    Pair("web", "db", "db", Relation.MEMBER),
    Pair("db", "web", "web", Relation.MEMBER),
    # HVSOCKET_CONTAINER_PASSTHRU: a container in a VM is a child of the VM's parent, in both directions
    Pair("box", "host", HV_GUID_PARENT, Relation.CHILD, passthru=True),
    Pair("host", "box", "box", Relation.PARENT, passthru=True),
    Pair("pod", "web", HV_GUID_PARENT, Relation.CHILD, passthru=True),
    Pair("web", "pod", "pod", Relation.PARENT, passthru=True),
    # ... and leaves everything else as it is
    Pair("box", "web", HV_GUID_SILOHOST, Relation.CHILD, passthru=True),
    Pair("web", "box", "box", Relation.PARENT, passthru=True, hosts=True),
    Pair("web", "host", HV_GUID_PARENT, Relation.CHILD, passthru=True),
    Pair("jail", "host", HV_GUID_PARENT, Relation.CHILD, passthru=True),
    Pair("inner", "box", HV_GUID_PARENT, Relation.CHILD, passthru=True),
    Pair("web", "db", "db", Relation.MEMBER, passthru=True),
)

APART = (
    ("web", "lone", False),
    ("lone", "web", False),
    ("lone", "box", True),
    ("host", "box", False),
    ("host", "nested", False),
    ("host", "inner", True),
    ("host", "pod", True),
    ("db", "nested", False),
    ("db", "box", True),
    ("nested", "box", False),
    ("jail", "web", False),
)
"""Pairs out of each other's reach, with or without PASSTHRU."""

PARENT_OF_L, CHILD_OF_L, IS_L, MEMBER = Relation.PARENT, Relation.CHILD, Relation.SAME, Relation.MEMBER
ROWS: dict[str, tuple[VmId | None, set[Relation]]] = {
    "HV_GUID_WILDCARD = HV_GUID_ZERO: any S that can reach L": (
        HV_GUID_WILDCARD,
        {IS_L, PARENT_OF_L, CHILD_OF_L, MEMBER},
    ),
    "HV_GUID_CHILDREN: S is a child of L": (HV_GUID_CHILDREN, {CHILD_OF_L}),
    "HV_GUID_LOOPBACK: S is L": (HV_GUID_LOOPBACK, {IS_L}),
    "HV_GUID_PARENT: S is the parent of L": (HV_GUID_PARENT, {PARENT_OF_L}),
    "a VmId: S has that id, and is a child of L, or a member of the same group": (None, {CHILD_OF_L, MEMBER}),
    "HV_GUID_BROADCAST: never": (HV_GUID_BROADCAST, set()),
}


def row_cases() -> list[object]:
    """Every row for every pair; the row's VmId is that of S where the row leaves it open."""
    return [
        pytest.param(pair, binding, pair.source_is in takes, id=f"{row} - {pair}")
        for row, (binding, takes) in ROWS.items()
        for pair in PAIRS
    ]


def check(pair: Pair, binding: VmId, taken: bool) -> None:
    """A listener so bound, and the only one, takes the connection or leaves it refused."""
    world = World().register()
    source, target = world[pair.source], world[pair.target]
    assert accepts(world.tree, target, binding, source, pair.passthru) is taken
    listener = world.bound(pair.target, binding)
    verdict = world.connect(pair.source, pair.to, passthru=pair.passthru)
    if taken:
        assert verdict == Grant(listener, target, pair.source_is)
        assert may_bind(world.tree, target, binding)
    else:
        assert outcome(verdict) == errno.ECONNREFUSED


@pytest.mark.parametrize(("pair", "binding", "taken"), row_cases())
def test_row(pair: Pair, binding: VmId | None, taken: bool) -> None:
    check(pair, World()[pair.source].id if binding is None else binding, taken)


@pytest.mark.parametrize(
    "pair",
    [
        pytest.param(pair, id=f"HV_GUID_SILOHOST: S is the partition that hosts the container L - {pair}")
        for pair in PAIRS
    ],
)
def test_row_silohost(pair: Pair) -> None:
    check(pair, HV_GUID_SILOHOST, pair.hosts)


@pytest.mark.parametrize(
    "pair", [pytest.param(pair, id=f"a VmId: S has that id - {pair}, bound to another's") for pair in PAIRS]
)
def test_row_vm_id_of_another(pair: Pair) -> None:
    """Only the partition with that very id is taken, however close the others are."""
    world = World()
    for other in NAMES:
        if other != pair.source:
            check(pair, world[other].id, taken=False)


def test_row_wildcard_and_zero_are_one() -> None:
    assert HV_GUID_WILDCARD == HV_GUID_ZERO


@pytest.mark.parametrize(("source", "target", "passthru"), APART)
def test_out_of_reach_no_binding_takes_it(source: str, target: str, passthru: bool) -> None:
    world = World().register()
    bindings = [binding or world[source].id for binding, _ in ROWS.values()]
    for binding in [*bindings, HV_GUID_SILOHOST]:
        world.bound(target, binding)
        assert not accepts(world.tree, world[target], binding, world[source], passthru)
    assert relation(world.tree, world[source], world[target], passthru) is None
    assert outcome(world.connect(source, target, passthru=passthru)) == errno.EHOSTUNREACH


@pytest.mark.parametrize("name", NAMES)
def test_row_broadcast_is_eaddrnotavail_at_bind(name: str) -> None:
    assert outcome(World().register().bind(name, HV_GUID_BROADCAST)) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("name", NAMES)
def test_row_parent_binding_it_on_the_bare_host_is_eaddrnotavail(name: str) -> None:
    expected = errno.EADDRNOTAVAIL if name == "host" else "goes on"
    assert outcome(World().register().bind(name, HV_GUID_PARENT)) == expected


@pytest.mark.parametrize("name", NAMES)
def test_row_silohost_can_be_bound_in_containers_alone(name: str) -> None:
    in_container = name in {"box", "inner", "pod", "jail", "cell"}
    expected = "goes on" if in_container else errno.EADDRNOTAVAIL
    assert outcome(World().register().bind(name, HV_GUID_SILOHOST)) == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("binding", [HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_LOOPBACK], ids=describe_vm_id)
def test_wildcard_children_and_loopback_can_be_bound_everywhere(name: str, binding: VmId) -> None:
    assert outcome(World().register().bind(name, binding)) == "goes on"


@pytest.mark.parametrize(
    ("where", "bindable"),
    [
        # box is a container in the child web: with PASSTHRU, which the connector chooses, it counts as a child
        ("host", {"web", "db", "lone", "jail", "box"}),
        ("web", {"box", "nested", "pod", "db"}),
        ("box", {"inner"}),
        ("inner", set()),
        ("nested", {"pod"}),
        ("db", {"web"}),
        ("lone", set()),
        ("jail", {"cell"}),
    ],
)
def test_row_a_vm_id_can_be_bound_where_it_can_be_taken(where: str, bindable: set[str]) -> None:
    world = World().register()
    assert {name for name in NAMES if world.bind(where, name) is None} == bindable


def test_bind_to_an_unknown_vm_id_is_eaddrnotavail() -> None:
    refusal = World().register().bind("host", UNKNOWN_VM)
    assert isinstance(refusal, Refusal)
    assert (refusal.errno, refusal.reason) == (errno.EADDRNOTAVAIL, Reason.NOT_BINDABLE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("passthru", [False, True], ids=["plain", "passthru"])
@pytest.mark.parametrize("to", [HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_BROADCAST], ids=describe_vm_id)
def test_wildcard_children_and_broadcast_as_a_destination_are_always_eaddrnotavail(
    to: VmId, passthru: bool, name: str
) -> None:
    world = World().register()
    world.bound(name, HV_GUID_WILDCARD)
    verdict = world.connect(name, to, passthru=passthru)
    assert isinstance(verdict, Refusal)
    assert (verdict.errno, verdict.reason) == (errno.EADDRNOTAVAIL, Reason.NOT_A_DESTINATION)
    assert "is for listeners only" in verdict.text


@pytest.mark.parametrize(
    ("source", "to"),
    [
        ("host", HV_GUID_PARENT),
        ("host", HV_GUID_SILOHOST),
        ("web", HV_GUID_SILOHOST),
        ("nested", HV_GUID_SILOHOST),
    ],
    ids=["PARENT on the bare host", "SILOHOST on the bare host", "SILOHOST in a vm", "SILOHOST in a vm in a vm"],
)
def test_a_word_that_leads_nowhere_is_eaddrnotavail(source: str, to: VmId) -> None:
    verdict = World().register().connect(source, to)
    assert isinstance(verdict, Refusal)
    assert (verdict.errno, verdict.reason) == (errno.EADDRNOTAVAIL, Reason.NOT_A_DESTINATION)


@pytest.mark.parametrize("source", NAMES)
def test_unknown_and_out_of_reach_are_told_apart_by_nothing_but_the_id(source: str) -> None:
    world = World().register()
    unknown = world.connect(source, UNKNOWN_VM)
    assert isinstance(unknown, Refusal)
    assert (unknown.errno, unknown.reason) == (errno.EHOSTUNREACH, Reason.UNREACHABLE)
    for name in NAMES:
        verdict = world.connect(source, name)
        if name != source and isinstance(verdict, Refusal) and verdict.reason is Reason.UNREACHABLE:
            assert verdict.errno == errno.EHOSTUNREACH
            assert verdict.text.replace(world[name].id, UNKNOWN_VM) == unknown.text


@pytest.mark.parametrize("name", NAMES)
def test_ones_own_id_and_the_parents_id_are_no_addresses_without_a_group(name: str) -> None:
    """LOOPBACK and PARENT are the names for those."""
    world = World().register()
    assert outcome(world.connect(name, name)) == errno.EHOSTUNREACH
    if parent := world.tree.parent_of(world[name]):
        assert outcome(world.connect(name, parent.name)) == errno.EHOSTUNREACH


VIEWS = (
    # S, L, D, PASSTHRU; what S shows: own end, peer; what L shows: own end, peer
    (
        "host",
        "host",
        HV_GUID_LOOPBACK,
        False,
        HV_GUID_CHILDREN,
        HV_GUID_LOOPBACK,
        HV_GUID_CHILDREN,
        HV_GUID_LOOPBACK,
    ),
    (
        "web",
        "web",
        HV_GUID_LOOPBACK,
        False,
        HV_GUID_CHILDREN,
        HV_GUID_LOOPBACK,
        HV_GUID_CHILDREN,
        HV_GUID_LOOPBACK,
    ),
    ("host", "web", "web", False, "web", "web", HV_GUID_PARENT, HV_GUID_PARENT),
    ("web", "host", HV_GUID_PARENT, False, HV_GUID_PARENT, HV_GUID_PARENT, "web", "web"),
    ("box", "web", HV_GUID_SILOHOST, False, HV_GUID_PARENT, HV_GUID_PARENT, "box", "box"),
    ("box", "host", HV_GUID_PARENT, True, HV_GUID_PARENT, HV_GUID_PARENT, "box", "box"),
    ("host", "box", "box", True, "box", "box", HV_GUID_PARENT, HV_GUID_PARENT),
    ("web", "db", "db", False, "db", "db", "web", "web"),
)
VIEW_IDS = (
    "loopback client (CHILDREN, fresh id) -> (LOOPBACK, service), accepted side (CHILDREN, service) <- LOOPBACK",
    "the same in a vm",
    "host side of a VM connection shows (VmId of the VM, service), guest side shows (PARENT, service)",
    "the same when the guest connects",
    "container to its host by SILOHOST",
    "container in a vm to the vm's parent with PASSTHRU",
    "host to a container in a vm with PASSTHRU",
    "members see each other's VmIds",
)


@pytest.mark.parametrize(
    ("source", "target", "to", "passthru", "own", "peer", "accepted_own", "accepted_peer"), VIEWS, ids=VIEW_IDS
)
def test_getsockname_and_getpeername(
    source: str,
    target: str,
    to: VmId | str,
    passthru: bool,
    own: VmId | str,
    peer: VmId | str,
    accepted_own: VmId | str,
    accepted_peer: VmId | str,
) -> None:
    world = World().register()
    world.bound(target)
    verdict = world.connect(source, to, passthru=passthru)
    assert isinstance(verdict, Grant)
    target_is = relation(world.tree, verdict.target, world[source], passthru)
    assert target_is is not None
    seen_by_source = view(target_is, verdict.target)
    seen_by_target = view(verdict.source_is, world[source])
    assert (own_view(seen_by_source), seen_by_source) == (world.address(own), world.address(peer))
    assert (own_view(seen_by_target), seen_by_target) == (
        world.address(accepted_own),
        world.address(accepted_peer),
    )
