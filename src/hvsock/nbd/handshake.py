"""The handshake of NBD, "fixed newstyle", from the client's side: what is sent, and what comes (pure).

The server greets, the client says which export it wants (NBD_OPT_GO), and the server describes it. After that both
speak of blocks, which is the kernel's part. The numbers are those of the NBD project's proto.md.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from hvsock.errors import NotFoundError, ProtocolError, RefusedError, UsageError

GREETING_BYTES: Final = 18
"""Two magic numbers and the server's flags."""
REPLY_BYTES: Final = 20
"""What is ahead of each of the server's replies."""
MAX_REPLY_BYTES: Final = 8192
"""Longest text of a reply: a description of an export takes some ten bytes, a text for people at most 4,096."""
MAX_REPLIES: Final = 64
"""Most replies to one question: a server says one thing in each, and there are five."""
MAX_NAME_BYTES: Final = 4096
"""Longest name of an export, by the protocol."""
MIN_BLOCK_BYTES: Final = 512
"""The smallest block of a Linux device."""
MAX_BLOCK_BYTES: Final = 4096
"""The largest block of a Linux device, a page of memory."""
LONGEST_REQUEST_BYTES: Final = 32 << 20
"""What the kernel's client may ask for at once; servers that say nothing take as much."""
MAX_SIZE_BYTES: Final = 2**63 - 1
"""The end of what an offset in a file can say."""

_MAGIC: Final = b"NBDMAGIC"
_OPTION_MAGIC: Final = b"IHAVEOPT"
_REPLY: Final = struct.Struct(">QIII")
_REPLY_MAGIC: Final = 0x0003E889045565A9
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_GO: Final = 7
_INFO_EXPORT: Final = 0
_INFO_BLOCK_SIZE: Final = 3
_ACK: Final = 1
_INFO: Final = 3
_IS_ERROR: Final = 1 << 31
_UNSUPPORTED: Final = _IS_ERROR + 1
_POLICY: Final = _IS_ERROR + 2
_TLS_REQUIRED: Final = _IS_ERROR + 5
_UNKNOWN: Final = _IS_ERROR + 6


class Ability(IntFlag):
    """What a server can do, as far as the kernel's client makes use of it (NBD_FLAG_*)."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    FLUSH = 4
    FUA = 8
    ROTATIONAL = 16
    TRIM = 32
    WRITE_ZEROES = 64


_USED: Final = Ability(sum(Ability))


@dataclass(frozen=True, slots=True)
class Export:
    """What a server serves.

    Attributes:
        size: bytes.
        abilities: what the server can do with it.
        block_size: bytes of a block, of which the size is taken in whole ones.
    """

    size: int
    abilities: Ability
    block_size: int = MIN_BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Send:
    """To be sent."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Receive:
    """So many bytes are to be received, no more and no less."""

    length: int


Step = Generator[Send | Receive, bytes, Export]
"""Says what is to be done next, is given what was received, and returns what the server serves."""


def handshake(name: str = "") -> Step:
    """Ask for the export `name`; the empty one is the server's default.

    Raises:
        UsageError: there cannot be such a name.
        ProtocolError: the peer is no NBD server, or one that the kernel cannot use.
        NotFoundError: it has no such export.
        RefusedError: it does not serve that to us.
    """
    asked = name.encode()
    if len(asked) > MAX_NAME_BYTES:
        raise UsageError(f"an export's name has at most {MAX_NAME_BYTES} bytes, not {len(asked)}")
    flags = parse_greeting((yield Receive(GREETING_BYTES)))
    yield Send(struct.pack(">I", _FIXED_NEWSTYLE | flags & _NO_ZEROES) + _go(asked))
    export: Export | None = None
    block_size = MIN_BLOCK_BYTES
    for _ in range(MAX_REPLIES):
        kind, length = _parse_reply((yield Receive(REPLY_BYTES)))
        data = (yield Receive(length)) if length else b""
        if kind == _ACK:
            break
        if kind & _IS_ERROR:
            raise _refusal(kind, data, name)
        if kind == _INFO and len(data) >= 2:
            (what,) = struct.unpack_from(">H", data)
            if what == _INFO_EXPORT:
                export = _parse_export(data)
            elif what == _INFO_BLOCK_SIZE:
                block_size = _parse_block_size(data)
    else:
        raise ProtocolError(f"the server says more than {MAX_REPLIES} things of one export")
    if export is None:
        raise ProtocolError("the server agreed, and did not say how large the export is")
    if export.size < block_size:
        raise ProtocolError(f"the export has {export.size} bytes, which is less than a block of {block_size}")
    return Export(export.size, export.abilities, block_size)


