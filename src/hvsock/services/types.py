"""Types of a message's fields that Python has no name for, and bounds of those that have no end."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

MAX_FIELD_BYTES: Final = 64 * 1024
"""Most bytes of a text or bytes field that states no bound: enough for a path or an error, not for a file."""
MAX_ITEMS: Final = 4096
"""Most items of a list or a map that states no bound of its own: the environment of a process has some hundred."""


class Limit(NamedTuple):
    """The bound of one field, as in ``Annotated[bytes, Limit(1 << 20)]``.

    Attributes:
        most: bytes of a text (in UTF-8) or of bytes, or items of a list or map.
    """

    most: int


class Width(NamedTuple):
    """How an integer goes over the wire.

    Attributes:
        name: what protobuf calls the type.
        least: the smallest value.
        most: the largest value.
    """

    name: str
    least: int
    most: int


UInt32 = Annotated[int, Width("uint32", 0, 2**32 - 1)]
"""An integer of 32 bits without a sign."""
UInt64 = Annotated[int, Width("uint64", 0, 2**64 - 1)]
"""An integer of 64 bits without a sign."""
INT64: Final = Width("int64", -(2**63), 2**63 - 1)
"""What a plain ``int`` is."""
