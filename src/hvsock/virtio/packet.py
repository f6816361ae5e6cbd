"""Packets of the virtio socket device: the 44-byte header, its numbers, and nothing else (pure).

Virtio 1.3, section 5.10.6; the names are those of linux/virtio_vsock.h. All integers are little endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

HOST_CID: Final = 2
"""The context id of the partition that a guest runs in (VMADDR_CID_HOST)."""
FIRST_GUEST_CID: Final = 3
"""Smaller ones are reserved (virtio 5.10.4)."""
LAST_GUEST_CID: Final = 0xFFFF_FFFE
"""The one above is VMADDR_CID_ANY."""

F_STREAM: Final = 1 << 0
F_SEQPACKET: Final = 1 << 1
F_NO_IMPLIED_STREAM: Final = 1 << 2
"""Feature bits of the device (virtio 5.10.3)."""

HEADER: Final = struct.Struct("<QQIIIHHIII")
"""src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt."""
HEADER_BYTES: Final = HEADER.size

STREAM: Final = 1
SEQPACKET: Final = 2
"""Types of a socket; others get RST."""

MAX_PAYLOAD_BYTES: Final = 64 << 10
"""Largest payload that is put into one packet (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux)."""


class Op(IntEnum):
    """What a packet is for (VIRTIO_VSOCK_OP_*)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """Flags of SHUTDOWN: hints of the sender that are never taken back."""

    NONE = 0
    RECEIVE = 1
    SEND = 2
    BOTH = 3


SEQ_EOM: Final = 1
SEQ_EOR: Final = 2
"""Flags of RW between SEQPACKET sockets: the last packet of a message, and of a record."""


class Header(NamedTuple):
    """A header by its fields; for what is not in a hurry."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int = 0
    type: int = STREAM
    op: int = Op.RW
    flags: int = 0
    buf_alloc: int = 0
    fwd_cnt: int = 0

    def pack(self) -> bytes:
        """:data:`HEADER_BYTES` bytes."""
        return HEADER.pack(*self)

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Header:
        """The header at the beginning of `data`, which holds at least :data:`HEADER_BYTES`."""
        return cls._make(HEADER.unpack_from(data))
