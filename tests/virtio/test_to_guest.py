"""What the guest receives: in which buffers, in which packets, and in whose turn."""

from __future__ import annotations

import itertools

import pytest

from hvsock.virtio.connection import FIRST_WINDOW_BYTES, Connection, Reason, State
from hvsock.virtio.memory import GuestError
from hvsock.virtio.packet import (
    HEADER_BYTES,
    HOST_CID,
    MAX_PAYLOAD_BYTES,
    SEQ_EOM,
    SEQPACKET,
    Header,
    Op,
    Shutdown,
)
from hvsock.virtio.to_guest import MAX_STRAYS, MAX_VIEWS, MAX_WINDOW_BYTES
from hvsock.virtio.virtqueue import NEXT, WRITE
from tests.virtio.fakes import GUEST_CID, GUEST_PORT, HOST_PORT, Bench, FakeEnd, Packet, numbered

BUFFERS = 1 << 32
"""Guest address of the receive buffers."""
LARGE = 10 << 20
"""Room of a guest's socket that is no bound here."""


def send(bench: Bench, connection: Connection, *pieces: bytes) -> list[Packet]:
    """Let the host's side send, and tell what the guest receives."""
    assert isinstance(connection.end, FakeEnd)
    connection.end.outbox.extend(pieces)
    bench.muxer.readable(connection)
    return bench.run()


def payload_of(packets: list[Packet]) -> bytes:
    """What they carry."""
    assert {header.op for header, _ in packets} <= {Op.RW}
    return b"".join(payload for _, payload in packets)


def add_buffers(bench: Bench, *sizes: int) -> None:
    """Give the device one receive buffer that is made of pieces of these sizes."""
    queue, at = bench.driver.rx, 0
    for index, size in enumerate(sizes):
        last = index == len(sizes) - 1
        queue.write_descriptor(index, BUFFERS + at, size, WRITE if last else WRITE | NEXT, index + 1)
        at += size
    queue.offer(0)


def test_the_header_says_all_that_it_should() -> None:
    bench = Bench(buffer_bytes=12345)
    connection = bench.open()
    ((header, payload),) = send(bench, connection, b"hello")
    assert payload == b"hello"
    assert header == Header(HOST_CID, GUEST_CID, HOST_PORT, GUEST_PORT, 5, 1, Op.RW, 0, 12345, 0)


@pytest.mark.parametrize(
    "sizes",
    [
        [HEADER_BYTES + 1],
        [HEADER_BYTES, 1],
        [HEADER_BYTES, 100],
        [HEADER_BYTES + 10, 90],
        [HEADER_BYTES + 10, 40, 50],
        [1] * (HEADER_BYTES + 60),
        [10, 30, 3, 1, 70],
        [10, 30, 10, 70],
        [HEADER_BYTES - 1, 101],
        [HEADER_BYTES + MAX_PAYLOAD_BYTES],
        [HEADER_BYTES + MAX_PAYLOAD_BYTES + 1],
        [HEADER_BYTES, MAX_PAYLOAD_BYTES, 100],
        [HEADER_BYTES + 5, MAX_PAYLOAD_BYTES, 100],
        [20, 30, MAX_PAYLOAD_BYTES, 100],
        [1] * (HEADER_BYTES + MAX_VIEWS + 10),
    ],
)
def test_buffers_in_any_pieces(sizes: list[int]) -> None:
    bench = Bench(feeds=False, rx_buffer_bytes=64 << 10, queue_size=1024)
    connection = bench.open(buf_alloc=LARGE)
    assert isinstance(connection.end, FakeEnd)
    connection.window = MAX_WINDOW_BYTES
    stream = numbered(2 * MAX_PAYLOAD_BYTES)
    connection.end.outbox.append(stream)
    bench.muxer.readable(connection)
    add_buffers(bench, *sizes)  # for the RESPONSE
    bench.muxer.fill()
    add_buffers(bench, *sizes)
    bench.muxer.fill()
    assert bench.rx.publish()
    (_, first), (head, length) = bench.driver.rx.collect()
    room = min(sum(sizes) - HEADER_BYTES, MAX_PAYLOAD_BYTES)
    if len(sizes) > MAX_VIEWS:
        room = MAX_VIEWS
    assert (first, head, length) == (HEADER_BYTES, 0, HEADER_BYTES + room)
    written = b"".join(bench.driver.memory.views(BUFFERS, length))
    assert Header.unpack(written).length == room
    assert written[HEADER_BYTES:] == stream[:room]


