"""The device's side of a virtqueue against a model of a driver, and against guests that lie."""

from __future__ import annotations

import importlib
import sys
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.testing.virtio_driver import HIGH_GUEST_ADDRESS, LOW_USER_ADDRESS, Driver, DriverQueue, Layout
from hvsock.virtio import virtqueue
from hvsock.virtio.memory import GuestError, GuestMemory, Region
from hvsock.virtio.session import RX, TX
from hvsock.virtio.virtqueue import (
    DESCRIPTOR,
    INDIRECT,
    MAX_INDIRECT,
    MAX_QUEUE_SIZE,
    NEXT,
    NO_INTERRUPT,
    NO_NOTIFY,
    WRITE,
    Ring,
    Virtqueue,
)
from tests.support import FEW, sample

SIZE = 8
BUFFERS = HIGH_GUEST_ADDRESS
TABLES_BYTES = 16 * MAX_INDIRECT
"""Room at the beginning of the buffers, where these tests put indirect tables."""


def no_fence() -> None:
    """There is one thread."""


class Bench:
    """A driver's memory, one of its queues, and the device's side of that."""

    def __init__(
        self, *, size: int = SIZE, base: int = 0, event_idx: bool = False, writable: bool = False
    ) -> None:
        self.driver = Driver(queue_size=size, rx_buffer_bytes=1 << 16, max_packet_bytes=64, event_idx=event_idx)
        self.side: DriverQueue = self.driver.rx if writable else self.driver.tx
        self.driver.reset(base)
        self.plain = WRITE if writable else 0
        self.queue = self.device(no_fence, base)

    def device(self, fence: Callable[[], None], base: int = 0) -> Virtqueue:
        return self.driver.virtqueue(RX if self.plain else TX, base=base, fence=fence)

    def write_table(self, address: int, lines: list[tuple[int, int, int, int]]) -> None:
        view = self.driver.memory.view(address, 16 * len(lines))
        for at, line in enumerate(lines):
            DESCRIPTOR.pack_into(view, 16 * at, *line)

    def offer_one(self, address: int, length: int, flags: int = 0, then: int = 0) -> None:
        """Makes a chain available that begins with this descriptor, in place 0."""
        self.side.write_descriptor(0, address, length, flags, then)
        self.side.offer(0)


class Chain(NamedTuple):
    """A chain of the model: its head, its buffers as (address, length), and the descriptors it needs."""

    head: int
    buffers: list[tuple[int, int]]
    descriptors: list[int]


