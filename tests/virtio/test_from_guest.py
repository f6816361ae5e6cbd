"""What the guest sends: in which pieces it comes, where it goes, and what becomes of what nobody takes."""

from __future__ import annotations

import pytest

from hvsock.testing.virtio_driver import MANY, ONE, TWO, Layout
from hvsock.virtio.connection import Connection, Reason, State
from hvsock.virtio.from_guest import MAX_CHAINS_AT_ONCE, MERGED_BYTES
from hvsock.virtio.memory import GuestError
from hvsock.virtio.packet import HEADER_BYTES, HOST_CID, SEQ_EOM, SEQ_EOR, SEQPACKET, Header, Op, Shutdown
from hvsock.virtio.to_guest import MAX_MESSAGE_BYTES, MAX_VIEWS
from hvsock.virtio.virtqueue import DESCRIPTOR, INDIRECT, NEXT
from tests.virtio.fakes import GUEST_CID, GUEST_PORT, HOST_PORT, ROOM, Bench, FakeEnd, fake, numbered

LAYOUTS = [ONE, TWO, MANY, Layout(3, header_apart=False), Layout(64, header_apart=False, indirect=True)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 20, 4096, 64 << 10])
def test_a_packet_in_any_pieces(layout: Layout, size: int) -> None:
    bench = Bench(layout=layout)
    connection = bench.open()
    payload = numbered(size)
    bench.answer(connection, Op.RW, payload)
    bench.run()
    assert fake(connection).data == payload
    assert (connection.packets_from_guest, connection.bytes_from_guest) == (1, size)


def test_what_comes_in_a_row_is_passed_on_at_once() -> None:
    bench = Bench()
    connection, other = bench.open(), bench.open(src_port=1)
    for number in range(3):
        bench.answer(connection, Op.RW, bytes([number]))
    bench.answer(other, Op.RW, b"other")
    bench.answer(connection, Op.RW, b"again")
    bench.answer(connection, Op.CREDIT_REQUEST)
    bench.answer(connection, Op.RW, b"last")
    assert bench.ops() == [Op.CREDIT_UPDATE]
    assert fake(connection).taken == [b"\0\1\2", b"again", b"last"]
    assert fake(other).taken == [b"other"]


def offer_in_pieces(bench: Bench, packet: bytes, pieces: int) -> None:
    """Offer a packet in so many pieces, all but the last of one byte, in memory that other packets do not use."""
    table, at = 1 << 16, 1 << 17
    views = bench.driver.memory.view(0, at + len(packet))
    views[at:] = packet
    for index in range(pieces):
        last = index == pieces - 1
        length = len(packet) - index if last else 1
        DESCRIPTOR.pack_into(views, table + 16 * index, at + index, length, 0 if last else NEXT, index + 1)
    bench.driver.tx.write_descriptor(0, table, 16 * pieces, INDIRECT)
    bench.driver.tx.offer(0)


@pytest.mark.parametrize("pieces", [HEADER_BYTES + MAX_VIEWS, HEADER_BYTES + MAX_VIEWS + 1, 1024])
def test_a_packet_in_more_pieces_than_the_kernel_takes_at_once_is_joined(pieces: int) -> None:
    bench = Bench()
    connection = bench.open()
    payload = numbered(2000)
    header = Header(GUEST_CID, HOST_CID, GUEST_PORT, HOST_PORT, len(payload), buf_alloc=ROOM)
    offer_in_pieces(bench, header.pack() + payload, pieces)
    bench.step()
    assert fake(connection).data == payload
    assert fake(connection).sends == ([MAX_VIEWS] if pieces == HEADER_BYTES + MAX_VIEWS else [1])


def test_many_small_packets_are_passed_on_in_bounded_lists() -> None:
    bench = Bench(queue_size=1024)
    connection = bench.open()
    for number in range(2 * MAX_VIEWS - 1):
        bench.answer(connection, Op.RW, bytes([number & 255]))
    bench.run()
    assert len(fake(connection).data) == 2 * MAX_VIEWS - 1
    assert max(map(len, fake(connection).taken)) <= MAX_CHAINS_AT_ONCE


def test_pieces_of_several_packets_are_passed_on_before_they_are_too_many() -> None:
    bench = Bench(layout=Layout(100, header_apart=True, indirect=True))
    connection = bench.open()
    for _ in range(7):
        bench.answer(connection, Op.RW, bytes(99))
    bench.run()
    assert list(map(len, fake(connection).taken)) == [6 * 99, 99]


