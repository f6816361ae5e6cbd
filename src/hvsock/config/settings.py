"""What a profile of the configuration says (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from hvsock.addresses import HV_GUID_LOOPBACK, HV_GUID_PARENT, ServiceId, VmId
from hvsock.constants import VSOCK_CID_HOST, VSOCK_CID_LOCAL

_OWN_CIDS: Final = {VSOCK_CID_LOCAL: HV_GUID_LOOPBACK, VSOCK_CID_HOST: HV_GUID_PARENT}
_PATH_SPACE: Final = b"hvsock:hybrid:"
"""What the hash of a path begins with, so that it is that of nothing else."""


class Guests(StrEnum):
    """Who knows which VM has which context id, on a host of kernel vsock."""

    TABLE = "table"
    """The profile's own table of VMs, and nobody else."""
    LIBVIRT = "libvirt"
    """libvirt's domains that run: the UUID is the VmId."""
    QEMU = "qemu"
    """The command lines of QEMUs that run: -uuid is the VmId."""


class Vm(NamedTuple):
    """One VM of a profile.

    Attributes:
        name: what it is called, unique in the profile without regard to case.
        id: its VmId.
        cid: its context id, for the transport vsock; 1 is this machine itself, 2 its host.
        path: the absolute path of its VMM's hybrid socket, for the transport hybrid.
        vmm: the name of the VMM's profile there.
    """

    name: str
    id: VmId
    cid: int | None = None
    path: str | None = None
    vmm: str | None = None


class Settings(NamedTuple):
    """One profile.

    Attributes:
        where: the file and the profile, for errors; empty where there is no file.
        transport: the name of the transport, which nobody has looked at yet; None for the default.
        vmm: the profile of VMMs that say none of their own; None for the default.
        connect_timeout: milliseconds, for sockets that set no HVSOCKET_CONNECT_TIMEOUT; None for the default.
        guests: who knows the VMs of a host of kernel vsock; None: this machine is a guest, or knows the table's.
        libvirt: the URI of libvirt's connection.
        qemu_users: names or ids of users whose QEMUs count, besides root and this user.
        vms: the VMs, in the file's order.
        services: services by their names, in casefolded form.
    """

    where: str = ""
    transport: str | None = None
    vmm: str | None = None
    connect_timeout: int | None = None
    guests: Guests | None = None
    libvirt: str = "qemu:///system"
    qemu_users: tuple[str, ...] = ()
    vms: tuple[Vm, ...] = ()
    services: Mapping[str, ServiceId] = MappingProxyType({})


def vm_id_of_cid(cid: int) -> VmId:
    """The VmId of a VM that has none of its own: that of its context id, where 1 is LOOPBACK and 2 is PARENT.

    Raises:
        ValueError: it is no VM's.
    """
    return _OWN_CIDS.get(cid) or VmId.from_cid(cid)


def vm_id_of_path(path: str) -> VmId:
    """The VmId of a VM of which nothing is known but its VMM's absolute path: a hash (RFC 9562, version 8)."""
    import hashlib  # here, as it loads OpenSSL, and every process has settings

    raw = bytearray(hashlib.sha256(_PATH_SPACE + path.encode("utf-8", "surrogateescape")).digest()[:16])
    raw[7] = raw[7] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return VmId.from_bytes_le(bytes(raw))
