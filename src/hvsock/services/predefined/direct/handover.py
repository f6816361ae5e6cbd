"""The hand-over: one line each way, by which host and guest give each other their public keys.

::

    host:   HVSOCK-DIRECT 1 ssh-ed25519 AAAA...
    guest:  HVSOCK-DIRECT 1 kept root ssh-ed25519 AAAA...
    guest:  HVSOCK-DIRECT refused TEXT

"kept" is "boot" where the host key does not outlive the guest's boot; "root" is who commands run as by default.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import sys
from dataclasses import dataclass
from socket import socket
from typing import Final, Self

from hvsock.errors import LostError, ProtocolError, RefusedError

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

FIRST_BYTE: Final = b"H"
"""What a hand-over begins with; SSH begins with "SSH-"."""
MAX_LINE_BYTES: Final = 512
"""Longest line with its end; with an ed25519 key it has some 150 bytes."""
KIND: Final = "ssh-ed25519"
"""The only kind of key."""
_PREFIX: Final = "HVSOCK-DIRECT 1 "
_REFUSED: Final = "HVSOCK-DIRECT refused "
_KEY_HEAD: Final = b"\x00\x00\x00\x0b" + KIND.encode() + b"\x00\x00\x00\x20"
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?")


@dataclass(frozen=True, slots=True)
class GuestIdentity:
    """What a guest says of itself.

    Attributes:
        key: its host key, as "ssh-ed25519 AAAA...".
        kept: whether the key outlives its boot.
        user: whom commands run as by default.
    """

    key: str
    kept: bool
    user: str

    def line(self) -> bytes:
        """It as the guest's line."""
        return f"{_PREFIX}{'kept' if self.kept else 'boot'} {self.user} {self.key}\n".encode()

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read the guest's line.

        Raises:
            RefusedError: the guest refuses.
            ProtocolError: it is no such line.
        """
        text = line.decode("ascii", errors="replace").removesuffix("\n")
        if text.startswith(_REFUSED):
            reason = "".join(c if c.isprintable() else "?" for c in text.removeprefix(_REFUSED))
            raise RefusedError(f"the guest refuses: {reason}")
        match text.removeprefix(_PREFIX).split(" ", 2) if text.startswith(_PREFIX) else []:
            case ["kept" | "boot" as kept, user, key] if _USER.fullmatch(user):
                return cls(checked_key(key), kept == "kept", user)
        raise ProtocolError("the guest's answer is none of Direct's; is its agent of another version?")


def refusal(text: str) -> bytes:
    """The guest's line where it refuses."""
    return f"{_REFUSED}{text}".encode("ascii", errors="replace")[: MAX_LINE_BYTES - 1] + b"\n"


def question(key: str) -> bytes:
    """The host's line, with its public key."""
    return f"{_PREFIX}{key}\n".encode()


def parse_question(line: bytes) -> str:
    """The public key in the host's line.

    Raises:
        ProtocolError: it is no such line.
    """
    text = line.decode("ascii", errors="replace").removesuffix("\n")
    if not text.startswith(_PREFIX):
        raise ProtocolError("a hand-over of another version")
    return checked_key(text.removeprefix(_PREFIX))


def checked_key(text: str) -> str:
    """`text` where it is an ed25519 public key without a comment.

    Raises:
        ProtocolError: it is not.
    """
    kind, _, encoded = text.partition(" ")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if kind != KIND or not raw.startswith(_KEY_HEAD) or len(raw) != len(_KEY_HEAD) + 32:
        raise ProtocolError(f"a key in a hand-over is no {KIND} key")
    return text


async def read_line(sock: socket) -> bytes:
    """The next line of `sock`, and not a byte more, for what follows is SSH's.

    Raises:
        LostError: the connection ended.
        ProtocolError: the line is too long.
    """
    loop = asyncio.get_running_loop()
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) >= MAX_LINE_BYTES:
            raise ProtocolError(f"a line of a hand-over has more than {MAX_LINE_BYTES} bytes")
        byte = await loop.sock_recv(sock, 1)
        if not byte:
            raise LostError("the connection ended in the hand-over of keys")
        line += byte
    return bytes(line)
