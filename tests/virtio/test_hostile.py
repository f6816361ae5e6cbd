"""Arbitrary packets near those that fit: nothing but dropped connections comes of them, and a good one goes on."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.testing.virtio_driver import MANY, ONE, TWO, Driver, Layout
from hvsock.virtio.connection import Connection, State
from hvsock.virtio.packet import HEADER_BYTES, HOST_CID, Header, Op
from hvsock.virtio.to_guest import MAX_STRAYS
from tests.support import sample
from tests.virtio.fakes import GUEST_CID, ROOM, Bench, FakeEnd, fake, numbered

GOOD_PORT = 7
"""The port of the guest whose connection is a good one; nobody else sends from it."""
CONNECTIONS = 8
BUFFER_BYTES = 5000
FIRST_HOST_PORT = 1 << 30


class Hostile(NamedTuple):
    """A packet that may be anything, and what a host does then."""

    header: Header
    size: int
    cut: int
    host: int


numbers = st.sampled_from([0, 1, 2, 50, 4096, ROOM, 1 << 31, 0xFFFF_FFFF]) | st.integers(0, 0xFFFF_FFFF)
headers = st.builds(
    Header,
    st.just(GUEST_CID) | st.sampled_from([0, HOST_CID, 1 << 32 | GUEST_CID]),
    st.just(HOST_CID) | st.sampled_from([43, GUEST_CID, 1, 1 << 32 | HOST_CID, (1 << 64) - 1]),
    st.integers(1, 3),
    st.sampled_from([80, 81, FIRST_HOST_PORT, FIRST_HOST_PORT + 1]),
    numbers,
    st.sampled_from([1, 1, 1, 2, 2, 0, 3]),
    st.integers(0, 8),
    st.integers(0, 4) | numbers,
    numbers,
    numbers,
)
hostiles = st.builds(
    Hostile, headers, st.sampled_from([0, 1, 20, 3000, 6000]),
    st.just(HEADER_BYTES) | st.integers(0, HEADER_BYTES), st.integers(0, 11),
)  # fmt: skip


@functools.cache
def driver(layout: Layout) -> Driver:
    """A guest's memory; making it takes longer than all that is tried with it."""
    return Driver(layout=layout)


class Good:
    """The good connection: both sides send and receive all the time, and credit is kept."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.end = FakeEnd()
        self.connection = bench.open(self.end, src_port=GOOD_PORT, service="good")
        self.sent = 0

    def goes_on(self, size: int) -> None:
        """Some more bytes in both directions, each in order and none lost."""
        data = numbered(size, self.sent)
        self.end.outbox.append(data)
        self.end.taken.clear()
        self.bench.muxer.readable(self.connection)
        fwd_cnt = self.connection.outgoing.sent
        self.bench.answer(self.connection, Op.RW, data, fwd_cnt=fwd_cnt)
        came = b"".join(
            payload for header, payload in self.bench.run() if header.dst_port == GOOD_PORT and header.op == Op.RW
        )
        assert came == data
        assert self.end.data == data
        self.sent += size


def host_acts(bench: Bench, ends: list[tuple[Connection, FakeEnd]], what: int) -> None:
    """What the hosts do with the connections that the hostile packets begin, and with their own."""
    muxer = bench.muxer
    live = [(connection, end) for connection, end in ends if end.is_open]
    if bench.host.wanted:
        connection = bench.host.wanted.pop()
        if what == 0:
            muxer.declined(connection)
        else:
            ends.append((connection, FakeEnd(connection.type, room=what * 100)))
            muxer.opened(connection, ends[-1][1], "bad")
    elif what < 2:
        end = FakeEnd()
        offered = muxer.offer(end, 1, seconds=1.0, service="bad")
        if offered is not None:
            ends.append((offered, end))
    elif live:
        connection, end = live[-1]
        if what < 5 and not end.ended:
            end.outbox.append(bytes(100 * what))
            muxer.readable(connection)
        elif what == 5:
            end.ended = True
            muxer.readable(connection, ending=True)
        elif what == 6:
            end.ended = end.gone = True
            muxer.hung_up(connection)
        elif what == 7:
            end.broken = True
            muxer.readable(connection)
        elif what > 7:
            end.room += 1000
            muxer.writable(connection)


@pytest.mark.parametrize("layout", [ONE, TWO, MANY], ids=["one", "two", "many"])
@settings(max_examples=sample(60, 30_000))
@given(todo=st.lists(hostiles, max_size=30), size=st.sampled_from([1, 500, 3000]))
def test_nothing_harms_a_good_connection(layout: Layout, todo: list[Hostile], size: int) -> None:
    bench = Bench(driver=driver(layout), connections=CONNECTIONS, buffer_bytes=BUFFER_BYTES)
    good = Good(bench)
    ends: list[tuple[Connection, FakeEnd]] = []
    for number, hostile in enumerate(todo):
        assert bench.driver.send(hostile.header.pack()[: hostile.cut], numbered(hostile.size))
        host_acts(bench, ends, hostile.host)
        good.goes_on(size)
        assert bench.muxer.depth == 0
        bench.muxer.tick(0.1 * number)
        assert len(bench.muxer.table) <= CONNECTIONS
        for connection in bench.muxer.table.values():
            kept = sum(map(len, connection.pending or ())) + len(connection.message or b"")
            assert kept <= BUFFER_BYTES
    assert good.connection.state is State.OPEN
    bench.muxer.close()
    assert all(not end.is_open for _, end in ends)


@settings(max_examples=sample(30, 10_000))
@given(todo=st.lists(hostiles, min_size=1, max_size=30))
def test_without_receive_buffers_nothing_grows_and_the_good_connection_gets_all_once_there_are(
    todo: list[Hostile],
) -> None:
    bench = Bench(driver=driver(ONE), feeds=False, connections=CONNECTIONS, buffer_bytes=BUFFER_BYTES)
    good = bench.open(src_port=GOOD_PORT, service="good")
    ends: list[tuple[Connection, FakeEnd]] = []
    stream = b""
    for number, hostile in enumerate(todo):
        assert bench.driver.send(hostile.header.pack()[: hostile.cut], numbered(hostile.size))
        host_acts(bench, ends, hostile.host)
        data = numbered(10, number * 3)
        stream += data
        fake(good).outbox.append(data)
        bench.muxer.readable(good)
        bench.answer(good, Op.RW, data)
        assert bench.run() == []
        assert bench.muxer.depth <= MAX_STRAYS + 2 * CONNECTIONS
    assert fake(good).data == stream
    bench.feeds = True
    bench.driver.add_rx_buffers()
    packets = [(header, data) for header, data in bench.run() if header.dst_port == GOOD_PORT]
    assert b"".join(data for _, data in packets) == stream
    assert bench.muxer.depth == 0
