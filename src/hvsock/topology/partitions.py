"""Partitions and the tree that they form: one host at the root, VMs and containers below, to any depth."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import count
from typing import Final, NamedTuple

from hvsock.addresses import WELL_KNOWN_VMIDS, VmId, parse_vm_id
from hvsock.constants import VSOCK_CID_HOST, VSOCK_CID_MAX
from hvsock.errors import DuplicateError, NotFoundError, UsageError

MAX_PARTITION_NAME_CHARACTERS = 100
"""Longest name of a partition: Hyper-V's own limit for the name of a VM."""
CID_MIN: Final = VSOCK_CID_HOST + 1
"""Lowest context id (CID) of a VM or a container."""
CID_MAX: Final = VSOCK_CID_MAX - 1
"""Highest context id of a VM or a container."""
NO_CID: Final = 0
"""CID of a partition that is in no tree yet, and takes what the tree gives it."""
RESTING_CIDS: Final = 1024
"""CIDs of removed partitions that are given to nobody for a time: a guest may still know them as somebody else."""


class Kind(StrEnum):
    """What a partition is."""

    HOST = "host"
    VM = "vm"
    CONTAINER = "container"


class Partition(NamedTuple):
    """One partition.

    Attributes:
        id: its VmId, unique in the fabric.
        name: its name, unique in the fabric without regard to case.
        kind: host, vm or container.
        parent: the VmId of the partition it runs in; None for the host alone.
        group: partitions with the same group reach each other by VmId; None for no group.
        cid: its context id in AF_VSOCK, unique in the fabric; the host's is 2.
    """

    id: VmId
    name: str
    kind: Kind
    parent: VmId | None = None
    group: str | None = None
    cid: int = NO_CID


def check_partition_name(name: str) -> str:
    """`name`, if a partition can be called so.

    Raises:
        UsageError: empty, too long, unprintable, or something that an address reads otherwise.
    """
    if not name or name != name.strip() or not name.isprintable():
        raise UsageError(f"a partition's name is printable text without blanks at its ends, not {name!r}")
    if len(name) > MAX_PARTITION_NAME_CHARACTERS:
        raise UsageError(
            f"a partition's name has at most {MAX_PARTITION_NAME_CHARACTERS} characters, not {len(name)}"
        )
    if name.casefold() == Kind.HOST or parse_vm_id(name) is not None:
        words = ", ".join([*WELL_KNOWN_VMIDS, Kind.HOST])
        raise UsageError(f"{name!r} means something else in an address: choose no GUID and none of {words}")
    return name


class Tree:
    """The partitions of one fabric; holds that there is one host and that every parent exists.

    ``changes`` counts up with every partition that is added or removed.

    Args:
        host: the root.
        resting: CIDs of removed partitions, the one removed first at the front.
    """

    def __init__(self, host: Partition, resting: Iterable[int] = ()) -> None:
        if host.kind is not Kind.HOST or host.parent is not None:
            raise ValueError("the root of the tree is the host, which has no parent")
        if host.id in WELL_KNOWN_VMIDS.values():
            raise ValueError(f"the id {host.id} stands for partitions and is none's own")
        self.host = host = host._replace(cid=VSOCK_CID_HOST)
        self.changes = 0
        self.resting = deque(resting, RESTING_CIDS)
        self._by_id: dict[VmId, Partition] = {host.id: host}
        self._by_cid: dict[int, Partition] = {host.cid: host}
        self._by_name: dict[str, Partition] = {host.name.casefold(): host}
        self._children: dict[VmId, dict[VmId, Partition]] = {host.id: {}}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Partition]:
        """All partitions, parents before their children."""
        return iter(self._by_id.values())

    def __contains__(self, vm_id: VmId) -> bool:
        return vm_id in self._by_id

    def get(self, vm_id: VmId | None) -> Partition | None:
        """The partition with that id, or None."""
        return None if vm_id is None else self._by_id.get(vm_id)

    def find(self, vm_id: VmId) -> Partition | None:
        """The partition that `vm_id` names, by its id or by its CID (:meth:`VmId.from_cid`), or None."""
        found = self._by_id.get(vm_id)
        return self._by_cid.get(vm_id.cid or NO_CID) if found is None else found

    def named(self, name: str) -> Partition | None:
        """The partition with that name, without regard to case, or None."""
        return self._by_name.get(name.casefold())

    def parent_of(self, partition: Partition) -> Partition | None:
        """The partition that `partition` runs in; None for the host."""
        return self.get(partition.parent)

    def children_of(self, partition: Partition) -> tuple[Partition, ...]:
        """The partitions that run directly in `partition`."""
        return tuple(self._children[partition.id].values())

    def add(self, partition: Partition) -> Partition:
        """Add a VM or a container below its parent; returns it as it is in the tree, with a CID.

        Where it has none, it gets the lowest one that is free and was not used recently.

        Raises:
            UsageError: a second host, or a name or a CID that cannot be one.
            DuplicateError: its id, name or CID is in use; the ids of HV_GUID_* and of CIDs always are.
            NotFoundError: its parent is not in the tree.
        """
        check_partition_name(partition.name)
        if partition.kind is Kind.HOST:
            raise UsageError("a fabric has one host; make a vm or a container")
        parent = partition.parent
        if parent not in self._by_id:
            raise NotFoundError(f"no partition has the id {parent}: give the one it runs in as parent")
        if (
            partition.id in self._by_id
            or partition.id in WELL_KNOWN_VMIDS.values()
            or partition.id.cid is not None
        ):
            raise DuplicateError(f"the id {partition.id} is in use; leave the id out to get a fresh one")
        if partition.name.casefold() in self._by_name:
            raise DuplicateError(f"a partition named {partition.name!r} exists already: choose another name")
        if partition.cid == NO_CID:
            partition = partition._replace(cid=self._free_cid())
        if not CID_MIN <= partition.cid <= CID_MAX:
            raise UsageError(f"a partition's CID is a number from {CID_MIN} to {CID_MAX}, not {partition.cid}")
        if partition.cid in self._by_cid:
            taken = self._by_cid[partition.cid].name
            raise DuplicateError(f"{taken!r} has the CID {partition.cid}; leave it out to get a free one")
        self._by_id[partition.id] = partition
        self._by_name[partition.name.casefold()] = partition
        self._by_cid[partition.cid] = partition
        self._children[partition.id] = {}
        self._children[parent][partition.id] = partition
        self.changes += 1
        return partition

    def remove(self, partition: Partition) -> None:
        """Take out a partition that has no children; its CID is given to no other for a time.

        Raises:
            UsageError: it is the host, or partitions run in it.
        """
        if partition.parent is None:
            raise UsageError("the host cannot be removed")
        if self._children[partition.id]:
            inside = ", ".join(child.name for child in self.children_of(partition))
            raise UsageError(f"partitions run in {partition.name!r}: remove {inside} first")
        cid = self._by_id.pop(partition.id).cid
        del self._by_cid[cid], self._by_name[partition.name.casefold()], self._children[partition.id]
        del self._children[partition.parent][partition.id]
        self.resting.append(cid)
        self.changes += 1

    def _free_cid(self) -> int:
        resting = frozenset(self.resting)
        return next(cid for cid in count(CID_MIN) if cid not in self._by_cid and cid not in resting)
