"""The messages of vhost-user: how a front end (QEMU) hands a virtio device to its back end (pure).

A message is a header (request, flags, payload size; 32 bits each), a payload, and descriptors that travel
with its first byte. All integers have the host's byte order, and hosts of this package are little-endian.

What cannot be parsed raises ProtocolError, not GuestError: the front end is a program on the host, the guest
has no part in it, and what ends is the session with that program.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from hvsock.errors import ProtocolError

_HEADER = struct.Struct("<III")
_STATE = struct.Struct("<II")
_ADDRESSES = struct.Struct("<IIQQQQ")
_U64 = struct.Struct("<Q")
_COUNT = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")

HEADER_BYTES: Final = _HEADER.size
"""Size of a header."""
MAX_PAYLOAD_BYTES: Final = 4096
"""Most bytes in a payload; the longest known one, eight regions of memory or 256 bytes of config, has 268."""
MAX_REGIONS: Final = 8
"""Most regions in a memory table, and so most descriptors with one message (vhost-user.rst)."""
MAX_CONFIG_BYTES: Final = 256
"""Most bytes of config space in one message (vhost-user.rst)."""

_VERSION = 1
_VERSION_MASK = 3
_NO_DESCRIPTOR = 1 << 8
_INDEX_MASK = 0xFF


class Request(IntEnum):
    """The requests that a back end of a vsock device knows; others come from newer or richer front ends."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    SET_STATUS = 39
    GET_STATUS = 40


class Flag(IntFlag):
    """Flags of a header beside the version."""

    NONE = 0
    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


class Feature(IntFlag):
    """Features that any device has; the vsock device's own are in :mod:`.packet`."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


class ProtocolFeature(IntFlag):
    """Features that front end and back end agree on."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9
    STATUS = 1 << 16


class Message(NamedTuple):
    """One message.

    Attributes:
        request: which; a :class:`Request` where it is known.
        flags: without the version.
        payload: what follows the header.
    """

    request: int
    flags: Flag
    payload: bytes

    def pack(self) -> bytes:
        """Header and payload."""
        return _HEADER.pack(self.request, _VERSION | self.flags, len(self.payload)) + self.payload


class MemoryRegion(NamedTuple):
    """One line of a memory table.

    Attributes:
        guest_address: where the guest has it.
        size: its length in bytes.
        user_address: where the front end has it.
        mmap_offset: where it begins in the file of its descriptor, in bytes.
    """

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


class RingAddresses(NamedTuple):
    """Where a queue is, in user addresses."""

    descriptors: int
    available: int
    used: int


def payload_bytes(header: bytes) -> int:
    """How many bytes of payload follow the :data:`HEADER_BYTES` bytes of a header.

    Raises:
        ProtocolError: it is no request's header; the front end's doing.
    """
    return _parse_header(header)[2]


def parse(data: bytes) -> Message:
    """The request in `data`: a header and its payload.

    Raises:
        ProtocolError: it is none; the front end's doing.
    """
    request, flags, size = _parse_header(data[:HEADER_BYTES])
    if len(data) != HEADER_BYTES + size:
        raise ProtocolError(f"vhost-user request {request} has {len(data) - HEADER_BYTES} bytes, not {size}")
    return Message(request, flags, data[HEADER_BYTES:])


def parse_reply(data: bytes, request: Request) -> bytes:
    """The payload of the reply to `request`, from header and payload.

    Raises:
        ProtocolError: it is no such reply; the back end's doing.
    """
    if len(data) < HEADER_BYTES:
        raise ProtocolError(f"a vhost-user reply of {len(data)} bytes")
    found, flags, size = _HEADER.unpack_from(data)
    if (found, flags, size) != (request, _VERSION | Flag.REPLY, len(data) - HEADER_BYTES):
        raise ProtocolError(f"vhost-user {found}, flags {flags:#x}, {size} bytes: not the reply to {request.name}")
    return data[HEADER_BYTES:]


def _parse_header(header: bytes) -> tuple[int, Flag, int]:
    if len(header) != HEADER_BYTES:
        raise ProtocolError(f"a vhost-user header has {HEADER_BYTES} bytes, not {len(header)}")
    request, flags, size = _HEADER.unpack(header)
    if flags & _VERSION_MASK != _VERSION or flags & Flag.REPLY or size > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"not a vhost-user request: {request}, flags {flags:#x}, {size} bytes")
    return request, Flag(flags & Flag.NEED_REPLY), size


