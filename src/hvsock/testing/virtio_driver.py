"""A guest's virtio-vsock driver without a guest, to drive a device in tests, benchmarks and fuzzers.

:class:`Driver` makes the memory of a guest (two regions, at addresses that differ between guest and front
end), lays out an rx and a tx queue in it, posts receive buffers, sends packets in the layout asked for, and
checks what the device gives back. Its queues can be driven directly by a
:class:`~hvsock.virtio.virtqueue.Virtqueue`, or by a device process through
:class:`~hvsock.testing.virtio_front_end.FrontEnd`. Hostile inputs are written by :attr:`Driver.rx` and
:attr:`Driver.tx`, which give access to every descriptor and index.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from hvsock.errors import ProtocolError
from hvsock.virtio.memory import GuestMemory, Region
from hvsock.virtio.packet import HEADER_BYTES
from hvsock.virtio.session import RX
from hvsock.virtio.vhost_user import MemoryRegion, RingAddresses
from hvsock.virtio.virtqueue import DESCRIPTOR, INDIRECT, NEXT, NO_NOTIFY, WRITE, Ring, Virtqueue

LOW_GUEST_ADDRESS: Final = 0
"""Where the guest has its first region: rings and what it sends."""
HIGH_GUEST_ADDRESS: Final = 1 << 32
"""Where it has the second, as guests with memory beyond 4 GiB do: what it receives."""
LOW_USER_ADDRESS: Final = 0x7F12_3400_0000
"""Where the front end has the first."""
HIGH_USER_ADDRESS: Final = 0x7E00_0000_0000
"""Where it has the second: below the first, unlike in the guest."""
PAGE_BYTES: Final = 4096
"""Queues and buffers begin at multiples of this."""


class Layout(NamedTuple):
    """How a packet to the device is cut into descriptors.

    Attributes:
        pieces: most descriptors in a packet; its bytes are spread evenly over them.
        header_apart: whether the first of several descriptors holds the header and nothing else.
        indirect: whether the descriptors are in an indirect table.
    """

    pieces: int = 1
    header_apart: bool = True
    indirect: bool = False

    def cut(self, length: int) -> list[int]:
        """The sizes of the pieces of a packet of `length` bytes."""
        if self.header_apart and self.pieces > 1 and length > HEADER_BYTES:
            return [HEADER_BYTES, *_spread(length - HEADER_BYTES, self.pieces - 1)]
        return _spread(length, self.pieces)


ONE: Final = Layout()
"""Header and data in one descriptor: Linux from 6.3."""
TWO: Final = Layout(2)
"""Header and data apart: Linux before 6.3."""
MANY: Final = Layout(18, indirect=True)
"""The header and up to 17 fragments: Linux from 6.17, for large packets."""


class DriverQueue:
    """The driver's side of one queue.

    Attributes:
        size: number of descriptors.
        addresses: where the queue is, in user addresses.
        ring: the three areas.
        available: the available ring in 16-bit items: flags, index, entries, used_event.
        used: the used ring in 16-bit items: flags, index, entries of four items, avail_event.
    """

    def __init__(self, memory: GuestMemory, size: int, at: int, event_idx: bool) -> None:
        """A queue of `size` descriptors, at offset `at` of the low region."""
        self.size = size
        available = at + _pages(16 * size)
        used = available + _pages(6 + 2 * size)
        self.addresses = RingAddresses(
            LOW_USER_ADDRESS + at, LOW_USER_ADDRESS + available, LOW_USER_ADDRESS + used
        )
        self.ring = Ring.at(memory, size, *self.addresses)
        self.available = self.ring.available.cast("H")
        self.used = self.ring.used.cast("H")
        self._elements = self.ring.used[4:-2].cast("I")
        self._event_idx = event_idx
        self._taken = 0
        self._kicked = 0

    def write_descriptor(self, index: int, address: int, length: int, flags: int = 0, then: int = 0) -> None:
        """Writes one descriptor of the table."""
        DESCRIPTOR.pack_into(self.ring.descriptors, DESCRIPTOR.size * index, address, length, flags, then)

    def offer(self, head: int) -> None:
        """Makes the chain that begins at descriptor `head` available."""
        index = self.available[1]
        self.available[2 + index % self.size] = head
        self.available[1] = (index + 1) & 0xFFFF

    def kick_wanted(self) -> bool:
        """Whether the device wants a kick for what was offered since the last call."""
        before, self._kicked = self._kicked, self.available[1]
        _barrier()  # what was offered is visible before the device's wish is read
        if self._event_idx:
            return (self._kicked - self.used[-1] - 1) & 0xFFFF < (self._kicked - before) & 0xFFFF
        return before != self._kicked and not self.used[0] & NO_NOTIFY

    def collect(self) -> list[tuple[int, int]]:
        """Head and length of every chain that the device has given back since the last call.

        The driver asks to be interrupted at the next one.

        Raises:
            ProtocolError: the device gave back more than the queue holds; its doing.
        """
        found: list[tuple[int, int]] = []
        while count := (self.used[1] - self._taken) & 0xFFFF:
            if count > self.size:
                raise ProtocolError(f"the device gave back {count} chains of a queue of {self.size}")
            for _ in range(count):
                at = 2 * (self._taken % self.size)
                found.append((self._elements[at], self._elements[at + 1]))
                self._taken = (self._taken + 1) & 0xFFFF
            self.available[-1] = self._taken
            _barrier()  # the wish is visible before the index is read again
        return found

    def clear(self, index: int = 0) -> None:
        """Makes the rings empty; the next chain offered has this index."""
        for area in self.ring[1:]:
            area[:] = bytes(len(area))
        self._taken = self._kicked = index
        self.available[1] = self.available[-1] = self.used[1] = self.used[-1] = index

    def release(self) -> None:
        """Gives the memory back; nothing of this queue is used after that."""
        for view in (self._elements, self.used, self.available, *self.ring[1:]):
            view.release()


class Driver:
    """A guest's memory, with a driver of its rx and tx queue.

    Attributes:
        rx: the queue that the device fills.
        tx: the queue that the driver fills.
        memory: the memory, as a device in this process sees it.
        regions: the memory table for a device in another process; offsets are in `memfd`.
        event_idx: whether EVENT_IDX is in use.
        memfd: descriptor of the memory, where it is shared; else -1.
    """

    def __init__(
        self,
        *,
        queue_size: int = 128,
        rx_buffer_bytes: int = PAGE_BYTES,
        max_packet_bytes: int = HEADER_BYTES + (64 << 10),
        layout: Layout = ONE,
        event_idx: bool = True,
        shared: bool = False,
    ) -> None:
        """A driver whose queues are empty.

        Args:
            queue_size: descriptors in each queue, a power of two.
            rx_buffer_bytes: size of one receive buffer.
            max_packet_bytes: size of the largest packet to send, header included.
            layout: how packets are cut.
            event_idx: whether EVENT_IDX is in use.
            shared: whether the device is in another process; Linux only, and it takes a :meth:`close`.
        """
        self._layout = layout
        self.event_idx = event_idx
        self._rx_bytes = rx_buffer_bytes
        self._max_packet = max_packet_bytes
        # every packet has its own buffer, and its own descriptors or table of them
        self._stride = 1 if layout.indirect else layout.pieces
        self._slots = queue_size // self._stride
        queue_bytes = _pages(16 * queue_size) + _pages(6 + 2 * queue_size) + _pages(6 + 8 * queue_size)
        self._tables_at = 2 * queue_bytes
        self._table_bytes = DESCRIPTOR.size * layout.pieces
        self._packets_at = self._tables_at + _pages(self._table_bytes * self._slots)
        self._packet_bytes = _pages(max_packet_bytes)
        low = self._packets_at + self._packet_bytes * self._slots
        high = _pages(rx_buffer_bytes * queue_size)
        self.regions = [
            MemoryRegion(LOW_GUEST_ADDRESS, low, LOW_USER_ADDRESS, 0),
            MemoryRegion(HIGH_GUEST_ADDRESS, high, HIGH_USER_ADDRESS, low),
        ]
        self.memfd = -1
        if sys.platform == "linux" and shared:
            self.memfd = os.memfd_create("hvsock-fake-guest", os.MFD_CLOEXEC)
            os.ftruncate(self.memfd, low + high)
        self._map = mmap.mmap(self.memfd, low + high)
        self._all = memoryview(self._map)
        self._low, self._high = self._all[:low], self._all[low:]
        self.memory = GuestMemory(
            [
                Region(one.guest_address, one.user_address, one.size, view)
                for one, view in zip(self.regions, (self._low, self._high), strict=True)
            ]
        )
        self.rx = DriverQueue(self.memory, queue_size, 0, event_idx)
        self.tx = DriverQueue(self.memory, queue_size, queue_bytes, event_idx)
        self._start_over()

    def _start_over(self) -> None:
        self._idle = set(range(self.rx.size))
        self._free = list(range(self._slots))
        self._sent: set[int] = set()

    def virtqueue(self, index: int, *, base: int = 0, fence: Callable[[], None] = lambda: None) -> Virtqueue:
        """The device's side of a queue, for a device in this process and thread."""
        queue = (self.rx, self.tx)[index]
        return Virtqueue(
            self.memory, queue.ring, base=base, event_idx=self.event_idx, writable=index == RX, fence=fence
        )

    def add_rx_buffers(self) -> int:
        """Offers all receive buffers that the device does not have; returns how many."""
        count = len(self._idle)
        for index in sorted(self._idle):
            address = HIGH_GUEST_ADDRESS + index * self._rx_bytes
            self.rx.write_descriptor(index, address, self._rx_bytes, WRITE)
            self.rx.offer(index)
        self._idle.clear()
        return count

    def received(self, *, add_again: bool = True) -> list[bytes]:
        """The packets that the device has put into receive buffers since the last call, header and payload.

        Args:
            add_again: whether to offer the buffers again.

        Raises:
            ProtocolError: the device gave back what it did not have, or wrote more than there is room for.
        """
        packets = []
        for head, length in self.rx.collect():
            if head >= self.rx.size or head in self._idle or length > self._rx_bytes:
                raise ProtocolError(f"the device gave back {length} bytes in receive buffer {head}")
            at = head * self._rx_bytes
            packets.append(bytes(self._high[at : at + length]))
            self._idle.add(head)
        if add_again:
            self.add_rx_buffers()
        return packets

    def send(self, header: bytes, payload: bytes = b"") -> bool:
        """Offers one packet to the device; returns False where the tx queue is full.

        Raises:
            ValueError: the packet is larger than this driver's largest.
        """
        total = len(header) + len(payload)
        if total > self._max_packet:
            raise ValueError(f"a packet of {total} bytes; this driver sends at most {self._max_packet}")
        if not self._free:
            self.reclaim_tx()
        if not self._free:
            return False
        slot = self._free.pop()
        at = self._packets_at + slot * self._packet_bytes
        self._low[at : at + len(header)] = header
        self._low[at + len(header) : at + total] = payload
        self._describe(slot, LOW_GUEST_ADDRESS + at, self._layout.cut(total))
        self._sent.add(slot)
        self.tx.offer(slot * self._stride)
        return True

    def reclaim_tx(self) -> int:
        """Takes back the buffers of packets that the device is done with; returns how many.

        Raises:
            ProtocolError: the device gave back what it did not have.
        """
        collected = self.tx.collect()
        for head, _ in collected:
            slot, rest = divmod(head, self._stride)
            if rest or slot not in self._sent:
                raise ProtocolError(f"the device gave back packet {head}, which it did not have")
            self._sent.remove(slot)
            self._free.append(slot)
        return len(collected)

    def reset(self, index: int = 0) -> None:
        """Empties both queues, as a guest does that starts its device anew; no device may be using them.

        Args:
            index: of the next chain in each; guests begin at 0, tests of the wrap at 65,536 do not.
        """
        self.rx.clear(index)
        self.tx.clear(index)
        self._start_over()

    def close(self) -> None:
        """Closes what is shared with another process; nothing of this driver is used after that."""
        self.rx.release()
        self.tx.release()
        for view in (self._low, self._high, self._all):
            view.release()
        self._map.close()
        if self.memfd >= 0:
            os.close(self.memfd)
            self.memfd = -1

    def _describe(self, slot: int, address: int, pieces: list[int]) -> None:
        """Writes the descriptors of the packet in `slot`."""
        first = 0 if self._layout.indirect else slot * self._stride
        table, at = self.tx.ring.descriptors, 0
        if self._layout.indirect:
            at = self._tables_at + slot * self._table_bytes
            table = self._low
            length = DESCRIPTOR.size * len(pieces)
            self.tx.write_descriptor(slot, LOW_GUEST_ADDRESS + at, length, INDIRECT)
        last = first + len(pieces) - 1
        for index, length in enumerate(pieces, first):
            more = index < last
            DESCRIPTOR.pack_into(
                table, at + DESCRIPTOR.size * index, address, length, NEXT if more else 0, index + 1 if more else 0
            )
            address += length


_LOCK = threading.Lock()


def _barrier() -> None:
    """A full memory barrier, as taking a lock is one."""
    with _LOCK:
        pass


def _pages(count: int) -> int:
    """`count` bytes, rounded up to whole pages."""
    return -(-count // PAGE_BYTES) * PAGE_BYTES


def _spread(length: int, pieces: int) -> list[int]:
    """`length` bytes in at most `pieces` pieces of nearly the same size, none of them empty."""
    pieces = max(1, min(pieces, length))
    size, rest = divmod(length, pieces)
    return [size + (index < rest) for index in range(pieces)]