@pytest.mark.parametrize("size", [1, HEADER_BYTES - 1, HEADER_BYTES])
def test_a_buffer_without_room_for_a_byte_breaks_the_queue(size: int) -> None:
    bench = Bench(feeds=False)
    bench.guest(Op.RW)
    assert bench.muxer.drain() is False
    add_buffers(bench, size)
    with pytest.raises(GuestError, match="no room"):
        bench.muxer.fill()


@pytest.mark.parametrize("rx_buffer_bytes", [HEADER_BYTES + 1, 100, 4096, 1 << 20])
@pytest.mark.parametrize("queue_size", [1, 2, 128])
def test_a_stream_comes_whole_through_buffers_of_any_size(rx_buffer_bytes: int, queue_size: int) -> None:
    bench = Bench(queue_size=queue_size, rx_buffer_bytes=rx_buffer_bytes)
    connection = bench.open(buf_alloc=LARGE)
    largest = min(rx_buffer_bytes - HEADER_BYTES, MAX_PAYLOAD_BYTES)
    stream = numbered(500 * min(largest, FIRST_WINDOW_BYTES))
    packets = send(bench, connection, stream)
    assert payload_of(packets) == stream
    assert max(header.length for header, _ in packets) == largest


def test_the_window_grows_while_it_is_filled_and_is_bounded() -> None:
    bench = Bench(queue_size=1024)
    end = FakeEnd()
    connection = bench.open(end, buf_alloc=LARGE)
    send(bench, connection, numbered(3 << 20))
    assert end.reads[0] == FIRST_WINDOW_BYTES
    assert end.reads[1] == FIRST_WINDOW_BYTES  # the RESPONSE was followed by a look
    assert end.reads[2] == 2 * FIRST_WINDOW_BYTES
    assert max(end.reads) == MAX_WINDOW_BYTES
    connection.window = MAX_WINDOW_BYTES
    send(bench, connection, numbered(MAX_WINDOW_BYTES - 1))
    assert connection.window == MAX_WINDOW_BYTES - 1
    send(bench, connection, numbered(MAX_WINDOW_BYTES))
    assert max(end.reads) == MAX_WINDOW_BYTES


def test_nothing_exceeds_the_guests_credit_and_a_stall_ends_with_it() -> None:
    bench = Bench()
    connection = bench.open(buf_alloc=1000)
    stream = numbered(2500)
    (first, first_payload), (request, _) = send(bench, connection, stream)
    assert (first.length, request.op) == (1000, Op.CREDIT_REQUEST)
    assert connection.stalled
    bench.muxer.readable(connection)
    assert bench.run() == []
    bench.answer(connection, Op.CREDIT_UPDATE, buf_alloc=1000, fwd_cnt=0)
    assert bench.run() == []
    bench.answer(connection, Op.CREDIT_UPDATE, buf_alloc=500, fwd_cnt=100)  # less room, all of it in use
    assert bench.run() == []
    bench.answer(connection, Op.CREDIT_UPDATE, buf_alloc=1000, fwd_cnt=700)
    (second, second_payload), (request, _) = bench.run()
    assert (second.length, request.op) == (700, Op.CREDIT_REQUEST)
    bench.answer(connection, Op.CREDIT_UPDATE, buf_alloc=1000, fwd_cnt=1700)
    ((_, third_payload),) = bench.run()
    assert first_payload + second_payload + third_payload == stream
    assert not connection.stalled
    assert bench.muxer.report()["services"]["service"]["stalls"] == 2


def test_credit_goes_over_the_wrap_of_its_counters() -> None:
    bench = Bench()
    connection = bench.open(buf_alloc=1000)
    near = (1 << 32) - 300
    connection.outgoing.sent = connection.outgoing.fwd_cnt = near
    stream = numbered(10_000)
    got = payload_of([(header, data) for header, data in send(bench, connection, stream) if data])
    while len(got) < len(stream):
        assert connection.outgoing.sent == (near + len(got)) & 0xFFFF_FFFF
        bench.answer(connection, Op.CREDIT_UPDATE, buf_alloc=1000, fwd_cnt=(near + len(got)) & 0xFFFF_FFFF)
        more = payload_of([(header, data) for header, data in bench.run() if data])
        assert 0 < len(more) <= 1000
        got += more
    assert got == stream


