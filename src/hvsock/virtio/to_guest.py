"""What goes to the guest: packets into the buffers of its rx queue (pure).

Two kinds wait for buffers. *Control* packets are at most one of each kind for each connection, and end with it;
resets that belong to no connection hold up the tx queue when they are many. So neither grows without limit.
*Payload* is not kept here at all: the bytes go from the host's side straight into the guest's buffers, as many at
once as the guest has credit and buffers for. Connections take turns, so one that is fast does not hold up another,
and one whose guest does not read only itself.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from .connection import BROKEN, END, FIRST_WINDOW_BYTES, Connection, Reason, State
from .memory import GuestError
from .packet import (
    HEADER,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    SEQ_EOM,
    SEQPACKET,
    STREAM,
    Op,
    Shutdown,
)
from .virtqueue import Virtqueue

MAX_STRAYS: Final = 1024
"""Resets that wait for the guest, for packets that belonged to no connection; with more the tx queue waits."""
RESET_ROOM_BYTES: Final = 0xFFFF_FFFF
"""Room that a reset tells of: Linux has who sends wait for room, and looks only then whether anybody is there."""
MAX_WINDOW_BYTES: Final = 256 << 10
"""Most bytes that one connection moves in its turn: the room of a Linux socket; others wait 0.1 ms for it."""
MAX_VIEWS: Final = 512
"""Most buffers filled at once, and most pieces of one packet; the kernel takes 1,024 (UIO_MAXIOV) at once."""
MAX_MESSAGE_BYTES: Final = 128 << 10
"""Longest SEQPACKET message, as everywhere in hvsock."""

_RECEIVE = int(Shutdown.RECEIVE)
_SEND = int(Shutdown.SEND)  # flags of an enumeration take a microsecond

Stray = tuple[int, int, int]
"""Guest's port, peer's CID, peer's port."""


class Chain:
    """A buffer of the rx queue that is taken and not filled yet."""

    __slots__ = ("head", "header", "payload", "room")

    def __init__(self, head: int, segments: list[memoryview], total: int) -> None:
        if total <= HEADER_BYTES:
            raise GuestError(f"a receive buffer of {total} bytes has no room for a header and payload")
        self.head = head
        self.room = total - HEADER_BYTES
        first = segments[0]
        if len(segments) == 1 and self.room <= MAX_PAYLOAD_BYTES:
            self.header = segments
            self.payload = [first[HEADER_BYTES:]]
            return
        self.header = []
        if len(first) > HEADER_BYTES:
            self.header.append(first)
            first = first[HEADER_BYTES:]
            if self.room > MAX_PAYLOAD_BYTES:
                segments[0] = first
            else:
                self.payload = [first, *segments[1:]] if len(segments) > 1 else [first]
                return
        else:
            missing = HEADER_BYTES
            while missing:
                piece = segments.pop(0)
                self.header.append(piece[:missing])
                if len(piece) > missing:
                    segments.insert(0, piece[missing:])
                missing -= len(self.header[-1])
        self.room = min(self.room, MAX_PAYLOAD_BYTES)
        self.payload = cut(segments, self.room)

    def write_header(self, packed: bytes) -> None:
        """Put a header in front of the payload."""
        if len(self.header) == 1:
            self.header[0][:HEADER_BYTES] = packed
            return
        for piece in self.header:
            piece[:] = packed[: len(piece)]
            packed = packed[len(piece) :]


def cut(views: list[memoryview], size: int) -> list[memoryview]:
    """The first `size` bytes of `views`."""
    kept = []
    for view in views:
        if size <= 0:
            break
        kept.append(view[:size] if len(view) > size else view)
        size -= len(view)
    return kept


