"""Addresses of Hyper-V sockets as values: VmId, ServiceId, the pair, and their written forms.

A socket address is the pair (VmId, ServiceId). Both halves are strings, as in CPython's AF_HYPERV, of
the types below: canonical GUIDs in lower case that compare without regard to case, so that
``sock.getpeername()[0] == HV_GUID_PARENT`` holds whatever the spelling.

Sources: hvsocket.h (GUIDs, SOCKADDR_HV, template), net/vmw_vsock/hyperv_transport.c (port mapping).
"""

from __future__ import annotations

import os
import re
import struct
from functools import lru_cache
from typing import Final, NamedTuple, Self, TypeVar

from .constants import AF_HYPERV, SOCKADDR_HV_BYTES, VSOCK_CID_MAX, VSOCK_PORT_MAX, VSOCK_RESERVED_CIDS

_GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")
_NUMBER = re.compile(r"(?:0x[0-9a-f]{1,8}|[0-9]{1,10})\Z", re.ASCII)
_SOCKADDR_HV = struct.Struct("<HH16s16s")
URL_SCHEME: Final = "hvsocket"

_G = TypeVar("_G", bound="Guid")


class Guid(str):
    """A GUID: text in canonical form (lower case, no braces) that compares without regard to case.

    ``hash()`` is that of the lower-case text, so look up plain strings in lower case.

    Args:
        text: the GUID, in any case, with or without braces.

    Raises:
        ValueError: `text` is not a GUID.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if type(text) is cls:
            return text
        canonical = text.lower()
        if canonical.startswith("{") and canonical.endswith("}"):
            canonical = canonical[1:-1]
        if not _GUID.match(canonical):
            raise ValueError(f"not a GUID: {text!r} (expected like 999e53d4-3d5c-4c3e-8779-bed06ec056e1)")
        return super().__new__(cls, canonical)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Guid):
            return str.__eq__(self, other)
        return str.__eq__(self, other.lower()) if isinstance(other, str) else NotImplemented

    def __ne__(self, other: object) -> bool:
        equal = self.__eq__(other)
        return equal if equal is NotImplemented else not equal

    __hash__ = str.__hash__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __str__(self) -> str:
        return str.__str__(self)

    @property
    def data1(self) -> int:
        """The first 32 bits, which are the port in the vsock template."""
        return int(self[:8], 16)

    def to_bytes_le(self) -> bytes:
        """The 16 bytes of the GUID as Windows lays them out in memory."""
        return _to_bytes(self)

    @classmethod
    def from_bytes_le(cls, data: bytes) -> Self:
        """The GUID whose memory layout on Windows is `data` (16 bytes).

        Raises:
            ValueError: `data` is not 16 bytes long.
        """
        guid: Self = _from_bytes(cls, data)
        return guid

    @classmethod
    def new(cls) -> Self:
        """A fresh random GUID (RFC 9562 version 4)."""
        raw = bytearray(os.urandom(16))
        raw[7] = raw[7] & 0x0F | 0x40
        raw[8] = raw[8] & 0x3F | 0x80
        return _format(cls, bytes(raw))


class VmId(Guid):
    """The id of a partition, or one of the wildcards ``HV_GUID_*``."""

    __slots__ = ()

    @classmethod
    def from_cid(cls, cid: int) -> VmId:
        """The id by which AF_VSOCK programs call the virtual machine with context id `cid` (3 to 0xFFFFFFFE).

        Raises:
            ValueError: `cid` is out of range or reserved: 0, 1, 2 and 0xFFFFFFFF are no virtual machine's.
        """
        if not 0 <= cid <= VSOCK_CID_MAX or cid in VSOCK_RESERVED_CIDS:
            raise ValueError(f"CID {cid} is no virtual machine's: those are 3 to {VSOCK_CID_MAX - 1}")
        return cls(f"{cid:08x}{_CID_TAIL}")

    @property
    def cid(self) -> int | None:
        """The context id that :meth:`from_cid` made this id of, or None when it made it of none."""
        return self.data1 if self[8:] == _CID_TAIL and self.data1 not in VSOCK_RESERVED_CIDS else None


class ServiceId(Guid):
    """The id of a service: the name of its key under GuestCommunicationServices."""

    __slots__ = ()

    @classmethod
    def from_port(cls, port: int) -> ServiceId:
        """The service that AF_VSOCK port `port` stands for (0 to 0xFFFFFFFF), by the vsock template.

        Raises:
            ValueError: `port` is out of range.
        """
        if not 0 <= port <= VSOCK_PORT_MAX:
            raise ValueError(f"port {port} is out of range: 0 to {VSOCK_PORT_MAX}")
        return cls(f"{port:08x}{_TEMPLATE_TAIL}")

    def __int__(self) -> int:
        """Its first 32 bits, which is what AF_VSOCK shows as the port of a peer, whatever the other bits.

        Programs for TCP read the second half of an address as a number.
        """
        return self.data1

    @property
    def port(self) -> int | None:
        """The AF_VSOCK port that this service is, or None when it is outside the vsock template."""
        return self.data1 if self[8:] == _TEMPLATE_TAIL else None


@lru_cache(maxsize=8192)
def _to_bytes(guid: Guid) -> bytes:
    raw = bytes.fromhex(guid.replace("-", ""))
    return raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:]


@lru_cache(maxsize=8192)
def _from_bytes(cls: type[_G], data: bytes) -> _G:
    if len(data) != 16:
        raise ValueError(f"a GUID has 16 bytes, not {len(data)}")
    return _format(cls, data)


def _format(cls: type[_G], data: bytes) -> _G:
    head = f"{data[3::-1].hex()}-{data[5:3:-1].hex()}-{data[7:5:-1].hex()}"
    return cls(f"{head}-{data[8:10].hex()}-{data[10:].hex()}")


HV_GUID_VSOCK_TEMPLATE = ServiceId("00000000-facb-11e6-bd58-64006a7986d3")
"""Template of the services that Linux guests reach: Data1 is the port."""
_TEMPLATE_TAIL: Final = HV_GUID_VSOCK_TEMPLATE[8:]

_CID_TAIL: Final = "-c1d0-4856-8000-000000000000"
"""What follows the CID in :meth:`VmId.from_cid`: 48 56 is "HV"; it has the form of a random GUID and is none."""

HV_GUID_ZERO = VmId("00000000-0000-0000-0000-000000000000")
"""The same as :data:`HV_GUID_WILDCARD`."""
HV_GUID_WILDCARD = HV_GUID_ZERO
"""Listener: takes connections from every partition that can reach it."""
HV_GUID_BROADCAST = VmId("ffffffff-ffff-ffff-ffff-ffffffffffff")
"""Has a name and no use: EADDRNOTAVAIL wherever it is given."""
HV_GUID_CHILDREN = VmId("90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd")
"""Listener: takes connections from the children of its partition."""
HV_GUID_LOOPBACK = VmId("e0e16197-dd56-4a10-9195-5ee7a155a838")
"""The own partition, for listeners and connectors."""
HV_GUID_PARENT = VmId("a42e7cda-d03f-480c-9cc2-a4de20abb878")
"""The parent partition, for listeners and connectors."""
HV_GUID_SILOHOST = VmId("36bd0c5c-7276-4223-88ba-7d03b654c568")
"""The partition that hosts a container, for listeners and connectors in the container."""

SERVICE_WILDCARD = ServiceId(HV_GUID_ZERO)
"""ServiceId zero: a bind to it takes a fresh id, as port 0 does for TCP."""

WELL_KNOWN_VMIDS: Final[dict[str, VmId]] = {
    "any": HV_GUID_WILDCARD,
    "wildcard": HV_GUID_WILDCARD,
    "broadcast": HV_GUID_BROADCAST,
    "children": HV_GUID_CHILDREN,
    "loopback": HV_GUID_LOOPBACK,
    "parent": HV_GUID_PARENT,
    "silohost": HV_GUID_SILOHOST,
}
"""Words that stand for a well-known VmId wherever an address is written; no partition may have one as name."""
_WORD_OF = {
    HV_GUID_WILDCARD: "any",
    **{v: k for k, v in WELL_KNOWN_VMIDS.items() if v != HV_GUID_WILDCARD},
}


class Address(NamedTuple):
    """The address of a Hyper-V socket; a plain pair of strings to everything that wants one."""

    vm_id: VmId
    service_id: ServiceId

    def __str__(self) -> str:
        """The address as a URL; well-known VmIds as words, template services as ports."""
        return AddressText(describe_vm_id(self.vm_id), describe_service_id(self.service_id)).url()

    def pack(self) -> bytes:
        """The address as SOCKADDR_HV (36 bytes, little endian)."""
        return _SOCKADDR_HV.pack(AF_HYPERV, 0, self.vm_id.to_bytes_le(), self.service_id.to_bytes_le())

    @classmethod
    def unpack(cls, data: bytes) -> Address:
        """The address in a SOCKADDR_HV; the reserved field is not looked at.

        Raises:
            ValueError: `data` is not 36 bytes long, or its family is not AF_HYPERV.
        """
        if len(data) != SOCKADDR_HV_BYTES:
            raise ValueError(f"SOCKADDR_HV has {SOCKADDR_HV_BYTES} bytes, not {len(data)}")
        family, _, vm_id, service_id = _SOCKADDR_HV.unpack(data)
        if family != AF_HYPERV:
            raise ValueError(f"SOCKADDR_HV has family AF_HYPERV ({AF_HYPERV}), not {family}")
        return cls(VmId.from_bytes_le(vm_id), ServiceId.from_bytes_le(service_id))


class AddressText(NamedTuple):
    """An address as somebody wrote it: each half a GUID, a word, a port or a name still to be looked up."""

    vm: str
    service: str

    def url(self) -> str:
        """``hvsocket://VM/SERVICE``, with names percent-encoded."""
        from urllib.parse import quote  # here, as most processes take no URL apart and write none

        return f"{URL_SCHEME}://{quote(self.vm, safe='')}/{quote(self.service, safe='')}"