class Model:
    """What a queue does, told simply: chains wait, are taken, are given back, and become visible."""

    def __init__(self, bench: Bench, base: int, event_idx: bool) -> None:
        self.bench = bench
        self.event_idx = event_idx
        self.index = base
        self.free = list(range(SIZE))
        self.waiting: deque[Chain] = deque()
        self.taken: list[Chain] = []
        self.given: list[tuple[Chain, int]] = []
        self.used_index = base

    def offer(self, buffers: list[tuple[int, int]], direct: int, shuffle: Callable[[list[int]], None]) -> None:
        """Offers a chain: `direct` descriptors in the ring's table, the rest in an indirect table."""
        needed = direct + (direct < len(buffers))
        if needed > len(self.free):
            return
        shuffle(self.free)
        places = [self.free.pop() for _ in range(needed)]
        plain = self.bench.plain
        for at, (place, (address, length)) in enumerate(zip(places, buffers[:direct], strict=False)):
            more = at + 1 < needed
            then = places[at + 1] if more else 0xABCD
            self.bench.side.write_descriptor(place, address, length, plain | (NEXT if more else 0), then)
        if rest := buffers[direct:]:
            table = BUFFERS + 256 * places[-1]
            # in the table the chain goes backwards, from the first to the last, second to last ... line
            order = [0, *range(len(rest) - 1, 0, -1)]
            lines = [(0, 0, 0, 0)] * len(rest)
            for at, (line, (address, length)) in enumerate(zip(order, rest, strict=True)):
                more = at + 1 < len(rest)
                then = order[at + 1] if more else 0xABCD
                lines[line] = (address, length, plain | (NEXT if more else 0), then)
            self.bench.write_table(table, lines)
            self.bench.side.write_descriptor(places[-1], table, 16 * len(rest), INDIRECT)
        self.bench.side.offer(places[0])
        self.waiting.append(Chain(places[0], buffers, places))

    def take(self) -> None:
        """Takes one chain, and compares it with what was offered."""
        assert self.bench.queue.pending == len(self.waiting)
        found = self.bench.queue.take()
        if not self.waiting:
            assert found is None
            return
        assert found is not None
        chain = self.waiting.popleft()
        self.taken.append(chain)
        head, segments, total = found
        assert head == chain.head
        assert total == sum(length for _, length in chain.buffers)
        there = [self.bench.driver.memory.view(address, length) for address, length in chain.buffers if length]
        assert segments == there
        if self.bench.plain:
            for at, segment in enumerate(segments):
                segment[:1] = bytes([at])
                assert there[at][0] == at  # the same memory, and not only equal

    def put_back(self, count: int) -> None:
        count = min(count, len(self.taken))
        self.bench.queue.put_back(count)
        for _ in range(count):
            self.waiting.appendleft(self.taken.pop())

    def give(self, which: int, length: int) -> None:
        """Gives a chain back, in an order that is not that of taking."""
        if not self.taken:
            return
        chain = self.taken.pop(which % len(self.taken))
        # what is put back are the chains taken last: after giving out of order there is nothing to put back
        self.bench.queue.give(chain.head, length)
        self.given.append((chain, length))

    def publish(self, event: int, flags: int) -> None:
        """Publishes; the interrupt is wanted when the driver's event is among what became visible."""
        side = self.bench.side
        side.available[0], side.available[-1] = flags, event
        visible = {(self.used_index + at) & 0xFFFF for at in range(len(self.given))}
        wanted = event in visible if self.event_idx else bool(visible) and not flags & NO_INTERRUPT
        assert self.bench.queue.publish() == wanted
        found = side.collect()
        assert found == [(chain.head, length) for chain, length in self.given]
        self.used_index = (self.used_index + len(self.given)) & 0xFFFF
        for chain, _ in self.given:
            self.free += chain.descriptors
        self.given.clear()

    def rearm(self, index: int) -> None:
        assert self.bench.queue.rearm() == bool(self.waiting)
        assert self.bench.queue.next_available == index
        if self.event_idx:
            assert self.bench.side.used[-1] == index
            assert self.bench.side.used[0] == 0
        else:
            assert self.bench.side.used[0] == 0


buffers = st.lists(
    st.tuples(
        st.integers(BUFFERS + TABLES_BYTES, BUFFERS + 2 * TABLES_BYTES), st.integers(0, 3) | st.integers(0, 5000)
    ),
    min_size=1,
    max_size=10,
)
steps = st.one_of(
    st.tuples(st.just("offer"), buffers, st.integers(0, 10)),
    st.tuples(st.just("take"), st.integers(1, SIZE), st.none()),
    st.tuples(st.just("put back"), st.integers(0, SIZE), st.none()),
    st.tuples(st.just("give"), st.integers(0, SIZE), st.integers(0, 0xFFFF_FFFF)),
    st.tuples(st.just("publish"), st.integers(-3, SIZE + 3), st.integers(0, 1)),
    st.tuples(st.just("rearm"), st.none(), st.none()),
    st.tuples(st.just("suppress"), st.none(), st.none()),
)


