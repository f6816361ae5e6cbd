"""Frames of the file copy protocol: their bodies as objects, and the bounds of each (pure)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from hvsock.errors import (
    BusyError,
    DuplicateError,
    HvsockError,
    LostError,
    NegotiationError,
    NotFoundError,
    NotReadyError,
    ProtocolError,
    RefusedError,
    RemoteError,
    StateError,
    UsageError,
)

MAGIC: Final = b"HVFC"
"""What a connection begins with, so that a stranger is told from a peer."""
VERSIONS: Final = (1,)
"""Versions of the protocol that this module speaks."""
BLOCK_BYTES: Final = 256 * 1024
"""Longest block of a file: it fits into a processor's cache, and a socket's buffer."""
RESUME_BYTES: Final = 1 << 20
"""From this size on a file is resumed, which costs one round trip; a smaller one is sent again sooner."""
MAX_NAME_BYTES: Final = 255
"""Longest name: NAME_MAX of every Linux file system."""
MAX_PATH_BYTES: Final = 4095
"""Longest path or target of a link: PATH_MAX without its NUL."""
MAX_TEXT_BYTES: Final = 1024
"""Longest text of an error."""
MAX_SIZE: Final = (1 << 63) - 1
"""Largest size of a file: off_t."""
UNWANTED: Final = (1 << 64) - 1
"""What a receiver has of a file of which it wants nothing; the sender goes on to its end, without any DATA."""
MAX_VERSIONS: Final = 16
"""Most versions that a HELLO lists."""

HEADER: Final = struct.Struct("!BI")


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    PUT = 2
    GET = 3
    PLAN = 4
    FOLDER = 5
    LEAVE = 6
    LINK = 7
    FILE = 8
    DATA = 9
    TAIL = 10
    ABORT = 11
    SKIPPED = 12
    HAVE = 13
    FROM = 14
    FINISH = 15
    FAILED = 16
    DONE = 17
    ERROR = 18
    ALIVE = 19


class Overwrite(IntEnum):
    """What a receiver does where there is a file of that name with other contents."""

    REFUSE = 0
    """It leaves it, and reports a failure."""
    KEEP = 1
    """It leaves it, and all is well."""
    REPLACE = 2
    """It replaces it."""


_META = struct.Struct("!IqQ")
_PUT = struct.Struct("!BB")
_PLAN = struct.Struct("!QQ")
_PLACE = struct.Struct("!QI")
_CRC = struct.Struct("!I")
_DONE = struct.Struct("!6Q")
_ERRNO = struct.Struct("!BI")
_LENGTH = struct.Struct("!H")

MAX_BODY_BYTES: Final = {
    Kind.HELLO: len(MAGIC) + 2 * MAX_VERSIONS,
    Kind.PUT: _PUT.size + MAX_PATH_BYTES,
    Kind.GET: 1 + MAX_PATH_BYTES,
    Kind.PLAN: _PLAN.size,
    Kind.FOLDER: _META.size + MAX_NAME_BYTES,
    Kind.LEAVE: 0,
    Kind.LINK: _META.size + _LENGTH.size + MAX_NAME_BYTES + MAX_PATH_BYTES,
    Kind.FILE: _META.size + MAX_NAME_BYTES,
    Kind.DATA: BLOCK_BYTES,
    Kind.TAIL: _CRC.size,
    Kind.ABORT: MAX_TEXT_BYTES,
    Kind.SKIPPED: _LENGTH.size + MAX_NAME_BYTES + MAX_TEXT_BYTES,
    Kind.HAVE: _PLACE.size,
    Kind.FROM: 8,
    Kind.FINISH: 0,
    Kind.FAILED: _LENGTH.size + MAX_PATH_BYTES + MAX_TEXT_BYTES,
    Kind.DONE: _DONE.size,
    Kind.ERROR: _ERRNO.size + MAX_TEXT_BYTES,
    Kind.ALIVE: 0,
}
"""The longest body of each kind; a longer one ends the connection before it is read."""

_ERRORS: Final = (
    *(RemoteError, OSError, UsageError, NotFoundError, DuplicateError, RefusedError, BusyError, NotReadyError),
    *(StateError, LostError, ProtocolError, NegotiationError),
)
"""The classes of errors by their numbers in ERROR frames; the order is part of the protocol."""


def frame(kind: Kind, body: bytes = b"") -> bytes:
    """A whole frame."""
    return HEADER.pack(kind, len(body)) + body


def header_of(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[Kind, int]:
    """The kind of a frame, and the length of its body.

    Raises:
        ProtocolError: there is no such kind, or the body is too long for it.
    """
    number, length = HEADER.unpack_from(data, offset)
    try:
        kind = Kind(number)
    except ValueError:
        raise ProtocolError(f"the peer sent a frame of the unknown kind {number}") from None
    if length > MAX_BODY_BYTES[kind]:
        raise ProtocolError(f"the peer sent a {kind.name} of {length} bytes; {MAX_BODY_BYTES[kind]} are the most")
    return kind, length


def hello(versions: tuple[int, ...]) -> bytes:
    """A HELLO frame."""
    return frame(Kind.HELLO, MAGIC + b"".join(_LENGTH.pack(one) for one in versions))


def versions_of(body: bytes) -> tuple[int, ...]:
    """The versions that a HELLO lists.

    Raises:
        ProtocolError: it is none.
    """
    if not body.startswith(MAGIC) or len(body) % 2 or len(body) == len(MAGIC):
        raise ProtocolError("the peer does not speak the file copy protocol")
    return tuple(one for (one,) in _LENGTH.iter_unpack(body[len(MAGIC) :]))


@dataclass(frozen=True, slots=True)
class Put:
    """Asks to write.

    Attributes:
        path: where to, an absolute path.
        overwrite: what is done with files that are there.
        parents: whether folders on the way are made.
    """

    path: bytes
    overwrite: Overwrite
    parents: bool

    def to_frame(self) -> bytes:
        """As a frame."""
        return frame(Kind.PUT, _PUT.pack(self.overwrite, self.parents) + self.path)

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Out of a frame's body; ProtocolError if it is none."""
        overwrite, parents = _unpacked(_PUT, body)
        try:
            return cls(body[_PUT.size :], Overwrite(overwrite), bool(parents))
        except ValueError:
            raise ProtocolError(f"the peer asked for the unknown way {overwrite} to overwrite") from None