def parse_url(text: str) -> AddressText:
    """Take ``hvsocket://VM/SERVICE`` apart; names are decoded and not looked up.

    Raises:
        ValueError: another scheme, or a half is missing.
    """
    from urllib.parse import unquote

    scheme, found, rest = text.partition("://")
    vm, slash, service = rest.partition("/")
    if not found or scheme.lower() != URL_SCHEME or not slash or not vm or not service or "/" in service:
        raise ValueError(f"not an address: {text!r} (expected like {URL_SCHEME}://parent/HV%20Socket%20Demo)")
    return AddressText(unquote(vm, errors="strict"), unquote(service, errors="strict"))


def parse_vm_id(text: str) -> VmId | None:
    """The VmId that `text` spells as a GUID or a well-known word, or None when it must be a partition's name."""
    known = WELL_KNOWN_VMIDS.get(text.lower())
    return known if known is not None else _parse_guid(VmId, text)


def parse_service_id(text: str) -> ServiceId | None:
    """The ServiceId that `text` spells as a GUID or a port, or None when it must be a service's name.

    Ports are decimal or hexadecimal with ``0x``.
    """
    number = parse_number(text)
    if number is not None:
        return ServiceId.from_port(number) if number <= VSOCK_PORT_MAX else None
    return _parse_guid(ServiceId, text)


def parse_number(text: str) -> int | None:
    """The number that `text` spells, decimal or hexadecimal with ``0x``, or None; it may be more than 32 bits."""
    lower = text.lower()
    return int(lower, 16 if lower.startswith("0x") else 10) if _NUMBER.match(lower) else None


def _parse_guid(cls: type[_G], text: str) -> _G | None:
    try:
        return cls(text)
    except ValueError:
        return None


def describe_vm_id(vm_id: VmId) -> str:
    """The shortest text that :func:`parse_vm_id` reads back as `vm_id`."""
    return _WORD_OF.get(vm_id, str(vm_id))


def describe_service_id(service_id: ServiceId) -> str:
    """The shortest text that :func:`parse_service_id` reads back as `service_id`."""
    return str(service_id) if service_id.port is None else str(service_id.port)
