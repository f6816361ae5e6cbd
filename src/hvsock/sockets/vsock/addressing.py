"""VmIds as context ids of AF_VSOCK, and back.

On a host of kernel vsock they are those of its VMs, as the configuration, libvirt or QEMU tells. The own context
id is neither asked for nor needed: a guest of Hyper-V reads it as 0xFFFFFFFF.
"""

from __future__ import annotations

import errno
from typing import Final

from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    WELL_KNOWN_VMIDS,
    VmId,
    describe_vm_id,
)
from hvsock.constants import VSOCK_CID_ANY, VSOCK_CID_HOST, VSOCK_CID_LOCAL, VSOCK_RESERVED_CIDS
from hvsock.errors import HvsockError
from hvsock.machines import known

_DESTINATIONS: Final = {HV_GUID_PARENT: VSOCK_CID_HOST, HV_GUID_LOOPBACK: VSOCK_CID_LOCAL}
_VIEWS: Final = {
    VSOCK_CID_HOST: HV_GUID_PARENT,
    VSOCK_CID_LOCAL: HV_GUID_LOOPBACK,
    VSOCK_CID_ANY: HV_GUID_WILDCARD,
}
_WORDS: Final = frozenset(WELL_KNOWN_VMIDS.values())


def destination(vm_id: VmId) -> int:
    """The context id to connect to for `vm_id`.

    Raises:
        OSError: EADDRNOTAVAIL: a word that is no destination here; EHOSTUNREACH: an id that was made of no context
            id, and that no VM of the configuration or of this host has, or nobody can be asked.
    """
    cid = _DESTINATIONS.get(vm_id) or vm_id.cid
    if cid is not None:
        return cid
    word = describe_vm_id(vm_id)
    if vm_id in _WORDS:
        text = f"{word} is no destination in a guest; connect to parent, loopback or VmId.from_cid(CID)"
        raise OSError(errno.EADDRNOTAVAIL, text)
    try:
        vm = known.with_id(vm_id)
    except HvsockError as error:
        raise OSError(errno.EHOSTUNREACH, str(error)) from None
    if vm is None or vm.cid is None:
        hint = known.where_to_write("vms") if known.is_host() else "a guest calls others VmId.from_cid(CID)"
        raise OSError(errno.EHOSTUNREACH, f"{word} has no context id; {hint}")
    return vm.cid


def to_bind(vm_id: VmId) -> int:
    """The context id that the kernel's socket of a listener is bound to which takes connections from `vm_id`.

    Raises:
        OSError: EADDRNOTAVAIL: nothing connects from there to this machine.
    """
    if vm_id == HV_GUID_LOOPBACK:
        return VSOCK_CID_LOCAL
    if vm_id in (HV_GUID_WILDCARD, HV_GUID_PARENT) or vm_id.cid is not None:
        return VSOCK_CID_ANY
    if known.is_host() and (vm_id == HV_GUID_CHILDREN or vm_id not in _WORDS):  # that VM may start later
        return VSOCK_CID_ANY
    why = "it hosts none that speaks AF_VSOCK" if vm_id == HV_GUID_CHILDREN else "none connects from there"
    text = f"{describe_vm_id(vm_id)} is no address for a listener in a guest, since {why}; bind to parent or any"
    raise OSError(errno.EADDRNOTAVAIL, text)


def takes(vm_id: VmId, cid: int) -> bool:
    """Whether a listener that is bound to `vm_id` takes a connection from the context id `cid`."""
    if vm_id == HV_GUID_WILDCARD:
        return True
    if vm_id == HV_GUID_CHILDREN:
        return cid not in VSOCK_RESERVED_CIDS
    return cid == vm_id.cid or seen_as(cid) == vm_id


def seen_as(cid: int) -> VmId:
    """The VmId of the partition whose context id the kernel shows as `cid`; any is the wildcard."""
    return _VIEWS.get(cid) or known.id_of_cid(cid) or VmId.from_cid(cid)
