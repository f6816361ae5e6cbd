"""Who calls an operation, as its handler sees it."""

from __future__ import annotations

from dataclasses import dataclass

from hvsock.addresses import HV_GUID_LOOPBACK, HV_GUID_PARENT, VmId, describe_vm_id

FIRST_VERSION = 1
"""The version that is spoken with a peer that did not negotiate."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The other side of a connection.

    Attributes:
        vm_id: the partition that calls, as the accepted socket shows it: a VmId, HV_GUID_PARENT or
            HV_GUID_LOOPBACK. The fabric says so, not the peer, so it can be relied on.
        version: the version of the service that both sides speak.
        features: what both sides know besides.
    """

    vm_id: VmId
    version: int = FIRST_VERSION
    features: frozenset[str] = frozenset()

    @property
    def is_parent(self) -> bool:
        """Whether the partition's own host calls."""
        return self.vm_id == HV_GUID_PARENT

    def __str__(self) -> str:
        return describe_vm_id(self.vm_id)


MYSELF = Caller(HV_GUID_LOOPBACK)
"""The caller of an operation that is called without a connection, in the process itself."""