def test_connections_take_turns() -> None:
    """While one moves a lot, another gets its few bytes through at once; a third without credit waits alone."""
    bench = Bench(queue_size=1024)
    fast, slow, stalled = (
        bench.open(src_port=port, buf_alloc=room) for port, room in ((1, LARGE), (2, LARGE), (3, 10))
    )
    for connection, size in ((stalled, 100), (fast, 4 << 20), (slow, 100)):
        assert isinstance(connection.end, FakeEnd)
        connection.end.outbox.append(bytes(size))
        bench.muxer.readable(connection)
    packets = [header for header, _ in bench.run() if header.op == Op.RW]
    sent_before: dict[int, int] = dict.fromkeys((1, 2, 3), 0)
    order = [header.dst_port for header in packets]
    assert sum(header.length for header in packets if header.dst_port == 3) == 10
    for header in itertools.takewhile(lambda header: header.dst_port != 2, packets):
        sent_before[header.dst_port] += header.length
    assert sent_before[1] <= MAX_WINDOW_BYTES
    assert order.count(2) == 1
    assert sum(header.length for header in packets if header.dst_port == 1) == 4 << 20


def test_two_that_send_much_share_evenly() -> None:
    bench = Bench(queue_size=64)
    for connection in [bench.open(src_port=port, buf_alloc=LARGE) for port in (1, 2)]:
        assert isinstance(connection.end, FakeEnd)
        connection.end.outbox.append(bytes(4 << 20))
        bench.muxer.readable(connection)
    moved = {1: 0, 2: 0}
    for header, _ in bench.run():
        moved[header.dst_port] += header.length
        assert abs(moved[1] - moved[2]) <= 2 * MAX_WINDOW_BYTES or max(moved.values()) == 4 << 20
    assert moved == {1: 4 << 20, 2: 4 << 20}


def test_without_buffers_a_connection_keeps_its_place() -> None:
    bench = Bench(queue_size=4, rx_buffer_bytes=100, feeds=False)
    first, second = (bench.open(src_port=port) for port in (1, 2))
    for connection in (first, second):
        assert isinstance(connection.end, FakeEnd)
        connection.end.outbox.append(bytes(30))
        bench.muxer.readable(connection)
    assert bench.muxer.depth == 4
    bench.driver.add_rx_buffers()
    packets = bench.run()
    assert [(header.op, header.dst_port) for header, _ in packets] == [
        (Op.RESPONSE, 1),
        (Op.RESPONSE, 2),
        (Op.RW, 1),
        (Op.RW, 2),
    ]


def test_payload_goes_to_nobody_who_said_that_he_receives_no_more() -> None:
    bench = Bench(feeds=False)
    connection = bench.open()
    assert isinstance(connection.end, FakeEnd)
    connection.end.outbox.append(b"data")
    bench.muxer.readable(connection)
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.RECEIVE)
    bench.driver.add_rx_buffers()
    assert bench.ops() == [Op.RESPONSE]
    assert connection.end.calls == ["deafen"]
    assert connection.end.reads == []


def test_a_reset_that_comes_up_while_filling_is_sent_though_buffers_were_taken_before() -> None:
    """All buffers are in the device's hands already, so no news of more will ever come."""
    bench = Bench(queue_size=8, feeds=False)
    bench.driver.add_rx_buffers()
    first, second = (bench.open(src_port=port, buf_alloc=LARGE) for port in (1, 2))
    first.window = MAX_WINDOW_BYTES
    assert bench.ops() == [Op.RESPONSE]
    bench.muxer.readable(first)  # takes all the buffers to find nothing
    assert bench.ops() == []
    assert bench.rx.pending == 0
    assert isinstance(second.end, FakeEnd)
    second.end.broken = True
    bench.muxer.readable(second)
    assert bench.ops() == [Op.RST]


def test_an_update_of_credit_is_left_out_when_another_packet_told_it() -> None:
    bench = Bench(buffer_bytes=1000)
    connection = bench.open()
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.RECEIVE)
    bench.answer(connection, Op.RW, bytes(600))
    assert bench.muxer.drain() is False
    assert isinstance(connection.end, FakeEnd)
    connection.end.gone = True
    bench.muxer.hung_up(connection)
    packets = bench.run()
    assert [(header.op, header.flags, header.fwd_cnt) for header, _ in packets] == [
        (Op.SHUTDOWN, Shutdown.BOTH, 600)
    ]


@pytest.mark.parametrize("rx_buffer_bytes", [100, 4096, 1 << 20])
def test_messages_come_whole_and_marked(rx_buffer_bytes: int) -> None:
    bench = Bench(rx_buffer_bytes=rx_buffer_bytes)
    connection = bench.open(type=SEQPACKET)
    messages = [numbered(size) for size in (1, 56, 57, 5000, 100_000)]
    packets = send(bench, connection, *messages)
    found, part = [], b""
    for header, payload in packets:
        assert (header.type, header.flags & ~SEQ_EOM) == (SEQPACKET, 0)
        part += payload
        if header.flags:
            found.append(part)
            part = b""
    assert (found, part) == (messages, b"")


