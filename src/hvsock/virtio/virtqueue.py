"""The device's side of a split virtqueue (virtio 1.3, 2.7), over memory that a running guest writes (pure).

The driver makes *chains* of descriptors available; the device takes them, uses their buffers, gives them
back, and publishes what it gave. The device reads every descriptor once and checks the copy, so a guest that
changes it meanwhile gains nothing. Indexes are shared with another processor: they are read and written as
single 16-bit items of a memoryview, with a memory barrier where their order counts. That is why big-endian
hosts are refused: items have the host's byte order, and the ring's is little endian.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

from .memory import GuestError, GuestMemory

if sys.byteorder != "little":
    raise ImportError("virtqueues have little-endian indexes; this computer is big-endian")

MAX_QUEUE_SIZE: Final = 1024
"""Most descriptors in a queue; the specification allows 32,768, front ends ask for 128 to 1,024."""
MAX_INDIRECT: Final = 1024
"""Most descriptors in an indirect table, so that one chain costs a bounded number of steps."""
MAX_CHAIN_BYTES: Final = 0xFFFF_FFFF
"""Most bytes in one chain: lengths in the used ring have 32 bits."""

NEXT: Final = 1
"""Flag of a descriptor: its field `next` names the one that follows."""
WRITE: Final = 2
"""Flag of a descriptor: the device writes the buffer; without it, it reads it."""
INDIRECT: Final = 4
"""Flag of a descriptor: the buffer is a table of descriptors."""
NO_INTERRUPT: Final = 1
"""Flag of the available ring: the driver wants no interrupt."""
NO_NOTIFY: Final = 1
"""Flag of the used ring: the device wants no kick."""

DESCRIPTOR: Final = struct.Struct("<QIHH")
"""A descriptor: guest address, length in bytes, flags, next."""

BULK: Final = 4
"""So many chains are given back at once by a copy; for fewer, one by one is faster."""

_FLAGS = 0
_INDEX = 1
_ENTRIES = 2
"""Where flags, index and entries are, in 16-bit items of the available ring; the used ring begins likewise."""


class Ring(NamedTuple):
    """Where a queue is.

    Attributes:
        size: number of descriptors.
        descriptors: the descriptor table: 16 * size bytes.
        available: the available ring: 6 + 2 * size bytes.
        used: the used ring: 6 + 8 * size bytes.
    """

    size: int
    descriptors: memoryview
    available: memoryview
    used: memoryview

    @classmethod
    def at(
        cls,
        memory: GuestMemory,
        size: int,
        descriptors_address: int,
        available_address: int,
        used_address: int,
    ) -> Ring:
        """The ring of `size` descriptors at these user addresses.

        Raises:
            GuestError: the size is no power of two or too large, or an address is not aligned or not in
                memory; the front end's doing.
        """
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise GuestError(f"a queue has a power of two of descriptors, at most {MAX_QUEUE_SIZE}, not {size}")
        if descriptors_address % 16 or available_address % 2 or used_address % 4:
            raise GuestError(
                f"a ring is not aligned: {descriptors_address:#x}, {available_address:#x}, {used_address:#x}"
            )
        return cls(
            size,
            memory.user_view(descriptors_address, 16 * size),
            memory.user_view(available_address, 6 + 2 * size),
            memory.user_view(used_address, 6 + 8 * size),
        )


class Virtqueue:
    """One queue of a running device.

    After a :class:`GuestError` the queue is not used any more.

    Attributes:
        size: number of descriptors.
    """

    __slots__ = (
        "_available",
        "_descriptors",
        "_elements",
        "_event_idx",
        "_fence",
        "_mask",
        "_memory",
        "_next",
        "_plain",
        "_published",
        "_seen",
        "_skew",
        "_spans",
        "_used",
        "_used_ring",
        "size",
    )

    def __init__(
        self,
        memory: GuestMemory,
        ring: Ring,
        *,
        base: int = 0,
        event_idx: bool = False,
        writable: bool,
        fence: Callable[[], None],
    ) -> None:
        """The queue at `ring`, with buffers in `memory`.

        Args:
            memory: where buffers and indirect tables are.
            ring: where the queue is.
            base: index of the first available chain to take (SET_VRING_BASE), 16 bits.
            event_idx: whether VIRTIO_F_EVENT_IDX was negotiated.
            writable: whether this is a queue whose buffers the device writes (rx); else it reads them (tx).
            fence: a full memory barrier.
        """
        self.size = ring.size
        self._mask = ring.size - 1
        self._memory = memory
        self._spans = memory.spans
        self._descriptors = ring.descriptors
        self._available = ring.available.cast("H")
        self._used_ring = ring.used.cast("H")
        self._elements = ring.used[4:-2].cast("Q")
        self._event_idx = event_idx
        self._plain = WRITE if writable else 0
        self._fence = fence
        self._next = self._seen = base & 0xFFFF
        self._used = self._published = self._used_ring[_INDEX]
        self._skew = self._next - self._used

    @property
    def pending(self) -> int:
        """Number of chains that are available now.

        Raises:
            GuestError: the available index is further ahead than the queue is long.
        """
        return self._look()

    @property
    def next_available(self) -> int:
        """Index of the next chain to take, 16 bits: what GET_VRING_BASE returns."""
        return self._next

    def take(self) -> tuple[int, list[memoryview], int] | None:
        """The next available chain, or None when there is none.

        Returns:
            The chain's head, its buffers in order (empty ones left out), and the bytes in them.

        Raises:
            GuestError: index, descriptor, address, direction or length are not what a driver may give.
        """
        found = self.take_some(1)
        return found[0] if found else None

    def take_some(self, limit: int) -> list[tuple[int, list[memoryview], int]]:
        """The next chains that are available, at most `limit`: each as take() returns it.

        Raises:
            GuestError: as take() does, for the first of them; a later one is left for the next call.
        """
        following = self._next
        count = (self._seen - following) & 0xFFFF or self._look()
        if not count:
            return []
        if count > limit:
            count = limit
        start = following & self._mask
        heads = self._available[_ENTRIES + start : _ENTRIES + min(start + count, self.size)].tolist()
        if start + count > self.size:
            heads += self._available[_ENTRIES : _ENTRIES + start + count - self.size].tolist()
        unpack, table, size = DESCRIPTOR.unpack_from, self._descriptors, self.size
        plain, spans = self._plain, self._spans
        found: list[tuple[int, list[memoryview], int]] = []
        try:
            for head in heads:
                if head >= size:
                    raise GuestError(f"available descriptor {head} in a queue of {size}")
                address, length, flags, then = unpack(table, head << 4)
                if flags == plain and length:
                    end = address + length
                    for first, behind, view in spans:
                        if first <= address and end <= behind:
                            found.append((head, [view[address - first : end - first]], length))
                            break
                    else:
                        found.append(self._take_chain(head, address, length, flags, then))
                else:
                    found.append(self._take_chain(head, address, length, flags, then))
        except GuestError:
            if not found:
                raise
        self._next = (following + len(found)) & 0xFFFF
        return found

    def put_back(self, count: int) -> None:
        """Makes the last `count` chains taken, none of which was given, available again."""
        self._next = (self._next - count) & 0xFFFF

    def give(self, head: int, length: int) -> None:
        """Gives back the chain at `head`, `length` bytes of which were written; not visible before publish."""
        self.give_some([head | length << 32])

    def give_some(self, elements: list[int]) -> None:
        """The same for several: each is ``head | length << 32``."""
        count = len(elements)
        if count < BULK:
            for element in elements:
                self._elements[self._used & self._mask] = element
                self._used = (self._used + 1) & 0xFFFF
            return
        packed = memoryview(array("Q", elements))
        start = self._used & self._mask
        room = min(count, self.size - start)
        self._elements[start : start + room] = packed[:room]
        if room < count:
            self._elements[: count - room] = packed[room:]
        self._used = (self._used + count) & 0xFFFF

    def publish(self) -> bool:
        """Makes all chains given visible to the driver; returns whether to interrupt it."""
        used, published = self._used, self._published
        if used == published:
            return False
        self._fence()  # the elements are visible before the index
        self._used_ring[_INDEX] = used
        self._published = used
        self._fence()  # the index is visible before the driver's wish is read
        if self._event_idx:
            event = self._available[-1]
            return (used - event - 1) & 0xFFFF < (used - published) & 0xFFFF
        return not self._available[_FLAGS] & NO_INTERRUPT

    def rearm(self) -> bool:
        """Asks for a kick when the next chain becomes available; returns whether one is available already.

        Raises:
            GuestError: the available index is further ahead than the queue is long.
        """
        if self._event_idx:
            self._used_ring[-1] = self._next
        else:
            self._used_ring[_FLAGS] = 0
        self._fence()  # the wish is visible before the index is read
        return self._look() > 0

    def suppress(self) -> None:
        """Asks for no kicks, while the device polls; with EVENT_IDX there are none until the next rearm."""
        if not self._event_idx:
            self._used_ring[_FLAGS] = NO_NOTIFY

    def _look(self) -> int:
        """Reads how far the driver is; returns the number of chains available."""
        index = self._available[_INDEX]
        count = (index - self._next) & 0xFFFF
        # what was taken and not given yet still has its descriptors
        if count > self.size - ((self._next - self._used - self._skew) & 0xFFFF):
            raise GuestError(f"available index {index} in a queue of {self.size}, next is {self._next}")
        if count:
            self._fence()  # the entries are not read before the index
        self._seen = index
        return count

    def _take_chain(
        self, head: int, address: int, length: int, flags: int, then: int
    ) -> tuple[int, list[memoryview], int]:
        """The chain that begins with this descriptor, whatever it is made of."""
        unpack, views = DESCRIPTOR.unpack_from, self._memory.views
        table, count, left = self._descriptors, self.size, self.size - 1
        segments: list[memoryview] = []
        total = 0
        while True:
            if flags & INDIRECT:
                if flags & NEXT or table is not self._descriptors:
                    raise GuestError("an indirect descriptor inside a table, or with another behind it")
                count, rest = divmod(length, DESCRIPTOR.size)
                if rest or not 0 < count <= MAX_INDIRECT:
                    raise GuestError(f"an indirect table of {length} bytes")
                table, left = self._memory.view(address, length), count - 1
                address, length, flags, then = unpack(table, 0)
                continue
            if flags & WRITE != self._plain:
                raise GuestError(f"descriptor flags {flags:#x}: a buffer of the wrong direction")
            if length:
                segments += views(address, length)
                total += length
            if not flags & NEXT:
                break
            if then >= count or not left:
                raise GuestError(f"a chain goes on at descriptor {then} of {count}, {left} before it is a loop")
            left -= 1
            address, length, flags, then = unpack(table, then << 4)
        if total > MAX_CHAIN_BYTES:
            raise GuestError(f"a chain of {total} bytes")
        return head, segments, total
