"""What comes from the guest: packets out of its tx queue (pure).

The hot path is payload of open streams. Packets of one connection that come in a row are gathered and passed on
at once, straight out of guest memory; the chains are given back only after. What the host's side has no
room for is copied and kept; credit bounds that. Everything else goes to the muxer, packet by packet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from .connection import BROKEN, Connection, Reason, State
from .packet import HEADER, HEADER_BYTES, SEQ_EOM, SEQPACKET, Header, Op, Shutdown
from .to_guest import MAX_VIEWS, ToGuest, cut
from .virtqueue import Virtqueue

MAX_CHAINS_AT_ONCE: Final = 256
"""Chains of the tx queue in one go, before other work has its turn: a large queue of QEMU's."""

MERGED_BYTES: Final = 4096
"""Pieces shorter than that are joined with what comes behind them, so that many small ones take no more memory."""

_RW = int(Op.RW)
_SEND = int(Shutdown.SEND)  # flags of an enumeration take a microsecond


class Packets(Protocol):
    """Whoever knows the connections: the muxer."""

    table: dict[tuple[int, int, int], Connection]

    def packet(self, header: Header) -> None:
        """A packet without payload, or one that belongs to no open connection."""

    def told(self, connection: Connection, buf_alloc: int, fwd_cnt: int) -> bool:
        """The guest's counters; False when they cannot be, and the connection is dropped."""