@dataclass(frozen=True, slots=True)
class Get:
    """Asks to read.

    Attributes:
        path: what, an absolute path.
        recursive: whether it may be a folder.
    """

    path: bytes
    recursive: bool

    def to_frame(self) -> bytes:
        """As a frame."""
        return frame(Kind.GET, bytes([self.recursive]) + self.path)

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Out of a frame's body; ProtocolError if it is none."""
        if not body:
            raise ProtocolError("the peer sent a GET without a path")
        return cls(body[1:], bool(body[0]))


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is to come, as far as the sender knows: `entries` of every kind, and `size` bytes."""

    entries: int
    size: int

    def to_frame(self) -> bytes:
        """As a frame."""
        return frame(Kind.PLAN, _PLAN.pack(self.entries, self.size))

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Out of a frame's body; ProtocolError if it is none."""
        return cls(*_unpacked(_PLAN, body, exact=True))


@dataclass(frozen=True, slots=True)
class Meta:
    """A FOLDER, FILE or LINK.

    Attributes:
        name: one component of a path.
        mode: permission bits.
        mtime_ns: when it changed last, in nanoseconds since 1970.
        size: bytes of a file; 0 for the rest.
        target: that of a link; empty for the rest.
    """

    name: bytes
    mode: int
    mtime_ns: int
    size: int = 0
    target: bytes = b""

    def to_frame(self, kind: Kind) -> bytes:
        """As a frame of `kind`."""
        fixed = _META.pack(self.mode, self.mtime_ns, self.size)
        if kind is Kind.LINK:
            return frame(kind, fixed + _LENGTH.pack(len(self.name)) + self.name + self.target)
        return frame(kind, fixed + self.name)

    @classmethod
    def from_body(cls, kind: Kind, body: bytes) -> Self:
        """Out of a frame's body.

        Raises:
            ProtocolError: it is none, or its name is no single component, or its size is none.
        """
        mode, mtime_ns, size = _unpacked(_META, body)
        name, target = body[_META.size :], b""
        if kind is Kind.LINK:
            name, target = _split(name)
            if not target or b"\0" in target or len(target) > MAX_PATH_BYTES:
                raise ProtocolError("the peer sent a link with an impossible target")
        check_name(name)
        if size > MAX_SIZE or (size and kind is not Kind.FILE):
            raise ProtocolError(f"the peer sent a {kind.name} with the impossible size {size}")
        return cls(name, mode, mtime_ns, size, target)


def check_name(name: bytes) -> None:
    """Check that `name` is one component, that leads nowhere else.

    Raises:
        ProtocolError: it is not.
    """
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name or len(name) > MAX_NAME_BYTES:
        raise ProtocolError(f"the peer sent {name[:64]!r} for a name")