def parse_greeting(data: bytes) -> int:
    """The flags of a server.

    Raises:
        ProtocolError: it is none, or an old one.
    """
    if data[:8] != _MAGIC:
        raise ProtocolError("what answers is no NBD server: it does not greet as one")
    if data[8:16] != _OPTION_MAGIC:
        raise ProtocolError("the NBD server is an oldstyle one; qemu-nbd, nbdkit and nbd-server 3 are not")
    flags = int.from_bytes(data[16:], "big")
    if not flags & _FIXED_NEWSTYLE:
        raise ProtocolError(
            "the NBD server has no fixed newstyle handshake; qemu-nbd, nbdkit and nbd-server 3 have"
        )
    return flags


def _go(name: bytes) -> bytes:
    data = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
    return _OPTION_MAGIC + struct.pack(">II", _GO, len(data)) + data


def _parse_reply(data: bytes) -> tuple[int, int]:
    magic, option, kind, length = _REPLY.unpack(data)
    if magic != _REPLY_MAGIC or option != _GO:
        raise ProtocolError("the NBD server's reply is none")
    if length > MAX_REPLY_BYTES:
        raise ProtocolError(f"the NBD server's reply has {length} bytes, and at most {MAX_REPLY_BYTES} are taken")
    return int(kind), int(length)


def _parse_export(data: bytes) -> Export:
    if len(data) != 12:
        raise ProtocolError("the NBD server's description of its export is none")
    size, flags = struct.unpack_from(">QH", data, 2)
    if size > MAX_SIZE_BYTES:
        raise ProtocolError(f"the export has {size} bytes, more than a disk can have")
    if not flags & Ability.HAS_FLAGS:
        raise ProtocolError("the NBD server does not say what it can do")
    return Export(size, Ability(flags & _USED))


def _parse_block_size(data: bytes) -> int:
    if len(data) != 14:
        raise ProtocolError("the NBD server's block sizes are none")
    smallest, longest = int.from_bytes(data[2:6], "big"), int.from_bytes(data[10:], "big")
    if smallest == 0 or smallest & (smallest - 1):
        raise ProtocolError(f"the NBD server's smallest block has {smallest} bytes, which is no power of two")
    if smallest > MAX_BLOCK_BYTES:
        raise ProtocolError(f"the NBD server's blocks have {smallest} bytes, and the kernel's {MAX_BLOCK_BYTES}")
    if longest < LONGEST_REQUEST_BYTES:
        raise ProtocolError(
            f"the NBD server takes {longest} bytes at once, and the kernel may ask for {LONGEST_REQUEST_BYTES}"
        )
    return max(smallest, MIN_BLOCK_BYTES)


def _refusal(kind: int, data: bytes, name: str) -> NotFoundError | RefusedError | ProtocolError:
    said = data.decode(errors="replace")
    text = f": it says {said!r}" if said else ""
    if kind == _UNKNOWN:
        return NotFoundError(f"the NBD server has no export {name!r}{text}; name another by --export")
    if kind == _POLICY:
        return RefusedError(f"the NBD server does not serve the export {name!r} to this machine{text}")
    if kind == _TLS_REQUIRED:
        return RefusedError("the NBD server wants TLS, which the kernel's client has not; serve it without")
    if kind == _UNSUPPORTED:
        return ProtocolError("the NBD server has no NBD_OPT_GO; qemu-nbd, nbdkit and nbd-server 3.15 have")
    return ProtocolError(f"the NBD server refuses, with code {kind - _IS_ERROR}{text}")