class FromGuest:
    """The tx queue.

    Args:
        guest_cid: the guest's CID; packets from another are dropped.
        packets: gets all that is not payload.
        to_guest: where credit updates go.
        drop: ends a connection: (connection, reason, whether to tell the guest).

    Attributes:
        bad_packets: packets that were too short, or had another source than the guest.
    """

    def __init__(
        self,
        guest_cid: int,
        packets: Packets,
        to_guest: ToGuest,
        drop: Callable[[Connection, Reason, bool], None],
    ) -> None:
        self._guest_cid = guest_cid
        self._packets = packets
        self._to_guest = to_guest
        self._drop = drop
        self._queue: Virtqueue | None = None
        self.bad_packets = 0

    def attach(self, queue: Virtqueue) -> None:
        """Use `queue` from now on."""
        self._queue = queue

    def detach(self) -> int:
        """Use the queue no more; returns the index of its first chain that was not taken."""
        assert self._queue is not None, "there is no tx queue"
        index = self._queue.next_available
        self._queue = None
        return index

    def drain(self) -> bool:
        """Take packets from the tx queue; whether more may be there for another go.

        Raises:
            GuestError: the queue is broken; the guest's doing.
        """
        queue = self._queue
        if queue is None:
            return False
        unpack = HEADER.unpack_from
        table, guest_cid, to_guest = self._packets.table, self._guest_cid, self._to_guest
        current: Connection | None = None
        views: list[memoryview] = []
        left = MAX_CHAINS_AT_ONCE
        while left:
            # each may be answered by a reset
            taken = queue.take_some(min(left, to_guest.room_for_strays))
            if not taken:
                break
            left -= len(taken)
            queue.give_some([head for head, _, _ in taken])
            for _, segments, total in taken:
                if total < HEADER_BYTES:
                    self.bad_packets += 1
                    continue
                first = segments[0]
                fields = unpack(first) if len(first) >= HEADER_BYTES else unpack(_gather(segments))
                src_cid, dst_cid, src_port, dst_port, length, type_, op, flags, buf_alloc, fwd_cnt = fields
                if src_cid != guest_cid:
                    self.bad_packets += 1
                    continue
                connection = table.get((src_port, dst_cid, dst_port))
                if (
                    op != _RW
                    or connection is None
                    or connection.state is not State.OPEN
                    or connection.type != type_
                    or length > total - HEADER_BYTES
                ):
                    if current is not None:
                        self._pass_on(current, views)
                        current, views = None, []
                    self._packets.packet(Header._make(fields))
                    continue
                if connection is not current or len(views) >= MAX_VIEWS:
                    if current is not None:
                        self._pass_on(current, views)
                        views = []
                        if connection.state is not State.OPEN:  # it ended just now
                            current = None
                            continue
                    current = connection
                if not self._accept(connection, length, buf_alloc, fwd_cnt):
                    current, views = None, []
                    continue
                if type_ == SEQPACKET:
                    self._message(connection, _payload(segments, length), length, flags)
                    current = None
                elif len(segments) == 1 and length:
                    views.append(first[HEADER_BYTES : HEADER_BYTES + length])
                else:
                    views += _payload(segments, length)
        if current is not None:
            self._pass_on(current, views)
        return not left

    def _accept(self, connection: Connection, length: int, buf_alloc: int, fwd_cnt: int) -> bool:
        """Check what a packet with payload says; False when the connection is dropped for it."""
        connection.packets_from_guest += 1
        outgoing = connection.outgoing
        if (buf_alloc != outgoing.buf_alloc or fwd_cnt != outgoing.fwd_cnt) and not self._packets.told(
            connection, buf_alloc, fwd_cnt
        ):
            return False
        if connection.guest_shut & _SEND:
            self._drop(connection, Reason.PROTOCOL, True)
            return False
        if not connection.incoming.receive(length):
            self._drop(connection, Reason.CREDIT, True)
            return False
        connection.bytes_from_guest += length
        return True

    def _pass_on(self, connection: Connection, views: list[memoryview]) -> None:
        """Give bytes of a stream to the host's side; what it does not take is kept."""
        size = sum(map(len, views))
        if not size:
            return
        sent = 0
        if connection.pending is None:
            assert connection.end is not None, "an open connection has an end"
            sent = connection.end.send(views)
            if sent == BROKEN:
                self._drop(connection, Reason.HOST_RESET, True)
                return
            self._forward(connection, sent)
            if sent == size:
                return
            connection.pending = deque()
        kept = b"".join(views)[sent:]
        if connection.pending and len(connection.pending[-1]) < MERGED_BYTES:
            kept = connection.pending.pop() + kept
        connection.pending.append(kept)

    def _message(self, connection: Connection, payload: list[memoryview], length: int, flags: int) -> None:
        """Take a piece of a SEQPACKET message, and pass on the message when it is whole; credit bounds it."""
        held = connection.message
        if flags & SEQ_EOM and not length and not held:
            self._drop(connection, Reason.MESSAGE, True)
            return
        if not flags & SEQ_EOM:
            if held is None:
                connection.message = held = bytearray()
            for view in payload:
                held += view
            self._tell_sender_of_message(connection)
            return
        message = b"".join(payload if held is None else [held, *payload])
        connection.message = None
        if connection.pending is None:
            assert connection.end is not None, "an open connection has an end"
            sent = connection.end.send([message])
            if sent == BROKEN:
                self._drop(connection, Reason.HOST_RESET, True)
                return
            if sent:
                self._forward(connection, sent)
                return
            connection.pending = deque()
        connection.pending.append(message)

    def flush(self, connection: Connection) -> bool:
        """Pass on what was kept, now that the host's side has room; False when it is gone."""
        pending = connection.pending
        while pending:
            assert connection.end is not None, "what is pending has somewhere to go"
            pieces = [pending[0]] if connection.type == SEQPACKET else list(pending)[:MAX_VIEWS]
            sent = connection.end.send(pieces)
            if sent == BROKEN:
                return False
            if not sent:
                return True
            self._forward(connection, sent)
            while sent:
                piece = pending.popleft()
                if len(piece) > sent:
                    pending.appendleft(piece[sent:])
                sent -= min(sent, len(piece))
        connection.pending = None
        return True

    def _forward(self, connection: Connection, count: int) -> None:
        """`count` bytes are passed on: the guest may send as many more, and is told when it has to know."""
        connection.incoming.forward(count)
        if connection.state is not State.OPEN:  # being flushed: the pair of ports may be another connection's
            return
        if connection.incoming.should_tell:
            self._to_guest.tell(connection)
        elif connection.message is not None:
            self._tell_sender_of_message(connection)

    def _tell_sender_of_message(self, connection: Connection) -> None:
        """Nothing of a message is passed on before its end, so its sender may need all the room that there is."""
        if connection.incoming.fwd_cnt != connection.incoming.told_fwd_cnt:
            self._to_guest.tell(connection)


def _gather(segments: list[memoryview]) -> bytes:
    """A header that comes in several pieces."""
    return b"".join(cut(segments, HEADER_BYTES))


def _payload(segments: list[memoryview], length: int) -> list[memoryview]:
    """The `length` bytes behind the header, in at most :data:`MAX_VIEWS` pieces."""
    skip = HEADER_BYTES
    found = []
    for view in segments:
        if len(view) > skip:
            found.append(view[skip:] if skip else view)
            skip = 0
        else:
            skip -= len(view)
    found = cut(found, length)
    return found if len(found) <= MAX_VIEWS else [memoryview(b"".join(found))]