@settings(max_examples=sample(150, 5_000))
@given(
    st.integers(0xFFF0, 0xFFFF) | st.integers(0, 0xFFFF),
    st.booleans(),
    st.booleans(),
    st.lists(steps, max_size=60),
    st.randoms(use_true_random=False),
)
def test_a_queue_is_like_its_model(
    base: int, event_idx: bool, writable: bool, todo: list[tuple[str, object, object]], random: object
) -> None:
    bench = Bench(base=base, event_idx=event_idx, writable=writable)
    model = Model(bench, base, event_idx)
    index, may_put_back = base, 0
    for step in todo:
        match step:
            case "offer", list(chain), int(direct):
                model.offer(chain, min(direct, len(chain)), random.shuffle)  # type: ignore[attr-defined]
            case "take", int(count), _:
                before = len(model.taken)
                for _ in range(count):
                    model.take()
                may_put_back += len(model.taken) - before
                index = (index + len(model.taken) - before) & 0xFFFF
            case "put back", int(count), _:
                count = min(count, may_put_back)
                model.put_back(count)
                may_put_back -= count
                index = (index - count) & 0xFFFF
            case "give", int(which), int(length):
                model.give(which, length)
                may_put_back = 0
            case "publish", int(event), int(flags):
                model.publish((model.used_index + event) & 0xFFFF, flags)
            case "rearm", _, _:
                model.rearm(index)
            case _:
                bench.queue.suppress()
                assert bench.side.used[0] == (0 if event_idx else NO_NOTIFY)
        assert bench.queue.next_available == index


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize(
    ("layout", "base"),
    [
        (Layout(), 0xFFFF - SIZE if FEW else 0),
        (Layout(2), 0xFFFF - SIZE),
        (Layout(3, indirect=True), 0xFFFF - SIZE),
    ],
)
def test_indexes_wrap(event_idx: bool, layout: Layout, base: int) -> None:
    driver = Driver(queue_size=SIZE, max_packet_bytes=64, layout=layout, event_idx=event_idx)
    driver.reset(base)
    queue = driver.virtqueue(TX, base=base)
    for number in range(base, 0x10000 + 3 * SIZE):
        packet = number.to_bytes(4, "little") * 12
        assert driver.send(packet[:44], packet[44:])
        taken = queue.take()
        assert taken is not None
        head, segments, total = taken
        assert b"".join(segments) == packet
        assert total == len(packet)
        queue.give(head, 0)
        assert queue.publish()
        assert driver.reclaim_tx() == 1
    assert queue.take() is None
    assert queue.next_available == 3 * SIZE


def test_a_queue_goes_on_where_another_stopped() -> None:
    bench = Bench(size=4)
    for head in range(4):
        bench.side.write_descriptor(head, BUFFERS + head, 1)
        bench.side.offer(head)
    assert [bench.queue.take(), bench.queue.take(), bench.queue.take()][2] is not None
    bench.queue.put_back(1)
    bench.queue.give(0, 0)
    bench.queue.give(1, 0)
    assert bench.queue.publish()
    successor = bench.device(no_fence, bench.queue.next_available)
    taken = successor.take()
    assert taken is not None
    assert taken[0] == 2
    successor.give(2, 7)
    assert successor.publish()
    assert bench.side.collect() == [(0, 0), (1, 0), (2, 7)]


def test_what_the_predecessor_lost_leaves_less_room() -> None:
    """Chains that were taken and never given keep their descriptors; the queue goes on with the rest."""
    bench = Bench(size=4)
    for head in range(3):
        bench.side.write_descriptor(head, BUFFERS + head, 1)
        bench.side.offer(head)
    assert bench.queue.take() is not None
    successor = bench.device(no_fence, 1)
    assert successor.pending == 2
    bench.side.used[1] = 0
    assert successor.take() is not None
    successor.give(1, 5)
    assert successor.publish()
    assert bench.side.collect() == [(1, 5)]


def test_a_buffer_may_cross_into_the_region_that_adjoins() -> None:
    memory_bytes = memoryview(bytearray(0x3000))
    memory = GuestMemory(
        [
            Region(0, 0x10000, 0x2000, memory_bytes[:0x2000]),
            Region(0x2000, 0x50000, 0x1000, memory_bytes[0x2000:]),
        ]
    )
    ring = Ring.at(memory, 1, 0x10000, 0x10010, 0x10020)
    DESCRIPTOR.pack_into(ring.descriptors, 0, 0x1FFC, 8, WRITE, 0)
    ring.available.cast("H")[1] = 1
    taken = Virtqueue(memory, ring, writable=True, fence=no_fence).take()
    assert taken is not None
    head, segments, total = taken
    assert (head, [len(one) for one in segments], total) == (0, [4, 4], 8)
    segments[0][:], segments[1][:] = b"abcd", b"efgh"
    assert bytes(memory_bytes[0x1FFC:0x2004]) == b"abcdefgh"


