"""Guest memory: the regions that the front end shares, and views of them by address (pure).

A guest names its buffers by *guest* addresses; the front end names the rings by its own, *user*, addresses.
Both are looked up here, and nothing outside a region can be reached. No view is a copy: the guest goes on
writing while the device reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hvsock.errors import HvsockError

ADDRESS_SPACE: Final = 1 << 64
"""Where addresses end, in bytes: they have 64 bits."""

Span = tuple[int, int, memoryview]
"""First address, address behind the last, and the bytes in between."""


class GuestError(HvsockError):
    """The guest, or its front end, broke the rules: the device stops, and waits for a reset."""


@dataclass(frozen=True, slots=True)
class Region:
    """One piece of guest memory.

    Attributes:
        guest_address: where the guest has it.
        user_address: where the front end has it.
        size: its length in bytes.
        view: the memory itself: writable, of unsigned bytes, `size` of them.
    """

    guest_address: int
    user_address: int
    size: int
    view: memoryview


class GuestMemory:
    """All of a guest's memory that the device can see.

    Attributes:
        spans: the regions by guest address, in ascending order; for hot paths that look up by themselves.
    """

    __slots__ = ("_user_spans", "spans")

    def __init__(self, regions: Sequence[Region]) -> None:
        """Memory of these regions, in any order.

        Raises:
            GuestError: a region is empty, has a view of another size, goes beyond the address space or
                overlaps with another; the front end's doing.
        """
        for region in regions:
            if not 0 < region.size == len(region.view):
                raise GuestError(f"a region of {region.size} bytes of memory, with {len(region.view)} to map")
        self.spans = _ordered((region.guest_address, region.size, region.view) for region in regions)
        self._user_spans = _ordered((region.user_address, region.size, region.view) for region in regions)

    def view(self, address: int, length: int) -> memoryview:
        """The `length` bytes at a guest address.

        Raises:
            GuestError: they are not inside one region.
        """
        return _inside(self.spans, address, length)

    def user_view(self, address: int, length: int) -> memoryview:
        """The `length` bytes at a user address.

        Raises:
            GuestError: they are not inside one region.
        """
        return _inside(self._user_spans, address, length)

    def views(self, address: int, length: int) -> list[memoryview]:
        """The `length` bytes at a guest address, in pieces where they cross into a region that adjoins.

        Raises:
            GuestError: a part of them is not inside any region.
        """
        found = []
        missing = length
        for first, end, view in self.spans:
            if first <= address < end and missing > 0:
                offset = address - first
                piece = view[offset : offset + missing]
                found.append(piece)
                address += len(piece)
                missing -= len(piece)
        if missing:
            raise GuestError(f"{missing} of {length} bytes at guest address {address:#x} are not in its memory")
        return found


def _ordered(regions: Iterable[Span]) -> tuple[Span, ...]:
    """The spans of regions given as (address, size, view), in ascending order."""
    spans = tuple(sorted(((at, at + size, view) for at, size, view in regions), key=lambda span: span[0]))
    end = 0
    for first, behind, _ in spans:
        if first < end or behind > ADDRESS_SPACE:
            raise GuestError(f"memory from {first:#x} to {behind:#x} overlaps, or leaves the address space")
        end = behind
    return spans


def _inside(spans: tuple[Span, ...], address: int, length: int) -> memoryview:
    """The part of one span that has these bytes."""
    for first, end, view in spans:
        if first <= address and address + length <= end:
            offset = address - first
            return view[offset : offset + length]
    raise GuestError(f"{length} bytes at address {address:#x} are not inside one region of memory")