def pack_reply(request: int, payload: bytes) -> bytes:
    """A reply, header and payload."""
    return Message(request, Flag.REPLY, payload).pack()


def pack_u64(value: int) -> bytes:
    """The payload of a message about features, status or the number of queues, and of an acknowledgement."""
    return _U64.pack(value)


def parse_u64(payload: bytes) -> int:
    """The number in such a payload.

    Raises:
        ProtocolError: the payload has another size.
    """
    (value,) = _unpack(_U64, payload)
    return value


def pack_vring_state(index: int, number: int) -> bytes:
    """The payload of a message that gives one number of queue `index`: size, base or whether it is enabled."""
    return _STATE.pack(index, number)


def parse_vring_state(payload: bytes) -> tuple[int, int]:
    """Index and number in such a payload.

    Raises:
        ProtocolError: the payload has another size.
    """
    index, number = _unpack(_STATE, payload)
    return index, number


def pack_vring_addresses(index: int, addresses: RingAddresses) -> bytes:
    """The payload of SET_VRING_ADDR."""
    return _ADDRESSES.pack(index, 0, addresses.descriptors, addresses.used, addresses.available, 0)


def parse_vring_addresses(payload: bytes) -> tuple[int, RingAddresses]:
    """Queue index and addresses of SET_VRING_ADDR; what it says of logging is for migration, not offered here.

    Raises:
        ProtocolError: the payload has another size.
    """
    index, _flags, descriptors, used, available, _log = _unpack(_ADDRESSES, payload)
    return index, RingAddresses(descriptors, available, used)


def pack_vring_descriptor(index: int, attached: bool) -> bytes:
    """The payload of SET_VRING_KICK, CALL and ERR, which come with a descriptor or without."""
    return _U64.pack(index if attached else index | _NO_DESCRIPTOR)


def parse_vring_descriptor(payload: bytes) -> tuple[int, bool]:
    """Queue index, and whether a descriptor comes with it.

    Raises:
        ProtocolError: the payload has another size, or bits that nobody has defined.
    """
    value = parse_u64(payload)
    if value & ~(_INDEX_MASK | _NO_DESCRIPTOR):
        raise ProtocolError(f"a queue's descriptor with {value:#x}")
    return value & _INDEX_MASK, not value & _NO_DESCRIPTOR


def pack_memory_table(regions: list[MemoryRegion]) -> bytes:
    """The payload of SET_MEM_TABLE."""
    return _COUNT.pack(len(regions), 0) + b"".join(_REGION.pack(*region) for region in regions)


def parse_memory_table(payload: bytes) -> list[MemoryRegion]:
    """The regions of SET_MEM_TABLE.

    Raises:
        ProtocolError: there are none, or more than :data:`MAX_REGIONS`, or the payload has another size.
    """
    if len(payload) < _COUNT.size:
        raise ProtocolError(f"a memory table of {len(payload)} bytes")
    count, _padding = _COUNT.unpack_from(payload)
    if not 0 < count <= MAX_REGIONS or len(payload) != _COUNT.size + count * _REGION.size:
        raise ProtocolError(f"a memory table of {len(payload)} bytes with {count} regions")
    return [MemoryRegion(*fields) for fields in _REGION.iter_unpack(payload[_COUNT.size :])]


def pack_config(offset: int, content: bytes) -> bytes:
    """The payload of GET_CONFIG, and of its reply: `content` begins at `offset` of the config space."""
    return _CONFIG.pack(offset, len(content), 0) + content


def parse_config(payload: bytes) -> tuple[int, bytes]:
    """Offset and content in such a payload; in a request the content counts for its length only.

    Raises:
        ProtocolError: the payload is too short or too long, or has another size than it says.
    """
    if len(payload) < _CONFIG.size:
        raise ProtocolError(f"{len(payload)} bytes about config space")
    offset, size, _flags = _CONFIG.unpack_from(payload)
    content = payload[_CONFIG.size :]
    if size != len(content) or size > MAX_CONFIG_BYTES:
        raise ProtocolError(f"{size} bytes of config space, of which there are {len(content)}")
    return offset, content


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes, not {layout.size}")
    return layout.unpack(payload)