@dataclass(frozen=True, slots=True)
class Have:
    """What a receiver has of a file: `size` bytes with the CRC-32 `crc`."""

    size: int
    crc: int

    def to_frame(self) -> bytes:
        """As a frame."""
        return frame(Kind.HAVE, _PLACE.pack(self.size, self.crc))

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Out of a frame's body; ProtocolError if it is none."""
        return cls(*_unpacked(_PLACE, body, exact=True))


@dataclass(frozen=True, slots=True)
class Failure:
    """What was not copied.

    Attributes:
        path: relative to where the copy began.
        reason: one line.
    """

    path: bytes
    reason: str

    def to_frame(self, kind: Kind) -> bytes:
        """As a FAILED or SKIPPED frame."""
        longest = MAX_NAME_BYTES if kind is Kind.SKIPPED else MAX_PATH_BYTES
        path = self.path[:longest]
        return frame(kind, _LENGTH.pack(len(path)) + path + _text(self.reason))

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Out of a frame's body; ProtocolError if it is none."""
        path, reason = _split(body)
        return cls(path, reason.decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Counts:
    """What a receiver did.

    Attributes:
        files, folders, links: how many were put in place.
        unchanged: how many were there already, the very same, or were to be kept.
        size: bytes that came over the connection.
        resumed: bytes that were there from an earlier try.
    """

    files: int = 0
    folders: int = 0
    links: int = 0
    unchanged: int = 0
    size: int = 0
    resumed: int = 0

    def to_frame(self) -> bytes:
        """As a frame."""
        fields = (self.files, self.folders, self.links, self.unchanged, self.size, self.resumed)
        return frame(Kind.DONE, _DONE.pack(*fields))

    @classmethod
    def from_body(cls, body: bytes) -> Self:
        """Out of a frame's body; ProtocolError if it is none."""
        return cls(*_unpacked(_DONE, body, exact=True))


def number_frame(kind: Kind, number: int) -> bytes:
    """A FROM frame, or a TAIL."""
    return frame(kind, number.to_bytes(MAX_BODY_BYTES[kind], "big"))


def number_of(kind: Kind, body: bytes) -> int:
    """The number in a FROM frame, or in a TAIL; ProtocolError if it is none."""
    if len(body) != MAX_BODY_BYTES[kind]:
        raise ProtocolError(f"the peer sent a {kind.name} of {len(body)} bytes")
    return int.from_bytes(body, "big")


def abort_frame(reason: str) -> bytes:
    """An ABORT frame."""
    return frame(Kind.ABORT, _text(reason))


def error_frame(error: HvsockError | OSError) -> bytes:
    """An ERROR frame."""
    code, number = 0, 0
    for index, kind in enumerate(_ERRORS):
        if type(error) is kind:
            code = index
    text = str(error)
    if isinstance(error, OSError) and not isinstance(error, HvsockError):
        code, number, text = _ERRORS.index(OSError), error.errno or 0, why(error)
    return frame(Kind.ERROR, _ERRNO.pack(code, number) + _text(text))


def error_of(body: bytes) -> HvsockError | OSError:
    """The error in an ERROR frame; ProtocolError if it is none."""
    code, number = _unpacked(_ERRNO, body)
    text = body[_ERRNO.size :].decode("utf-8", "replace")
    kind = _ERRORS[code] if code < len(_ERRORS) else RemoteError
    if kind is OSError:
        return OSError(number, text)
    made = kind(text)
    assert isinstance(made, HvsockError)
    return made


def why(error: OSError | HvsockError) -> str:
    """What an error says, with the path where it has one."""
    if isinstance(error, HvsockError) or not error.strerror:
        return str(error) or type(error).__name__
    name = error.filename
    if isinstance(name, (str, bytes)):
        shown = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
        return f"{shown}: {error.strerror}"
    return error.strerror


def _text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")[:MAX_TEXT_BYTES]


def _split(body: bytes) -> tuple[bytes, bytes]:
    (length,) = _unpacked(_LENGTH, body)
    rest = body[_LENGTH.size :]
    if length > len(rest):
        raise ProtocolError("the peer sent a text that is longer than its frame")
    return rest[:length], rest[length:]


def _unpacked(layout: struct.Struct, body: bytes, *, exact: bool = False) -> tuple[int, ...]:
    if len(body) < layout.size or (exact and len(body) != layout.size):
        raise ProtocolError(f"the peer sent a frame of {len(body)} bytes, which has {layout.size}")
    return layout.unpack_from(body)