@pytest.mark.parametrize(
    ("size", "descriptors", "available", "used"),
    [
        (0, 0, 0x1000, 0x2000),
        (3, 0, 0x1000, 0x2000),
        (2 * MAX_QUEUE_SIZE, 0, 0x8000, 0xA000),
        (8, 8, 0x1000, 0x2000),
        (8, 0, 0x1001, 0x2000),
        (8, 0, 0x1000, 0x2002),
        (8, -0x1000, 0x1000, 0x2000),
        (8, 0, 1 << 40, 0x2000),
        (8, 0, 0x1000, (1 << 64) - 4),
    ],
)
def test_a_ring_has_to_fit(size: int, descriptors: int, available: int, used: int) -> None:
    memory = Driver(queue_size=1024).memory
    base = LOW_USER_ADDRESS
    with pytest.raises(GuestError):
        Ring.at(memory, size, base + descriptors, base + available, base + used)


def test_a_ring_has_the_exact_lengths() -> None:
    ring = Ring.at(Driver(queue_size=1024).memory, 1024, *(LOW_USER_ADDRESS + at for at in (0, 0x4000, 0x5000)))
    assert [len(area) for area in ring[1:]] == [16 * 1024, 6 + 2 * 1024, 6 + 8 * 1024]


def fails(bench: Bench) -> None:
    with pytest.raises(GuestError):
        bench.queue.take()


@pytest.mark.parametrize("ahead", [SIZE + 1, 0x8000, 0xFFFF])
def test_an_index_cannot_be_further_ahead_than_the_queue_is_long(ahead: int) -> None:
    bench = Bench(base=0xFFFE)
    bench.side.available[1] = (0xFFFE + ahead) & 0xFFFF
    fails(bench)
    with pytest.raises(GuestError):
        _ = bench.queue.pending
    with pytest.raises(GuestError):
        bench.queue.rearm()


def test_descriptors_in_use_are_not_offered_again() -> None:
    bench = Bench()
    for _ in range(SIZE):
        bench.offer_one(BUFFERS, 1)
        assert bench.queue.take() is not None
    bench.offer_one(BUFFERS, 1)
    fails(bench)


@pytest.mark.parametrize("head", [SIZE, 0xFFFF])
def test_a_head_is_in_the_table(head: int) -> None:
    bench = Bench()
    bench.side.offer(head)
    fails(bench)


@pytest.mark.parametrize(
    ("address", "length", "flags", "then"),
    [
        (BUFFERS, 1, WRITE, 0),  # the wrong direction
        (BUFFERS, 0, WRITE, 0),
        (BUFFERS - 1, 1, 0, 0),  # outside memory
        (BUFFERS, 0xFFFF_FFFF, 0, 0),
        ((1 << 64) - 1, 0xFFFF_FFFF, 0, 0),
        (BUFFERS, 1, NEXT, 0),  # a loop of one
        (BUFFERS, 0, NEXT, 0),
        (BUFFERS, 1, NEXT, SIZE),  # out of the table
        (BUFFERS, 16, INDIRECT | NEXT, 1),
        (BUFFERS, 0, INDIRECT, 0),
        (BUFFERS, 15, INDIRECT, 0),
        (BUFFERS, 17, INDIRECT, 0),
        (BUFFERS, 16 * (MAX_INDIRECT + 1), INDIRECT, 0),
        (BUFFERS, 0xFFFF_FFF0, INDIRECT, 0),
        (1 << 40, 16, INDIRECT, 0),
    ],
)
def test_a_first_descriptor_is_checked(address: int, length: int, flags: int, then: int) -> None:
    bench = Bench()
    bench.offer_one(address, length, flags, then)
    fails(bench)


def test_a_queue_to_write_takes_no_buffers_to_read() -> None:
    bench = Bench(writable=True)
    bench.offer_one(BUFFERS, 1)
    fails(bench)


