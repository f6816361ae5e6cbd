"""The pools of data exchange: who writes which, and how much goes in (pure)."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final

from hvsock.errors import RefusedError, UsageError

MAX_KEY_BYTES: Final = 512
"""Longest key, in UTF-8; the original's bound."""
MAX_VALUE_BYTES: Final = 1 << 20
"""Largest value: 1 MiB, where the original has 2 KiB. What is larger is a file, and goes by file copy."""
MAX_POOL_KEYS: Final = 1024
"""Most keys in one pool, so that a listing has an end."""
MAX_POOL_BYTES: Final = 8 << 20
"""Most bytes of all keys and values of one pool: what one side can make the other hold for a listing."""
MAX_SET_KEYS: Final = 256
"""Most keys that are set or deleted at once."""
MAX_SET_BYTES: Final = 4 << 20
"""Most bytes of keys and values that are set at once."""
MAX_LABEL_BYTES: Final = 64
"""Longest label of an owner, in UTF-8."""


class Pool(IntEnum):
    """A pool; the numbers are the original's."""

    EXTERNAL = 0
    """What the host tells the guest."""
    GUEST = 1
    """What programs in the guest tell the host."""
    AUTO = 2
    """What the guest's agent says of the guest by itself."""
    AUTO_EXTERNAL = 3
    """What the host says of itself and of the VM by itself."""

    @property
    def word(self) -> str:
        """Its name as commands take it."""
        return self.name.lower()


class Side(StrEnum):
    """A side of the exchange."""

    HOST = "host"
    GUEST = "guest"


WRITERS: Final = {
    Pool.EXTERNAL: Side.HOST,
    Pool.GUEST: Side.GUEST,
    Pool.AUTO: Side.GUEST,
    Pool.AUTO_EXTERNAL: Side.HOST,
}
"""Which side writes a pool; the other reads and acknowledges."""


def own_pool(side: Side) -> Pool:
    """The pool that a side's programs write to."""
    return Pool.EXTERNAL if side is Side.HOST else Pool.GUEST


def check_writer(pool: Pool, side: Side) -> None:
    """Refuse to change a pool to the side that only reads it.

    Raises:
        RefusedError: it is the other side's.
    """
    if WRITERS[pool] is not side:
        raise RefusedError(
            f"the pool {pool.word} is written by the {WRITERS[pool]}; the {side} writes {own_pool(side).word}"
        )


def check_reader(pool: Pool, side: Side) -> None:
    """Refuse to acknowledge to the side that wrote.

    Raises:
        RefusedError: it wrote the pool itself.
    """
    if WRITERS[pool] is side:
        raise RefusedError(f"the {side} writes the pool {pool.word}: it is for the other side to acknowledge")


def check_key(key: str) -> None:
    """Refuse what is no key.

    Raises:
        UsageError: it is empty, too long, or has a zero or a lone surrogate in it.
    """
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{key!a} is no key: it is not Unicode") from None
    if not key or "\0" in key:
        raise UsageError(f"{key!a} is no key: a key has at least one character, and no zero")
    if length > MAX_KEY_BYTES:
        raise UsageError(f"a key of {length} bytes; {MAX_KEY_BYTES} are the most")


def check_pairs(pairs: dict[str, bytes]) -> None:
    """Refuse what cannot be set at once.

    Raises:
        UsageError: a key or a value is none, or there are too many.
    """
    if not pairs:
        raise UsageError("nothing to set: give at least one key")
    if len(pairs) > MAX_SET_KEYS:
        raise UsageError(f"{len(pairs)} keys at once; {MAX_SET_KEYS} are the most")
    for key, value in pairs.items():
        check_key(key)
        if len(value) > MAX_VALUE_BYTES:
            raise UsageError(
                f"the value of {key!a} has {len(value)} bytes; {MAX_VALUE_BYTES} are the most: copy a file instead"
            )
    total = sum(len(key.encode()) + len(value) for key, value in pairs.items())
    if total > MAX_SET_BYTES:
        raise UsageError(f"{total} bytes at once; {MAX_SET_BYTES} are the most")


def owner_of(side: Side, label: str) -> str:
    """Who owns what a side sets: the side itself, or a program of it that has a label.

    Raises:
        UsageError: the label is none.
    """
    if not label:
        return side
    if len(label.encode("utf-8", "replace")) > MAX_LABEL_BYTES or not label.isprintable():
        raise UsageError(f"{label!a} is no label: it has at most {MAX_LABEL_BYTES} bytes, all of them printable")
    return f"{side}/{label}"


def pool_of(word: str) -> Pool:
    """The pool that a word means.

    Raises:
        UsageError: none.
    """
    try:
        return Pool[word.upper()]
    except KeyError:
        raise UsageError(f"there is no pool {word!a}; there are {', '.join(one.word for one in Pool)}") from None
