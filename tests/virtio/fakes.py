"""A host's side that keeps what it is given, and a bench: a muxer between it and the fake guest driver."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from hvsock.testing.virtio_driver import ONE, PAGE_BYTES, Driver, Layout
from hvsock.virtio.connection import BROKEN, END, WOULD_BLOCK, Connection, Reason, State
from hvsock.virtio.muxer import DEFAULT_BUFFER_BYTES, DEFAULT_CONNECTIONS, Muxer
from hvsock.virtio.packet import HEADER_BYTES, HOST_CID, SEQPACKET, STREAM, Header, Op
from hvsock.virtio.session import RX, TX

GUEST_CID: Final = 42
GUEST_PORT: Final = 5000
HOST_PORT: Final = 80
ROOM: Final = 256 << 10
"""Bytes of a guest's socket: Linux's default."""
MAX_ROUNDS: Final = 10_000
"""Rounds after which a bench that finds no rest is in an endless loop."""

Packet = tuple[Header, bytes]


class FakeEnd:
    """A host's side of one connection.

    Attributes:
        taken: what it was given: pieces of a stream, or messages.
        room: bytes that it takes, before it takes no more.
        outbox: what it has for the guest: pieces, or messages.
        ended: whether the end of stream follows that.
        gone: whether it takes nothing any more.
        broken: whether it is reset.
        calls: the methods called besides send and receive, in order.
        sends: numbers of pieces given to send().
        reads: sizes of what was offered to receive().
    """

    def __init__(self, type_: int = STREAM, room: int = 1 << 30) -> None:
        self.type = type_
        self.taken: list[bytes] = []
        self.room = room
        self.outbox: deque[bytes] = deque()
        self.ended = False
        self.gone = False
        self.broken = False
        self.calls: list[str] = []
        self.sends: list[int] = []
        self.reads: list[int] = []

    @property
    def data(self) -> bytes:
        """All that it was given."""
        return b"".join(self.taken)

    @property
    def is_open(self) -> bool:
        """Whether the muxer has not closed it."""
        return "close" not in self.calls

    def send(self, pieces: list[Any]) -> int:
        assert self.is_open
        assert "finish" not in self.calls
        assert pieces
        assert all(map(len, pieces))
        self.sends.append(len(pieces))
        if self.broken or self.gone:
            return BROKEN
        whole = b"".join(pieces)
        size = min(self.room, len(whole))
        if self.type == SEQPACKET:
            assert len(pieces) == 1
            size = len(whole) if size == len(whole) else 0
        if size:
            self.taken.append(whole[:size])
            self.room -= size
        return size

    def receive(self, views: list[memoryview]) -> int:
        assert self.is_open
        size = sum(map(len, views))
        assert size
        self.reads.append(size)
        if self.broken:
            return BROKEN
        if not self.outbox:
            return END if self.ended else WOULD_BLOCK
        if self.type == SEQPACKET:
            data = self.outbox.popleft()
            if len(data) > size:
                return BROKEN
        else:
            everything = b"".join(self.outbox)
            data, rest = everything[:size], everything[size:]
            self.outbox = deque([rest] if rest else [])
        at = 0
        for view in views:
            piece = data[at : at + len(view)]
            view[: len(piece)] = piece
            at += len(piece)
        return len(data)

    def finish(self) -> None:
        assert self.is_open
        if "finish" not in self.calls:
            self.calls.append("finish")

    def deafen(self) -> None:
        assert self.is_open
        assert "deafen" not in self.calls
        self.calls.append("deafen")

    def is_closed(self) -> bool:
        assert self.is_open
        return self.gone or self.broken or (self.ended and not self.outbox and "finish" in self.calls)

    def accept(self) -> None:
        assert self.calls == []
        self.calls.append("accept")

    def refuse(self, reason: Reason) -> None:
        assert self.calls == []
        self.calls.append(f"refuse {reason}")

    def close(self) -> None:
        assert self.is_open
        self.calls.append("close")


class FakeHost:
    """A host that keeps what the guest asks for."""

    def __init__(self) -> None:
        self.wanted: list[Connection] = []
        self.cancelled: list[Connection] = []

    def connect(self, connection: Connection) -> None:
        assert connection.state is State.OPENING
        self.wanted.append(connection)

    def cancel(self, connection: Connection) -> None:
        self.wanted.remove(connection)
        self.cancelled.append(connection)


class Bench:
    """A muxer, driven as the device's process does it.

    Attributes:
        feeds: whether the guest gives receive buffers back as soon as it has read them.
    """

    def __init__(
        self,
        *,
        queue_size: int = 128,
        rx_buffer_bytes: int = PAGE_BYTES,
        layout: Layout = ONE,
        event_idx: bool = True,
        index: int = 0,
        connections: int = DEFAULT_CONNECTIONS,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
        feeds: bool = True,
        driver: Driver | None = None,
    ) -> None:
        """A bench whose driver is made so, unless there is one already, which is started anew."""
        self.driver = driver or Driver(
            queue_size=queue_size, rx_buffer_bytes=rx_buffer_bytes, layout=layout, event_idx=event_idx
        )
        self.driver.reset(index)
        self.host = FakeHost()
        self.muxer = Muxer(GUEST_CID, self.host, connections=connections, buffer_bytes=buffer_bytes)
        self.feeds = feeds
        if feeds:
            self.driver.add_rx_buffers()
        self.attach(index, index)

    def attach(self, rx: int = 0, tx: int = 0) -> None:
        """Start the queues at these indexes."""
        self.rx = self.driver.virtqueue(RX, base=rx)
        self.tx = self.driver.virtqueue(TX, base=tx)
        self.muxer.attach(self.rx, self.tx)

    def guest(self, op: int, payload: bytes = b"", **fields: int) -> None:
        """Let the guest send a packet, between the usual ports unless `fields` say otherwise."""
        header = Header(GUEST_CID, HOST_CID, GUEST_PORT, HOST_PORT, len(payload), op=op, buf_alloc=ROOM)
        assert self.driver.send(header._replace(**fields).pack(), payload)

    def step(self) -> bool:
        """One round of the device; whether another one would find something to do."""
        more = self.muxer.drain()
        more |= self.muxer.fill()
        self.rx.publish()
        self.tx.publish()
        more |= self.tx.rearm() and self.muxer.takes_packets
        return more or (self.muxer.depth > 0 and self.rx.rearm())

    def run(self) -> list[Packet]:
        """Rounds until there is nothing to do; what the guest received."""
        packets: list[Packet] = []
        for _ in range(MAX_ROUNDS):
            more = self.step()
            self.driver.reclaim_tx()
            found = self.driver.received(add_again=self.feeds)
            packets += map(parse, found)
            if not more and not (found and self.feeds):
                return packets
        raise AssertionError("the muxer finds no rest")

    def ops(self) -> list[Op]:
        """Rounds until there is nothing to do; of what the guest received, what it was for."""
        return [Op(header.op) for header, _ in self.run()]

    def open(self, end: FakeEnd | None = None, *, service: str = "service", **fields: int) -> Connection:
        """A connection that the guest began."""
        self.guest(Op.REQUEST, b"", **fields)
        self.run()
        connection = self.host.wanted.pop()
        self.muxer.opened(connection, end or FakeEnd(connection.type), service)
        if self.feeds:
            assert self.ops() == [Op.RESPONSE]
        return connection

    def offer(self, end: FakeEnd | None = None, **options: Any) -> Connection:
        """A connection that the host's side begins, and that the guest has not answered."""
        end = end or FakeEnd(options.get("type_", STREAM))
        connection = self.muxer.offer(end, GUEST_PORT, **{"seconds": 2.0, "service": "service", **options})
        assert connection is not None
        return connection

    def answer(self, connection: Connection, op: int, payload: bytes = b"", **fields: int) -> None:
        """Let the guest send a packet of this connection."""
        own = {"src_port": connection.guest_port, "dst_cid": connection.peer_cid, "dst_port": connection.peer_port}
        self.guest(op, payload, **{**own, "type": connection.type, **fields})

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of any connection."""
        return not self.muxer.report()["connections"] and not self.muxer.depth


def parse(packet: bytes) -> Packet:
    """Header and payload, which is as long as the header says."""
    header, payload = Header.unpack(packet), packet[HEADER_BYTES:]
    assert (header.length, header.dst_cid) == (len(payload), GUEST_CID)
    return header, payload


def fake(connection: Connection) -> FakeEnd:
    """The connection's host side."""
    assert isinstance(connection.end, FakeEnd)
    return connection.end


def numbered(size: int, start: int = 0) -> bytes:
    """`size` bytes of which no two stretches are equal."""
    words = (size + 3) // 4
    return b"".join(number.to_bytes(4, "little") for number in range(start, start + words))[:size]