def test_who_is_gone_while_more_comes() -> None:
    bench = Bench(layout=Layout(100, header_apart=True, indirect=True))
    connection = bench.open()
    fake(connection).broken = True
    for _ in range(7):
        bench.answer(connection, Op.RW, bytes(99))
    assert bench.ops() == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.HOST_RESET: 1}


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1])
def test_packets_without_a_whole_header_are_dropped(size: int) -> None:
    bench = Bench()
    bench.driver.send(bytes(size))
    assert bench.run() == []
    assert bench.muxer.report()["bad_packets"] == 1
    assert bench.driver.reclaim_tx() == 0  # it was given back already


@pytest.mark.parametrize("source", [0, 1, HOST_CID, GUEST_CID + 1, GUEST_CID | 1 << 32, (1 << 64) - 1])
def test_packets_of_others_than_the_guest_are_dropped(source: int) -> None:
    bench = Bench()
    connection = bench.open()
    for op in Op:
        bench.answer(connection, op, b"x" if op is Op.RW else b"", src_cid=source)
    assert bench.run() == []
    assert bench.muxer.report()["bad_packets"] == len(Op)
    assert (connection.state, fake(connection).taken) == (State.OPEN, [])


@pytest.mark.parametrize("length", [6, 1000, 0xFFFF_FFFF])
def test_a_length_beyond_the_packet_ends_the_connection(length: int) -> None:
    bench = Bench()
    connection = bench.open()
    bench.answer(connection, Op.RW, b"fine")
    bench.answer(connection, Op.RW, b"short", length=length)
    assert bench.ops() == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.PROTOCOL: 1}


def test_what_is_behind_the_payload_is_not_looked_at() -> None:
    bench = Bench(layout=TWO)
    connection = bench.open()
    bench.answer(connection, Op.RW, b"payload and more", length=7)
    bench.answer(connection, Op.CREDIT_UPDATE, b"nothing of this")
    bench.run()
    assert fake(connection).data == b"payload"


def test_more_than_credit_allows_ends_the_connection() -> None:
    bench = Bench(buffer_bytes=1000)
    connection, other = bench.open(FakeEnd(room=300)), bench.open(src_port=1)
    bench.answer(connection, Op.RW, bytes(1000))
    bench.run()
    bench.answer(connection, Op.RW, bytes(300))
    bench.run()
    assert connection.state is State.OPEN
    bench.answer(connection, Op.RW, bytes(1))
    bench.answer(other, Op.RW, b"other")
    assert bench.ops() == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.CREDIT: 1}
    assert fake(other).data == b"other"


def test_counters_that_cannot_be_end_the_connection() -> None:
    bench = Bench()
    first, second = bench.open(), bench.open(src_port=1)
    bench.answer(first, Op.RW, b"data", fwd_cnt=1)
    bench.answer(second, Op.CREDIT_UPDATE, fwd_cnt=1)
    assert bench.ops() == [Op.RST, Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.CREDIT: 2}


def test_payload_after_the_guests_end_of_stream_ends_the_connection() -> None:
    bench = Bench()
    connection = bench.open()
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    bench.answer(connection, Op.RW, b"data")
    assert bench.ops() == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.PROTOCOL: 1}


def test_what_the_host_side_does_not_take_is_kept_and_passed_on_in_order() -> None:
    bench = Bench()
    connection, other = bench.open(FakeEnd(room=10)), bench.open(src_port=1)
    end = fake(connection)
    stream = numbered(200_000)
    for at in range(0, len(stream), 50_000):
        bench.answer(connection, Op.RW, stream[at : at + 50_000])
        bench.answer(other, Op.RW, stream[at : at + 50_000])
    bench.run()
    assert (end.data, fake(other).data) == (stream[:10], stream)  # a slow reader stalls only itself
    for room in (0, 1, 60_000, 1 << 20):
        end.room = room
        bench.muxer.writable(connection)
    assert end.data == stream
    assert connection.pending is None
    bench.muxer.writable(connection)
    end.room = 1 << 20
    bench.answer(connection, Op.RW, b"more")
    bench.run()
    assert end.data == stream + b"more"