class ToGuest:
    """The rx queue and what waits for it.

    Args:
        guest_cid: the guest's CID.
        drop: ends a connection: (connection, reason, whether to tell the guest).
        closed: the host's side of a connection closed, and all its data are with the guest.
    """

    def __init__(
        self,
        guest_cid: int,
        drop: Callable[[Connection, Reason, bool], None],
        closed: Callable[[Connection], None],
    ) -> None:
        self._guest_cid = guest_cid
        self._drop = drop
        self._closed = closed
        self._queue: Virtqueue | None = None
        self._chains: deque[Chain] = deque()  # taken, and not filled yet
        self._control: OrderedDict[Connection, None] = OrderedDict()
        self._strays: OrderedDict[Stray, tuple[int, int]] = OrderedDict()  # type, fwd_cnt
        self._ready: OrderedDict[Connection, None] = OrderedDict()
        self._message = memoryview(bytearray(MAX_MESSAGE_BYTES))

    def attach(self, queue: Virtqueue) -> None:
        """Use `queue` from now on."""
        self._queue = queue

    def detach(self) -> int:
        """Use the queue no more; returns the index of its first chain that was not filled."""
        assert self._queue is not None, "there is no rx queue"
        self._queue.put_back(len(self._chains))
        self._chains.clear()
        index = self._queue.next_available
        self._queue = None
        return index

    def forget_resets(self) -> None:
        """The guest knows nothing any more that a reset could end."""
        self._strays.clear()

    # -- what waits

    @property
    def depth(self) -> int:
        """Packets, and connections with payload, that wait for buffers."""
        return len(self._control) + len(self._strays) + len(self._ready)

    @property
    def room_for_strays(self) -> int:
        """How many more packets may be answered by a reset."""
        return MAX_STRAYS - len(self._strays)

    def post(self, connection: Connection, op: Op) -> None:
        """Send a packet without payload, once, with the connection's counters and host_shut as they are then."""
        connection.due |= 1 << op
        self._control[connection] = None

    def tell(self, connection: Connection) -> None:
        """Send a CREDIT_UPDATE, one for all that ask for it before it is sent."""
        self.post(connection, Op.CREDIT_UPDATE)

    def forget(self, connection: Connection) -> bool:
        """The guest ended the connection, or it is gone; whether the guest has heard of it at all."""
        has_heard = not connection.due & 1 << Op.REQUEST
        connection.due = 0
        self._control.pop(connection, None)
        self._ready.pop(connection, None)
        return has_heard

    def reset(self, stray: Stray, type_: int) -> None:
        """Send RST for something that is no connection."""
        self._strays.setdefault(stray, (type_, 0))

    def end(self, connection: Connection) -> None:
        """Send RST for a connection that is no more."""
        self._strays[connection.key] = connection.type, connection.incoming.received

    def forget_reset(self, stray: Stray) -> None:
        """The guest uses the pair of ports anew: a reset of the old connection would end the new one."""
        self._strays.pop(stray, None)

    def ready(self, connection: Connection) -> None:
        """Give the connection its turn, if it has something to read and is not waiting already."""
        if connection.readable and not connection.stalled:
            self._ready[connection] = None

    # -- filling

    def fill(self) -> bool:
        """Put into the rx queue what there is; whether more waits that found buffers enough for now.

        Raises:
            GuestError: the queue is broken; the guest's doing.
        """
        if self._queue is None or not self._send_control():
            return False
        ready = self._ready
        for _ in range(len(ready)):
            connection, _ = ready.popitem(last=False)
            if connection.state is not State.OPEN or connection.host_shut & _SEND:
                continue
            if connection.guest_shut & _RECEIVE:
                continue
            filled = self._fill_stream if connection.type == STREAM else self._fill_message
            if not filled(connection):
                ready[connection] = None
                ready.move_to_end(connection, last=False)
                return False
            self.ready(connection)
        return self.depth > 0

    def _chain(self) -> Chain | None:
        """One more chain of the queue, put behind the others that are taken."""
        assert self._queue is not None, "there is no rx queue"
        taken = self._queue.take()
        if taken is None:
            return None
        chain = Chain(*taken)
        self._chains.append(chain)
        return chain

    def _send_control(self) -> bool:
        """Send what has no payload; whether there were buffers for all of it."""
        strays, control = self._strays, self._control
        while strays:
            if not self._chains and self._chain() is None:
                return False
            (guest_port, cid, port), (type_, fwd_cnt) = strays.popitem(last=False)
            self._put(cid, port, guest_port, type_, Op.RST, 0, RESET_ROOM_BYTES, fwd_cnt)
        while control:
            connection = next(iter(control))
            bit = connection.due & -connection.due
            op = Op(bit.bit_length() - 1)
            incoming = connection.incoming
            # unless another packet told it meanwhile
            if op is not Op.CREDIT_UPDATE or connection.asked or incoming.told_fwd_cnt != incoming.fwd_cnt:
                if not self._chains and self._chain() is None:
                    return False
                incoming.told_fwd_cnt = incoming.fwd_cnt
                connection.packets_to_guest += 1
                self._put(
                    connection.peer_cid, connection.peer_port, connection.guest_port, connection.type, op,
                    connection.host_shut if op is Op.SHUTDOWN else 0, incoming.buf_alloc, incoming.fwd_cnt,
                )  # fmt: skip
            if op is Op.CREDIT_UPDATE:
                connection.asked = False
            connection.due ^= bit
            if not connection.due:
                del control[connection]
        return True

    def _put(
        self, cid: int, port: int, guest_port: int, type_: int, op: Op, flags: int, buf_alloc: int, fwd_cnt: int
    ) -> None:
        chain = self._chains.popleft()
        fields = cid, self._guest_cid, port, guest_port, 0, type_, op, flags, buf_alloc, fwd_cnt
        chain.write_header(HEADER.pack(*fields))
        assert self._queue is not None, "there is no rx queue"
        self._queue.give(chain.head, HEADER_BYTES)

    def _views(self, limit: int) -> tuple[list[memoryview], int]:
        """Room for up to `limit` bytes of payload, in chains that stay in line; and how much it is."""
        views: list[memoryview] = []
        room = 0
        for chain in self._chains:
            views += chain.payload
            room += chain.room
            if room >= limit:
                break
        assert self._queue is not None, "there is no rx queue"
        while room < limit and len(views) < MAX_VIEWS:
            # as many as are needed if they are as large as the last one
            size = self._chains[-1].room if self._chains else limit
            taken = self._queue.take_some(min(-(-(limit - room) // size), MAX_VIEWS))
            if not taken:
                break
            for one in taken:
                more = Chain(*one)
                self._chains.append(more)
                views += more.payload
                room += more.room
        if len(views) > MAX_VIEWS:
            views = views[:MAX_VIEWS]
            room = sum(map(len, views))
        if room > limit:
            return cut(views, limit), limit
        return views, room

    def _fill_stream(self, connection: Connection) -> bool:
        """Move what one turn allows; False when the guest has no buffers."""
        free = connection.outgoing.free
        if not free:
            self._stall(connection)
            return True
        views, room = self._views(min(free, connection.window))
        if not room:
            return False
        assert connection.end is not None, "an open connection has an end"
        count = connection.end.receive(views)
        if count > 0:
            self._put_payload(connection, count)
            if count < room:
                # nobody tells of an end of stream that was there already
                connection.readable = connection.ending
                connection.window = max(FIRST_WINDOW_BYTES, count)
            else:
                connection.window = min(2 * connection.window, MAX_WINDOW_BYTES)
            return True
        connection.readable = False
        if count == END:
            self._closed(connection)
        elif count == BROKEN:
            self._drop(connection, Reason.HOST_RESET, True)
        return True

    def _put_payload(self, connection: Connection, count: int, last_flags: int = 0) -> None:
        """Turn `count` bytes that are in the first chains into packets."""
        chains, queue, incoming = self._chains, self._queue, connection.incoming
        assert queue is not None, "there is no rx queue"
        cid, port, guest_port, type_ = (
            connection.peer_cid, connection.peer_port, connection.guest_port, connection.type,
        )  # fmt: skip
        guest_cid, buf_alloc, fwd_cnt = self._guest_cid, incoming.buf_alloc, incoming.fwd_cnt
        incoming.told_fwd_cnt = fwd_cnt
        left, rw = count, int(Op.RW)
        elements: list[int] = []
        packed, packed_for = b"", 0
        while left:
            chain = chains.popleft()
            size = chain.room
            if size >= left:
                size = left
                fields = cid, guest_cid, port, guest_port, size, type_, rw, last_flags, buf_alloc, fwd_cnt
                packed = HEADER.pack(*fields)
            elif size != packed_for:  # all but the last are alike
                packed = HEADER.pack(cid, guest_cid, port, guest_port, size, type_, rw, 0, buf_alloc, fwd_cnt)
                packed_for = size
            left -= size
            chain.write_header(packed)
            elements.append(chain.head | HEADER_BYTES + size << 32)
        queue.give_some(elements)
        connection.packets_to_guest += len(elements)
        connection.bytes_to_guest += count
        connection.outgoing.take(count)

    def _fill_message(self, connection: Connection) -> bool:
        """The same for a SEQPACKET connection: a message at a time, in as many pieces as it takes."""
        assert connection.type == SEQPACKET, "streams have no messages"
        if connection.unsent is None:
            assert connection.end is not None, "an open connection has an end"
            count = connection.end.receive([self._message])
            if count <= 0:
                connection.readable = False
                if count == END:
                    self._closed(connection)
                elif count == BROKEN:
                    self._drop(connection, Reason.HOST_RESET, True)
                return True
            if count > connection.outgoing.buf_alloc:  # the guest would wait for its end for ever
                self._drop(connection, Reason.MESSAGE, True)
                return True
            connection.unsent = memoryview(bytes(self._message[:count]))
        rest = connection.unsent
        free = connection.outgoing.free
        if not free:
            self._stall(connection)
            return True
        views, room = self._views(min(free, len(rest)))
        if not room:
            return False
        start = 0
        for view in views:
            view[:] = rest[start : start + len(view)]
            start += len(view)
        connection.unsent = rest[room:] if room < len(rest) else None
        self._put_payload(connection, room, 0 if connection.unsent else SEQ_EOM)
        return True

    def _stall(self, connection: Connection) -> None:
        """The guest has no room: the connection waits until it tells of some."""
        connection.stalled = True
        connection.stalls += 1
        self.post(connection, Op.CREDIT_REQUEST)