@pytest.mark.parametrize(
    "lines",
    [
        [(BUFFERS, 16, INDIRECT, 0)],
        [(BUFFERS, 1, WRITE, 0)],
        [(BUFFERS, 1, NEXT, 0)],
        [(BUFFERS, 1, NEXT, 1)],
        [(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, NEXT, 0)],
        [(BUFFERS, 1, NEXT, 1), (0, 1, INDIRECT, 0)],
        [(BUFFERS, 1, NEXT, 1), (1 << 41, 1, 0, 0)],
        [(BUFFERS, 1, NEXT, 1), (BUFFERS, 1, WRITE, 0)],
    ],
)
def test_an_indirect_table_is_checked(lines: list[tuple[int, int, int, int]]) -> None:
    bench = Bench()
    bench.write_table(BUFFERS, lines)
    bench.offer_one(BUFFERS, 16 * len(lines), INDIRECT)
    fails(bench)


def test_the_longest_chain_is_taken_and_none_is_longer() -> None:
    """size - 1 descriptors, then a full indirect table; one buffer is the whole memory behind the tables."""
    bench = Bench()
    for head in range(SIZE - 1):
        bench.side.write_descriptor(head, BUFFERS + head, 1, NEXT, head + 1)
    bench.side.write_descriptor(SIZE - 1, BUFFERS, 16 * MAX_INDIRECT, INDIRECT | WRITE)
    lines = [(BUFFERS + at, 1, NEXT, at + 1) for at in range(MAX_INDIRECT - 1)]
    bench.write_table(BUFFERS, [*lines, (BUFFERS, 3, 0, 0)])
    bench.side.offer(0)
    taken = bench.queue.take()
    assert taken is not None
    assert (taken[0], len(taken[1]), taken[2]) == (0, SIZE - 1 + MAX_INDIRECT, SIZE - 1 + MAX_INDIRECT + 2)
    bench.write_table(BUFFERS, [*lines, (BUFFERS, 3, NEXT, 0)])
    bench.side.offer(0)
    fails(bench)


def test_a_chain_has_at_most_what_32_bits_can_say() -> None:
    """Descriptors may name the same memory again and again."""
    large = memoryview(bytearray(1 << 23))
    memory = GuestMemory(
        [Region(0, LOW_USER_ADDRESS, 1 << 13, memoryview(bytearray(1 << 13))), Region(BUFFERS, 0, 1 << 23, large)]
    )
    ring = Ring.at(memory, 1, *(LOW_USER_ADDRESS + at for at in (0, 0x100, 0x200)))
    count = (1 << 32) // (1 << 23)
    table = memory.view(BUFFERS, 16 * count)
    for at in range(count):
        more = at + 1 < count
        DESCRIPTOR.pack_into(table, 16 * at, BUFFERS, (1 << 23) - (not more), NEXT if more else 0, at + 1)
    DESCRIPTOR.pack_into(ring.descriptors, 0, BUFFERS, 16 * count, INDIRECT, 0)
    ring.available.cast("H")[1] = 1
    queue = Virtqueue(memory, ring, writable=False, fence=no_fence)
    taken = queue.take()
    assert taken is not None
    assert taken[2] == 0xFFFF_FFFF
    queue.put_back(1)
    DESCRIPTOR.pack_into(table, 16 * (count - 1), BUFFERS, 1 << 23, 0, 0)
    with pytest.raises(GuestError):
        queue.take()


def test_unknown_flags_do_not_matter() -> None:
    bench = Bench()
    bench.offer_one(BUFFERS, 5, 0xFFF8)
    taken = bench.queue.take()
    assert taken is not None
    assert taken[2] == 5


def test_the_barriers_stand_where_order_counts() -> None:
    """Each of these is what another processor may do at the barrier."""
    bench = Bench()
    side = bench.side
    todo: list[Callable[[], None]] = []
    queue = bench.device(lambda: todo.pop(0)())
    side.write_descriptor(3, BUFFERS, 1)
    side.offer(0)
    todo.append(lambda: side.available.__setitem__(2, 3))
    taken = queue.take()  # entries are read after the index
    assert taken is not None
    assert taken[0] == 3
    queue.give(3, 9)
    seen = []
    todo.append(lambda: seen.append((side.used[1], bytes(side.ring.used[4:12]))))
    todo.append(lambda: side.available.__setitem__(0, NO_INTERRUPT))
    assert not queue.publish()  # the driver's wish is read after the index is written
    assert seen == [(0, bytes([3, 0, 0, 0, 9, 0, 0, 0]))]  # the index is written after the element
    todo.extend([lambda: side.offer(3), lambda: None])
    assert queue.rearm()  # the index is read after the wish is written
    assert not todo


