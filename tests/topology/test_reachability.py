"""Who is what to whom: nested partitions, groups and HVSOCKET_CONTAINER_PASSTHRU."""

from __future__ import annotations

import pytest

from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    VmId,
)
from hvsock.topology.matching import accepts, may_bind
from hvsock.topology.partitions import Kind, Partition, Tree
from hvsock.topology.reachability import (
    Relation,
    own_view,
    parent_seen_by,
    relation,
    resolve,
    share_group,
    view,
)
from tests.topology.world import NAMES, World, make_host, vm_id

PARENTS = (
    # partition, its parent, its parent with PASSTHRU, its SILOHOST
    ("host", None, None, None),
    ("web", "host", "host", None),
    ("box", "web", "host", "web"),
    ("inner", "box", "box", "box"),
    ("nested", "web", "web", None),
    ("pod", "nested", "web", "nested"),
    ("jail", "host", "host", "host"),
    ("cell", "jail", "jail", "jail"),
)


@pytest.mark.parametrize(
    ("name", "parent", "passthru", "silohost"),
    PARENTS,
    ids=[
        "the bare host",
        "a vm",
        "a container in a vm",
        "a container in a container in a vm",
        "a vm in a vm",
        "a container in a vm in a vm",
        "a container on the host",
        "a container in a container on the host",
    ],
)
def test_parent_and_silohost_as_destinations(
    name: str, parent: str | None, passthru: str | None, silohost: str | None
) -> None:
    world = World()
    me = world[name]
    for option, expected in ((False, parent), (True, passthru)):
        seen = parent_seen_by(world.tree, me, option)
        assert (seen and seen.name) == expected
        assert resolve(world.tree, me, HV_GUID_PARENT, option) is seen
        hosting = resolve(world.tree, me, HV_GUID_SILOHOST, option)
        assert (hosting and hosting.name) == silohost
        assert resolve(world.tree, me, HV_GUID_LOOPBACK, option) is me
        assert resolve(world.tree, me, HV_GUID_WILDCARD, option) is None


CHILDREN: tuple[tuple[str, set[str], set[str]], ...] = (
    # partition, those it connects to by VmId, those that PASSTHRU adds
    ("host", {"web", "db", "lone", "jail"}, {"box"}),
    ("web", {"box", "nested", "db"}, {"pod"}),
    ("box", {"inner"}, set()),
    ("inner", set(), set()),
    ("nested", {"pod"}, set()),
    ("pod", set(), set()),
    ("db", {"web"}, set()),
    ("lone", set(), set()),
    ("jail", {"cell"}, set()),
    ("cell", set(), set()),
)


@pytest.mark.parametrize(("name", "plain", "added"), CHILDREN)
def test_vm_ids_as_destinations(name: str, plain: set[str], added: set[str]) -> None:
    world = World()
    for passthru, expected in ((False, plain), (True, plain | added)):
        for destination in (lambda other: other.id, lambda other: VmId.from_cid(other.cid)):
            found = {
                other
                for other in NAMES[1:]
                if resolve(world.tree, world[name], destination(world[other]), passthru) is world[other]
            }
            assert found == expected
        assert resolve(world.tree, world[name], world["host"].id, passthru) is None


INVERSE = {
    Relation.SAME: Relation.SAME,
    Relation.PARENT: Relation.CHILD,
    Relation.CHILD: Relation.PARENT,
    Relation.MEMBER: Relation.MEMBER,
    None: None,
}


@pytest.mark.parametrize("passthru", [False, True])
def test_a_relation_read_from_the_other_side_is_its_inverse(passthru: bool) -> None:
    tree = World().tree
    for one in tree:
        for other in tree:
            assert relation(tree, other, one, passthru) is INVERSE[relation(tree, one, other, passthru)]


