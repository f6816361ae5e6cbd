"""Which partition an address means, and how two partitions stand to each other.

HVSOCKET_CONTAINER_PASSTHRU on the connecting socket makes one change to the tree as the connection
sees it: a container that runs directly in a VM counts as a child of that VM's parent too, and that is
where PARENT leads. The VM stays the container's own host: SILOHOST leads there with or without the
option. Everything else follows from the relation of the two partitions.
"""

from __future__ import annotations

from enum import Enum

from hvsock.addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    VmId,
)

from .partitions import Kind, Partition, Tree

NOT_A_DESTINATION = frozenset({HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_BROADCAST})
"""VmIds that no socket can connect to: EADDRNOTAVAIL."""


class Relation(Enum):
    """What partition S is to partition L; it decides which of L's listeners S may reach."""

    SAME = "the same partition"
    PARENT = "the parent"
    CHILD = "a child"
    MEMBER = "a member of the same group"


def parent_seen_by(tree: Tree, partition: Partition, passthru: bool) -> Partition | None:
    """The partition that HV_GUID_PARENT means in `partition`; None on the bare host."""
    parent = tree.parent_of(partition)
    if passthru and partition.kind is Kind.CONTAINER and parent is not None and parent.kind is Kind.VM:
        return tree.parent_of(parent)
    return parent


def leads_out(tree: Tree, partition: Partition, passthru: bool) -> bool:
    """Whether HV_GUID_PARENT in `partition` means the parent of this fabric's host, where the host has one.

    The host is a VM or a container itself then: its own parent is that one, and that of its containers is
    with HVSOCKET_CONTAINER_PASSTHRU.
    """
    if partition.kind is Kind.HOST:
        return True
    return passthru and partition.kind is Kind.CONTAINER and partition.parent == tree.host.id


def _is_child(tree: Tree, child: Partition, parent: Partition, passthru: bool) -> bool:
    if child.parent == parent.id:
        return True
    seen = parent_seen_by(tree, child, passthru)
    return seen is not None and seen.id == parent.id


def share_group(one: Partition, other: Partition) -> bool:
    """Whether the operator put two different partitions in one group; it may hold for parent and child too."""
    return one.id != other.id and one.group is not None and one.group == other.group


def relation(tree: Tree, source: Partition, target: Partition, passthru: bool = False) -> Relation | None:
    """What `source` is to `target`, or None when it cannot reach it at all."""
    if source.id == target.id:
        return Relation.SAME
    if _is_child(tree, target, source, passthru):
        return Relation.PARENT
    if _is_child(tree, source, target, passthru):
        return Relation.CHILD
    return Relation.MEMBER if share_group(source, target) else None


def resolve(tree: Tree, source: Partition, vm_id: VmId, passthru: bool = False) -> Partition | None:
    """The partition that `vm_id` means to a socket in `source` that connects, or None.

    A partition's own id and that of its CID mean the same. None stands for no such partition and for one out of
    reach alike: a guest learns nothing of others.
    """
    if vm_id == HV_GUID_LOOPBACK:
        return source
    if vm_id == HV_GUID_PARENT:
        return parent_seen_by(tree, source, passthru)
    if vm_id == HV_GUID_SILOHOST:
        return tree.parent_of(source) if source.kind is Kind.CONTAINER else None
    target = tree.find(vm_id)
    if target is None:
        return None
    reachable = _is_child(tree, target, source, passthru) or share_group(source, target)
    return target if reachable else None


def view(relation_to_me: Relation, peer: Partition) -> VmId:
    """The VmId under which a partition sees a peer that is `relation_to_me` to it (getpeername)."""
    if relation_to_me is Relation.SAME:
        return HV_GUID_LOOPBACK
    return HV_GUID_PARENT if relation_to_me is Relation.PARENT else peer.id


def own_view(peer_view: VmId) -> VmId:
    """The VmId of one's own end, given that of the peer's (getsockname).

    Known from Windows: both ends show the same VmId, except that a loopback connection shows CHILDREN
    as its own and LOOPBACK as its peer, on either end.
    """
    return HV_GUID_CHILDREN if peer_view == HV_GUID_LOOPBACK else peer_view