@pytest.mark.parametrize("flags", [0, NEXT, INDIRECT])
def test_a_descriptor_is_read_once(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that changes every descriptor as soon as it was read gains nothing."""

    class Racing:
        size = DESCRIPTOR.size

        @staticmethod
        def unpack_from(table: memoryview, at: int) -> tuple[int, ...]:
            found = DESCRIPTOR.unpack_from(table, at)
            DESCRIPTOR.pack_into(table, at, 1 << 50, 1 << 30, 0xFFFF, 0xFFFF)
            return found

    bench = Bench()
    bench.write_table(BUFFERS, [(BUFFERS + 64, 16, 0, 0)])
    bench.side.write_descriptor(1, BUFFERS, 16)
    bench.offer_one(BUFFERS, 16, flags, 1)
    monkeypatch.setattr(virtqueue, "DESCRIPTOR", Racing)
    taken = bench.queue.take()
    assert taken is not None
    assert [len(one) for one in taken[1]] == ([16, 16] if flags == NEXT else [16])


def test_big_endian_hosts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(ImportError, match="big-endian"):
        importlib.reload(virtqueue)


places = st.sampled_from([0, 1, BUFFERS, BUFFERS + 64, BUFFERS + 2 * TABLES_BYTES, 1 << 40, (1 << 64) - 8])
lengths = st.sampled_from([0, 1, 16, 32, 48, 64, 16 * MAX_INDIRECT, 1 << 31, 0xFFFF_FFFF]) | st.integers(0, 100)
any_flags = st.sampled_from([0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, 7, 8, 0xFFFF])
lies = st.tuples(
    places | st.integers(0, (1 << 64) - 1), lengths, any_flags, st.integers(0, SIZE) | st.integers(0, 0xFFFF)
)


@settings(max_examples=sample(150, 50_000))
@given(
    st.booleans(),
    st.booleans(),
    st.lists(lies, max_size=SIZE),
    st.lists(lies, max_size=2 * SIZE),
    st.lists(st.integers(0, SIZE) | st.integers(0, 0xFFFF), max_size=SIZE),
    st.integers(0, SIZE) | st.integers(0, 0xFFFF),
    st.binary(max_size=6 + 8 * SIZE),
)
def test_a_lying_guest_gets_a_guest_error_and_nothing_else(
    event_idx: bool,
    writable: bool,
    table: list[tuple[int, int, int, int]],
    indirect: list[tuple[int, int, int, int]],
    heads: list[int],
    ahead: int,
    used: bytes,
) -> None:
    bench = Bench(event_idx=event_idx, writable=writable)
    for at, line in enumerate(table):
        bench.side.write_descriptor(at, *line)
    bench.write_table(BUFFERS, indirect)
    for at, head in enumerate(heads):
        bench.side.available[2 + at] = head
    bench.side.available[1] = ahead
    taken = 0
    try:
        while (chain := bench.queue.take()) is not None:
            head, segments, total = chain
            taken += 1
            assert head < SIZE
            assert total == sum(map(len, segments))
            assert len(segments) <= SIZE + MAX_INDIRECT
            bench.queue.give(head, 0)
            bench.side.ring.used[: len(used)] = used
            bench.queue.publish()
        assert taken == ahead
        bench.queue.rearm()
    except GuestError:
        assert taken <= SIZE


@settings(max_examples=sample(100, 20_000))
@given(st.binary(max_size=16 * SIZE), st.binary(max_size=6 + 2 * SIZE), st.binary(max_size=6 + 8 * SIZE))
def test_noise_in_all_areas(descriptors: bytes, available: bytes, used: bytes) -> None:
    bench = Bench()
    for area, noise in zip(bench.side.ring[1:], (descriptors, available, used), strict=True):
        area[: len(noise)] = noise
    queue = bench.device(no_fence)
    taken = 0
    try:
        while (chain := queue.take()) is not None:
            taken += 1
            queue.give(chain[0], 0)
            queue.publish()
    except GuestError:
        pass
    assert taken <= SIZE