def test_small_packets_that_wait_are_joined() -> None:
    bench = Bench(buffer_bytes=20_000)
    connection = bench.open(FakeEnd(room=0))
    stream = numbered(10_000)
    for at in range(0, len(stream), 10):
        bench.answer(connection, Op.RW, stream[at : at + 10])
        bench.run()
    assert connection.pending is not None
    assert b"".join(connection.pending) == stream
    assert len(connection.pending) <= len(stream) // MERGED_BYTES + 1


def test_the_guest_is_told_of_room_when_half_is_free_again() -> None:
    bench = Bench(buffer_bytes=1000)
    connection = bench.open(FakeEnd(room=499))
    near = (1 << 32) - 250
    incoming = connection.incoming
    incoming.received = incoming.fwd_cnt = incoming.told_fwd_cnt = near
    bench.answer(connection, Op.RW, bytes(1000))
    assert bench.run() == []
    fake(connection).room = 1
    bench.muxer.writable(connection)
    ((header, _),) = bench.run()
    assert (header.op, header.buf_alloc, header.fwd_cnt) == (Op.CREDIT_UPDATE, 1000, 250)
    bench.answer(connection, Op.RW, bytes(500))
    assert bench.run() == []
    fake(connection).room = 1000
    bench.muxer.writable(connection)
    ((header, _),) = bench.run()
    assert (header.op, header.fwd_cnt) == (Op.CREDIT_UPDATE, 1250)


def test_a_question_for_credit_is_answered_once_each_time() -> None:
    bench = Bench()
    connection = bench.open()
    for _ in range(3):
        bench.answer(connection, Op.CREDIT_REQUEST)
    assert bench.ops() == [Op.CREDIT_UPDATE]
    bench.answer(connection, Op.CREDIT_REQUEST)
    assert bench.ops() == [Op.CREDIT_UPDATE]
    assert bench.ops() == []


def test_a_host_side_that_is_gone_when_there_is_room_ends_the_connection() -> None:
    bench = Bench()
    connection = bench.open(FakeEnd(room=0))
    bench.answer(connection, Op.RW, b"data")
    bench.run()
    fake(connection).broken = True
    bench.muxer.writable(connection)
    assert bench.ops() == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.HOST_RESET: 1}


# -- messages


def seqpacket(bench: Bench, end: FakeEnd | None = None) -> Connection:
    """An open SEQPACKET connection."""
    return bench.open(end or FakeEnd(SEQPACKET), type=SEQPACKET)


def test_messages_are_passed_on_whole_and_apart() -> None:
    bench = Bench(layout=MANY)
    connection = seqpacket(bench)
    messages = [numbered(size) for size in (1, 2, 64 << 10)]
    for message in messages:
        bench.answer(connection, Op.RW, message, flags=SEQ_EOM)
    bench.answer(connection, Op.RW, b"in ")
    bench.answer(connection, Op.RW, b"")
    bench.answer(connection, Op.RW, b"three ")
    bench.run()
    assert fake(connection).taken == messages
    bench.answer(connection, Op.RW, b"pieces", flags=SEQ_EOM | SEQ_EOR)
    bench.answer(connection, Op.RW, b"one")
    bench.answer(connection, Op.RW, b"", flags=SEQ_EOM)
    bench.run()
    assert fake(connection).taken == [*messages, b"in three pieces", b"one"]


def test_an_empty_message_ends_the_connection() -> None:
    bench = Bench()
    connection = seqpacket(bench)
    bench.answer(connection, Op.RW, b"", flags=SEQ_EOM)
    assert bench.ops() == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.MESSAGE: 1}


def test_the_longest_message_comes_and_one_that_is_longer_has_no_credit() -> None:
    bench = Bench(buffer_bytes=4 * MAX_MESSAGE_BYTES)
    connection = seqpacket(bench)
    half = numbered(MAX_MESSAGE_BYTES // 2)
    bench.answer(connection, Op.RW, half)
    bench.answer(connection, Op.RW, half, flags=SEQ_EOM)
    bench.run()
    assert fake(connection).taken == [half + half]
    for piece in (half, half, b"x"):
        bench.answer(connection, Op.RW, piece)
    assert bench.ops() == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.CREDIT: 1}