@pytest.mark.parametrize("passthru", [False, True])
def test_what_is_related_has_an_address_and_what_is_not_has_none(passthru: bool) -> None:
    tree = World().tree
    for source in tree:
        addresses = [HV_GUID_LOOPBACK, HV_GUID_PARENT, HV_GUID_SILOHOST, *(partition.id for partition in tree)]
        reached = {resolve(tree, source, address, passthru) for address in addresses} - {None}
        assert reached == {target for target in tree if relation(tree, source, target, passthru)}


def test_passthru_is_off_where_it_is_not_named() -> None:
    world = World()
    host, box = world["host"], world["box"]
    assert relation(world.tree, box, host) is None
    assert resolve(world.tree, box, HV_GUID_PARENT) is world["web"]
    assert resolve(world.tree, host, box.id) is None


def test_equal_partitions_need_not_be_identical() -> None:
    """Relations go by id: a partition that was read again is the same one."""
    one, again = World(), World()
    assert relation(one.tree, again["host"], again["web"]) is Relation.PARENT
    assert relation(one.tree, again["box"], again["host"], passthru=True) is Relation.CHILD
    assert accepts(one.tree, again["box"], HV_GUID_SILOHOST, again["web"])


def family(parent_group: str | None, child_group: str | None) -> tuple[Tree, Partition, Partition]:
    """A VM in a VM, in groups."""
    tree = Tree(make_host())
    parent = tree.add(Partition(vm_id(2), "outer", Kind.VM, tree.host.id, parent_group))
    child = tree.add(Partition(vm_id(3), "inside", Kind.VM, parent.id, child_group))
    return tree, parent, child


def test_parent_and_child_in_one_group_have_both_kinds_of_address() -> None:
    """The child stays a child, and a member's VmId is an address for either."""
    tree, parent, child = family("blue", "blue")
    assert relation(tree, child, parent) is Relation.CHILD
    assert relation(tree, parent, child) is Relation.PARENT
    assert resolve(tree, child, parent.id) is parent
    assert resolve(tree, child, HV_GUID_PARENT) is parent
    assert may_bind(tree, child, parent.id)
    assert accepts(tree, child, parent.id, parent)
    assert accepts(tree, child, HV_GUID_PARENT, parent)
    assert accepts(tree, parent, HV_GUID_CHILDREN, child)


@pytest.mark.parametrize(("parent_group", "child_group"), [(None, None), ("blue", None), ("blue", "Blue")])
def test_without_a_common_group_the_parents_vm_id_is_no_address(
    parent_group: str | None, child_group: str | None
) -> None:
    tree, parent, child = family(parent_group, child_group)
    assert not share_group(parent, child)
    assert resolve(tree, child, parent.id) is None
    assert not may_bind(tree, child, parent.id)
    assert not accepts(tree, child, parent.id, parent)


def test_a_partition_is_no_member_to_itself() -> None:
    world = World()
    web = world["web"]
    assert not share_group(web, web)
    assert resolve(world.tree, web, web.id) is None
    assert not may_bind(world.tree, web, web.id)
    assert not accepts(world.tree, web, web.id, web)


def test_the_host_may_be_in_a_group_with_a_partition_of_any_depth() -> None:
    tree = Tree(make_host(group="blue"))
    tree.add(Partition(vm_id(2), "outer", Kind.VM, tree.host.id))
    deep = tree.add(Partition(vm_id(3), "deep", Kind.VM, vm_id(2), "blue"))
    assert relation(tree, deep, tree.host) is Relation.MEMBER
    assert resolve(tree, deep, tree.host.id) is tree.host
    assert resolve(tree, tree.host, deep.id) is deep
    assert accepts(tree, tree.host, deep.id, deep)
    assert not accepts(tree, tree.host, HV_GUID_CHILDREN, deep)


@pytest.mark.parametrize("how", Relation)
def test_views(how: Relation) -> None:
    peer = World()["web"]
    seen = view(how, peer)
    expected = {Relation.SAME: HV_GUID_LOOPBACK, Relation.PARENT: HV_GUID_PARENT}
    assert seen == expected.get(how, peer.id)
    assert own_view(seen) == (HV_GUID_CHILDREN if how is Relation.SAME else seen)
