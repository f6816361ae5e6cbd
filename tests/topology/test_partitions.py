"""The tree of partitions, and what a partition can be called."""

from __future__ import annotations

import pytest

from hvsock.addresses import HV_GUID_BROADCAST, HV_GUID_PARENT, HV_GUID_ZERO, WELL_KNOWN_VMIDS, VmId
from hvsock.constants import VSOCK_CID_HOST, VSOCK_CID_MAX
from hvsock.errors import DuplicateError, NotFoundError, UsageError
from hvsock.topology.partitions import (
    CID_MAX,
    CID_MIN,
    MAX_PARTITION_NAME_CHARACTERS,
    NO_CID,
    RESTING_CIDS,
    Kind,
    Partition,
    Tree,
    check_partition_name,
)
from tests.topology.world import NAMES, UNKNOWN_VM, World, make_host, vm_id

NEW = Partition(vm_id(50), "new", Kind.VM, vm_id(1), cid=50)


@pytest.mark.parametrize(
    "name", ["web", "Web 2", "café", "a" * MAX_PARTITION_NAME_CHARACTERS, "hosts", "42", "a/b"]
)
def test_names_that_can_be(name: str) -> None:
    assert check_partition_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " web",
        "web ",
        "\t",
        "we\nb",
        "we\x1b[31mb",
        "a" * (MAX_PARTITION_NAME_CHARACTERS + 1),
        "host",
        "HOST",
        "ho\u017ft",
        *WELL_KNOWN_VMIDS,
        "Parent",
        str(UNKNOWN_VM),
        f"{{{str(UNKNOWN_VM).upper()}}}",
    ],
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_partition_name(name)
    assert str(caught.value).isprintable()
    with pytest.raises(UsageError):
        World().tree.add(NEW._replace(name=name))


def test_a_tree_is_in_order_parents_first() -> None:
    world = World()
    assert [partition.name for partition in world.tree] == list(NAMES)
    assert len(world.tree) == len(NAMES)
    assert world.tree.host.name == "host"


def test_look_up_by_id_and_by_name_without_regard_to_case() -> None:
    tree = World().tree
    web = tree.named("WEB")
    assert web is not None
    assert tree.get(VmId(str(web.id).upper())) is web
    assert web.id in tree
    assert UNKNOWN_VM not in tree
    assert tree.get(UNKNOWN_VM) is None
    assert tree.get(None) is None
    assert tree.named("nobody") is None


def test_a_partition_without_a_cid_gets_the_lowest_free_one() -> None:
    tree = World().tree
    assert [partition.cid for partition in tree] == [VSOCK_CID_HOST, *range(CID_MIN, CID_MIN + len(NAMES) - 1)]
    tree.add(NEW._replace(cid=CID_MIN + len(NAMES)))
    for number, expected in ((60, CID_MIN + len(NAMES) - 1), (61, CID_MIN + len(NAMES) + 1)):
        added = tree.add(NEW._replace(id=vm_id(number), name=f"new {number}", cid=NO_CID))
        assert added.cid == expected
        assert tree.get(added.id) is added


def test_cids_of_removed_partitions_rest_for_a_time() -> None:
    tree = Tree(make_host())
    fresh = NEW._replace(cid=NO_CID)
    for round_ in range(RESTING_CIDS + 1):
        added = tree.add(fresh)
        assert added.cid == CID_MIN + round_
        tree.remove(added)
    assert tree.add(fresh).cid == CID_MIN
    again = Tree(make_host(), tree.resting)
    assert again.add(fresh).cid == CID_MIN
    assert Tree(make_host(), [CID_MIN, CID_MIN + 1]).add(fresh).cid == CID_MIN + 2
    assert Tree(make_host(), [CID_MIN]).add(fresh._replace(cid=CID_MIN)).cid == CID_MIN, "asked for by its number"


def test_find_takes_ids_and_those_of_cids() -> None:
    tree = World().tree
    web = tree.named("web")
    assert web is not None
    assert tree.find(web.id) is tree.find(VmId.from_cid(web.cid)) is web
    assert tree.find(VmId.from_cid(CID_MAX)) is None
    assert tree.find(UNKNOWN_VM) is None
    tree.add(NEW)
    assert tree.find(VmId.from_cid(NEW.cid)) is NEW
    tree.remove(NEW)
    assert tree.find(VmId.from_cid(NEW.cid)) is None


def test_parents_and_children() -> None:
    world = World()
    assert world.tree.parent_of(world["host"]) is None
    assert world.tree.parent_of(world["inner"]) is world["box"]
    assert [child.name for child in world.tree.children_of(world["host"])] == ["web", "db", "lone", "jail"]
    assert world.tree.children_of(world["cell"]) == ()


def test_add_and_remove() -> None:
    tree = World().tree
    assert tree.add(NEW) is NEW
    assert tree.get(NEW.id) is tree.named("new") is NEW
    assert NEW in tree.children_of(tree.host)
    tree.remove(NEW)
    assert NEW.id not in tree
    assert tree.named("new") is None
    assert NEW not in tree.children_of(tree.host)
    tree.add(NEW)
    assert len(tree) == len(NAMES) + 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kind": Kind.HOST}, UsageError),
        ({"parent": None}, NotFoundError),
        ({"parent": UNKNOWN_VM}, NotFoundError),
        ({"parent": NEW.id}, NotFoundError),
        ({"id": vm_id(1)}, DuplicateError),
        ({"id": vm_id(2)}, DuplicateError),
        ({"id": HV_GUID_ZERO}, DuplicateError),
        ({"id": HV_GUID_PARENT}, DuplicateError),
        ({"id": HV_GUID_BROADCAST}, DuplicateError),
        ({"name": "web"}, DuplicateError),
        ({"name": "WEB"}, DuplicateError),
        ({"id": VmId.from_cid(77)}, DuplicateError),
        ({"cid": 1}, UsageError),
        ({"cid": VSOCK_CID_MAX}, UsageError),
        ({"cid": CID_MAX + 2}, UsageError),
        ({"cid": -3}, UsageError),
        ({"cid": CID_MIN}, DuplicateError),
        ({"cid": VSOCK_CID_HOST}, UsageError),
    ],
    ids=str,
)
def test_what_cannot_be_added_leaves_the_tree_as_it_is(change: dict[str, object], error: type[UsageError]) -> None:
    tree = World().tree
    before = list(tree)
    with pytest.raises(error) as caught:
        tree.add(NEW._replace(**change))  # type: ignore[arg-type]
    assert str(caught.value).isprintable()
    assert list(tree) == before
    assert NEW not in tree.children_of(tree.host)


def test_the_host_and_parents_cannot_be_removed() -> None:
    world = World()
    before = list(world.tree)
    with pytest.raises(UsageError, match="host"):
        world.tree.remove(world["host"])
    with pytest.raises(UsageError, match="remove box, nested first"):
        world.tree.remove(world["web"])
    assert list(world.tree) == before


@pytest.mark.parametrize(
    "root",
    [
        make_host()._replace(kind=Kind.VM),
        make_host()._replace(parent=vm_id(2)),
        make_host()._replace(id=HV_GUID_ZERO),
        make_host()._replace(id=HV_GUID_PARENT),
    ],
    ids=["a vm", "a child", "with the id of WILDCARD", "with the id of PARENT"],
)
def test_the_root_is_a_host_with_an_id_of_its_own(root: Partition) -> None:
    with pytest.raises(ValueError, match=r"root|own"):
        Tree(root)
