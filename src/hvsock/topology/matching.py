"""Which bound addresses take a connection from which partition; the most specific one wins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

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
from .reachability import Relation, relation, share_group

WILDCARD_BINDS = frozenset({HV_GUID_WILDCARD, HV_GUID_CHILDREN})
"""Bindings that take more than one partition; a service's settings may forbid them on its host."""

_SPECIFICITY = {
    HV_GUID_WILDCARD: 0,
    HV_GUID_CHILDREN: 1,
    HV_GUID_LOOPBACK: 2,
    HV_GUID_PARENT: 2,
    HV_GUID_SILOHOST: 3,
}
_VM_ID_SPECIFICITY = 4


class Bound(Protocol):
    """What the matcher needs to know of a listener."""

    @property
    def vm_id(self) -> VmId:
        """The VmId that it is bound to."""


B = TypeVar("B", bound=Bound)


def may_bind(tree: Tree, partition: Partition, vm_id: VmId) -> bool:
    """Whether `vm_id` is an address that a listener in `partition` can have; if not: EADDRNOTAVAIL."""
    if vm_id in (HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_LOOPBACK):
        return True
    if vm_id == HV_GUID_PARENT:
        return partition.kind is not Kind.HOST
    if vm_id == HV_GUID_SILOHOST:
        return partition.kind is Kind.CONTAINER
    if vm_id == HV_GUID_BROADCAST:
        return False
    source = tree.get(vm_id)
    return source is not None and accepts(tree, partition, vm_id, source, passthru=True)


def accepts(tree: Tree, target: Partition, bound: VmId, source: Partition, passthru: bool = False) -> bool:
    """Whether a listener in `target`, bound to `bound`, takes a connection from `source`."""
    how = relation(tree, source, target, passthru)
    if how is None or bound == HV_GUID_BROADCAST:
        return False
    if bound == HV_GUID_WILDCARD:
        return True
    if bound == HV_GUID_CHILDREN:
        return how is Relation.CHILD
    if bound == HV_GUID_LOOPBACK:
        return how is Relation.SAME
    if bound == HV_GUID_PARENT:
        return how is Relation.PARENT
    if bound == HV_GUID_SILOHOST:
        return target.kind is Kind.CONTAINER and target.parent == source.id
    return source.id == bound and (how is Relation.CHILD or share_group(source, target))


def specificity(bound: VmId) -> int:
    """How narrow a binding is: VmId over SILOHOST over PARENT and LOOPBACK over CHILDREN over WILDCARD."""
    return _SPECIFICITY.get(bound, _VM_ID_SPECIFICITY)


def match(
    tree: Tree,
    target: Partition,
    listeners: Iterable[B],
    source: Partition,
    *,
    passthru: bool = False,
    wildcards: bool = True,
) -> B | None:
    """The listener in `target` that takes a connection from `source`, or None.

    Args:
        tree: the partitions.
        target: the partition that was connected to.
        listeners: its listeners for the service, no two bound alike.
        source: the partition that connects.
        passthru: HVSOCKET_CONTAINER_PASSTHRU of the connecting socket.
        wildcards: False leaves out listeners bound to WILDCARD or CHILDREN.
    """
    best: B | None = None
    for listener in listeners:
        if not wildcards and listener.vm_id in WILDCARD_BINDS:
            continue
        if best is not None and specificity(listener.vm_id) <= specificity(best.vm_id):
            continue
        if accepts(tree, target, listener.vm_id, source, passthru):
            best = listener
    return best