def test_a_message_waits_for_credit_in_its_midst() -> None:
    bench = Bench()
    connection = bench.open(type=SEQPACKET, buf_alloc=1000)
    packets = send(bench, connection, numbered(600), numbered(900), b"last")
    assert [(header.op, header.length, header.flags) for header, _ in packets] == [
        (Op.RW, 600, SEQ_EOM),
        (Op.RW, 400, 0),
        (Op.CREDIT_REQUEST, 0, 0),
    ]
    bench.answer(connection, Op.CREDIT_UPDATE, buf_alloc=1000, fwd_cnt=600)
    packets = bench.run()
    assert [(header.length, header.flags) for header, _ in packets] == [(500, SEQ_EOM), (4, SEQ_EOM)]


def test_a_message_waits_for_buffers_in_its_midst() -> None:
    bench = Bench(queue_size=2, rx_buffer_bytes=HEADER_BYTES + 100, feeds=False)
    connection = bench.open(type=SEQPACKET)
    bench.driver.add_rx_buffers()
    message = numbered(250)
    packets = send(bench, connection, message)
    assert [(header.op, header.length, header.flags) for header, _ in packets] == [
        (Op.RESPONSE, 0, 0),
        (Op.RW, 100, 0),
    ]
    bench.driver.add_rx_buffers()
    packets += bench.run()
    assert payload_of(packets[1:]) == message
    assert [header.flags for header, _ in packets] == [0, 0, 0, SEQ_EOM]


def test_a_message_longer_than_all_the_guests_room_ends_its_connection() -> None:
    bench = Bench()
    connection = bench.open(type=SEQPACKET, buf_alloc=1000)
    assert payload_of(send(bench, connection, bytes(1000))) == bytes(1000)
    packets = send(bench, connection, bytes(1001))
    assert [header.op for header, _ in packets] == [Op.RST]
    assert bench.muxer.counted["service"].ended == {Reason.MESSAGE: 1}


def test_the_host_sides_end_and_its_reset_of_messages() -> None:
    bench = Bench()
    connection = bench.open(type=SEQPACKET)
    assert isinstance(connection.end, FakeEnd)
    connection.end.ended = True
    packets = send(bench, connection, b"last words")
    assert [(header.op, header.flags) for header, _ in packets] == [(Op.RW, SEQ_EOM), (Op.SHUTDOWN, Shutdown.SEND)]
    other = bench.open(type=SEQPACKET, src_port=1)
    assert isinstance(other.end, FakeEnd)
    other.end.broken = True
    assert [header.op for header, _ in send(bench, other)] == [Op.RST]


def test_resets_for_no_connection_are_bounded() -> None:
    """A guest that sends what belongs to nothing, and takes no answer, is not listened to after a while."""
    bench = Bench(feeds=False)
    watched = bench.open(src_port=7)
    sent = 0
    for port in range(3 * MAX_STRAYS):
        if not bench.driver.send(Header(GUEST_CID, HOST_CID, port, 9, op=Op.RW).pack()):
            break
        sent += 1
        assert bench.run() == []
    assert MAX_STRAYS <= sent <= MAX_STRAYS + bench.driver.tx.size
    assert not bench.muxer.takes_packets
    assert bench.muxer.depth == MAX_STRAYS + 2  # with the answer to the watched connection, and its turn
    bench.feeds = True
    bench.driver.add_rx_buffers()
    packets = bench.run()
    resets = [header for header, _ in packets if header.op == Op.RST]
    assert [header.dst_port for header in resets] == list(range(sent))
    assert watched.state is State.OPEN
    assert bench.muxer.takes_packets


def test_the_queue_stops_and_starts_elsewhere_and_nothing_is_lost() -> None:
    bench = Bench(queue_size=16)
    connection = bench.open(buf_alloc=LARGE)
    end = connection.end
    assert isinstance(end, FakeEnd)
    stream = numbered(200_000)
    end.outbox.append(stream)
    got = b""
    for _ in range(1000):
        bench.muxer.readable(connection)
        bench.step()  # buffers beyond what was filled stay taken
        bench.attach(*bench.muxer.detach())
        got += b"".join(payload[HEADER_BYTES:] for payload in bench.driver.received())
        if len(got) == len(stream):
            break
    assert got == stream


def test_buffers_that_were_taken_and_not_filled_are_put_back() -> None:
    bench = Bench(queue_size=8)
    connection = bench.open()
    connection.window = MAX_WINDOW_BYTES
    bench.muxer.readable(connection)  # takes all the buffers to find nothing
    assert bench.run() == []
    assert bench.rx.pending == 0
    rx, tx = bench.muxer.detach()
    assert (rx, tx) == (1, 1)
    bench.attach(rx, tx)
    stream = numbered(20_000)
    assert payload_of(send(bench, connection, stream)) == stream
