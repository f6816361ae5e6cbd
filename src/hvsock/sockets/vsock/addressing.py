"""VmIds as context ids of AF_VSOCK, and back.

The own context id is neither asked for nor needed: a guest of Hyper-V reads it as 0xFFFFFFFF.
"""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    WELL_KNOWN_VMIDS,
    VmId,
    describe_vm_id,
)
from hvsock.constants import VSOCK_CID_ANY, VSOCK_CID_HOST, VSOCK_CID_LOCAL

_DESTINATIONS: Final = {HV_GUID_PARENT: VSOCK_CID_HOST, HV_GUID_LOOPBACK: VSOCK_CID_LOCAL}
_VIEWS: Final = {
    VSOCK_CID_HOST: HV_GUID_PARENT,
    VSOCK_CID_LOCAL: HV_GUID_LOOPBACK,
    VSOCK_CID_ANY: HV_GUID_WILDCARD,
}
_WORDS: Final = frozenset(WELL_KNOWN_VMIDS.values())


class Binding(NamedTuple):
    """How a listener is bound.

    Attributes:
        cid: the context id that the kernel's socket is bound to.
        only: the context id of the peers that are taken; None for all.
    """

    cid: int
    only: int | None


def destination(vm_id: VmId) -> int:
    """The context id to connect to for `vm_id`.

    Raises:
        OSError: EADDRNOTAVAIL: a word that is no destination in a guest; EHOSTUNREACH: an id that was
            made of no context id.
    """
    cid = _DESTINATIONS.get(vm_id) or vm_id.cid
    if cid is not None:
        return cid
    word = describe_vm_id(vm_id)
    if vm_id in _WORDS:
        text = f"{word} is no destination in a guest; connect to parent, loopback or VmId.from_cid(CID)"
        raise OSError(errno.EADDRNOTAVAIL, text)
    raise OSError(errno.EHOSTUNREACH, f"{word} has no context id; a guest calls others VmId.from_cid(CID)")


def binding(vm_id: VmId) -> Binding:
    """How a listener is bound that takes connections from `vm_id`.

    Raises:
        OSError: EADDRNOTAVAIL: nothing connects from there to a guest.
    """
    if vm_id == HV_GUID_WILDCARD:
        return Binding(VSOCK_CID_ANY, None)
    if vm_id == HV_GUID_LOOPBACK:
        return Binding(VSOCK_CID_LOCAL, VSOCK_CID_LOCAL)
    only = VSOCK_CID_HOST if vm_id == HV_GUID_PARENT else vm_id.cid
    if only is not None:
        return Binding(VSOCK_CID_ANY, only)
    why = "it hosts none that speaks AF_VSOCK" if vm_id == HV_GUID_CHILDREN else "none connects from there"
    text = f"{describe_vm_id(vm_id)} is no address for a listener in a guest, since {why}; bind to parent or any"
    raise OSError(errno.EADDRNOTAVAIL, text)


def seen_as(cid: int) -> VmId:
    """The VmId of the partition whose context id the kernel shows as `cid`; any is the wildcard."""
    return _VIEWS.get(cid) or VmId.from_cid(cid)