def test_messages_that_wait_stay_apart() -> None:
    bench = Bench()
    connection = seqpacket(bench, FakeEnd(SEQPACKET, room=5))
    messages = [b"first", b"second", b"third"]
    for message in messages:
        bench.answer(connection, Op.RW, message, flags=SEQ_EOM)
    bench.run()
    end = fake(connection)
    assert end.taken == messages[:1]
    for room in (5, 6, 100):
        end.room = room
        bench.muxer.writable(connection)
    assert end.taken == messages
    assert connection.pending is None


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_a_message_for_a_host_side_that_is_gone(room: int) -> None:
    bench = Bench()
    connection = seqpacket(bench, FakeEnd(SEQPACKET, room=room))
    if not room:
        bench.answer(connection, Op.RW, b"waits", flags=SEQ_EOM)
        bench.run()
    fake(connection).broken = True
    bench.answer(connection, Op.RW, b"message", flags=SEQ_EOM)
    if not room:
        bench.run()
        bench.muxer.writable(connection)
    assert bench.ops() == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.HOST_RESET: 1}


def test_the_sender_of_half_a_message_is_told_of_all_the_room_there_is() -> None:
    """Else it waits for room for the rest, and the room for it waits for the rest."""
    bench = Bench()
    connection = seqpacket(bench)
    bench.answer(connection, Op.RW, bytes(50_000), flags=SEQ_EOM)
    assert bench.ops() == []
    bench.answer(connection, Op.RW, bytes(60_000))
    ((header, _),) = bench.run()
    assert (header.op, header.fwd_cnt) == (Op.CREDIT_UPDATE, 50_000)
    bench.answer(connection, Op.RW, bytes(18_000))
    assert bench.ops() == []


def test_the_same_when_room_comes_later() -> None:
    bench = Bench()
    connection = seqpacket(bench, FakeEnd(SEQPACKET, room=0))
    bench.answer(connection, Op.RW, bytes(50_000), flags=SEQ_EOM)
    bench.answer(connection, Op.RW, bytes(60_000))
    assert bench.ops() == []
    fake(connection).room = 1 << 20
    bench.muxer.writable(connection)
    ((header, _),) = bench.run()
    assert (header.op, header.fwd_cnt) == (Op.CREDIT_UPDATE, 50_000)


# -- the queue


def test_one_go_is_bounded() -> None:
    bench = Bench(queue_size=1024)
    connection = bench.open()
    count = 2 * MAX_CHAINS_AT_ONCE + 1
    for _ in range(count):
        bench.answer(connection, Op.RW, b"x")
    goes = 1
    while bench.muxer.drain():
        assert len(fake(connection).data) == goes * MAX_CHAINS_AT_ONCE
        goes += 1
    assert (goes, fake(connection).data) == (3, b"x" * count)


@pytest.mark.parametrize("last", [Op.RW, Op.CREDIT_UPDATE])
def test_a_go_that_ends_with_the_last_packet_it_may_take(last: Op) -> None:
    bench = Bench(queue_size=256)
    connection = bench.open()
    for number in range(MAX_CHAINS_AT_ONCE):
        is_last = number == MAX_CHAINS_AT_ONCE - 1
        bench.answer(connection, last if is_last else Op.RW, b"" if is_last else b"x")
    assert bench.muxer.drain() is True
    assert len(fake(connection).data) == MAX_CHAINS_AT_ONCE - 1
    assert bench.muxer.drain() is False


def test_without_a_queue_there_is_nothing() -> None:
    bench = Bench()
    bench.guest(Op.REQUEST)
    indexes = bench.muxer.detach()
    assert not bench.muxer.attached
    assert bench.muxer.drain() is False
    assert bench.muxer.fill() is False
    bench.attach(*indexes)
    assert bench.muxer.attached
    bench.run()
    assert len(bench.host.wanted) == 1


def test_a_broken_queue_is_the_guests_doing_and_harms_nothing_that_comes_after() -> None:
    bench = Bench()
    connection = bench.open()
    end = fake(connection)
    bench.answer(connection, Op.RW, b"data")
    bench.driver.tx.write_descriptor(1, 1 << 60, 10)
    bench.driver.tx.offer(1)
    with pytest.raises(GuestError):
        bench.muxer.drain()
    bench.muxer.detach()
    bench.muxer.reset()
    assert end.calls == ["close"]
    bench.driver.reset()
    bench.driver.add_rx_buffers()
    bench.attach()
    again = bench.open()
    bench.answer(again, Op.RW, b"again")
    bench.run()
    assert fake(again).data == b"again"
