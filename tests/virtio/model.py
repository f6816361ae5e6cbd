"""A guest that does what Linux does with its sockets (net/vmw_vsock), told simply, and never breaks a rule."""

from __future__ import annotations

from collections import deque
from typing import Final

from hvsock.virtio.credit import WRAP
from hvsock.virtio.packet import MAX_PAYLOAD_BYTES, SEQ_EOM, STREAM, Header, Op, Shutdown
from tests.virtio.fakes import GUEST_CID, Packet

COUNTERS_BEGIN: Final = WRAP - 5000
"""Where the counters of credit begin, so that they wrap soon."""
TELL_BELOW: Final = 64 << 10
"""Linux tells of room when it is below that (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE)."""
LISTENED: Final = range(100)
"""Ports at which programs of the guest listen."""

Key = tuple[int, int, int]
"""Own port, peer's CID, peer's port."""


class Socket:
    """One socket of the guest.

    Attributes:
        key: what tells it from others.
        type: STREAM or SEQPACKET.
        buf_alloc: its room.
        is_open: whether it is connected.
        is_closing: whether it was closed and waits for RST.
        is_gone: whether nothing comes any more.
        shut, peer_shut: what either side said by SHUTDOWN.
        sent, received: pieces of a stream, or messages; what its programs wrote, and what came.
        writing: what its program wrote that has no credit yet.
        unread: bytes that came and were not read.
    """

    def __init__(self, key: Key, type_: int, buf_alloc: int) -> None:
        self.key = key
        self.type = type_
        self.buf_alloc = buf_alloc
        self.is_open = self.is_closing = self.is_gone = False
        self.shut = self.peer_shut = 0
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.message = b""
        self.writing: deque[bytes] = deque()
        self.unread = 0
        self.tx_cnt = self.peer_fwd_cnt = self.fwd_cnt = self.told = COUNTERS_BEGIN
        self.peer_buf_alloc = 0

    @property
    def credit(self) -> int:
        """Bytes that may be sent."""
        return self.peer_buf_alloc - ((self.tx_cnt - self.peer_fwd_cnt) & WRAP)

    @property
    def readable(self) -> int:
        """Bytes that its program can read: not those of a message whose end is still to come."""
        return self.unread - len(self.message)

    @property
    def may_send(self) -> bool:
        """Whether its program may write."""
        shut = self.shut & Shutdown.SEND or self.peer_shut & Shutdown.RECEIVE
        return self.is_open and not self.is_closing and not shut


class ModelGuest:
    """All sockets of the guest.

    Attributes:
        sockets: those that packets find.
        outgoing: packets for the device, in order.
    """

    def __init__(self) -> None:
        self.sockets: dict[Key, Socket] = {}
        self.outgoing: deque[Packet] = deque()

    # -- what programs do

    def connect(self, key: Key, type_: int, buf_alloc: int) -> Socket:
        """Begin a connection; the key may be that of one that is gone from here."""
        socket = self.sockets[key] = Socket(key, type_, buf_alloc)
        self._send(socket, Op.REQUEST)
        return socket

    def write(self, socket: Socket, data: bytes) -> None:
        """Send bytes, or a message; what there is no credit for waits."""
        if socket.may_send and len(data) <= (WRAP if socket.type == STREAM else socket.peer_buf_alloc):
            socket.sent.append(data)
            socket.writing.append(data)
            self._write_on(socket)

    def read(self, socket: Socket, count: int) -> None:
        """Read up to so many bytes; of messages whatever is there."""
        count = min(count, socket.readable)
        socket.unread -= count
        socket.fwd_cnt = (socket.fwd_cnt + count) & WRAP
        delta = (socket.fwd_cnt - socket.told) & WRAP
        if count and delta and socket.buf_alloc - delta < TELL_BELOW and socket.is_open:
            self._send(socket, Op.CREDIT_UPDATE)

    def shutdown(self, socket: Socket, how: int) -> None:
        """Half-close; what waits for credit is lost to nobody, since a program that waits does not go on."""
        if socket.is_open and not socket.is_closing and not socket.writing and how & ~socket.shut:
            socket.shut |= how
            self._send(socket, Op.SHUTDOWN, flags=how)

    def close(self, socket: Socket) -> None:
        """Close; a program that waits for credit to write goes on waiting instead."""
        if socket.is_closing or socket.is_gone or (socket.writing and socket.may_send):
            return
        if not socket.is_open:
            self._forget(socket)
        elif socket.peer_shut == Shutdown.BOTH:
            self._reset(socket)
        else:
            socket.is_closing = True
            self._send(socket, Op.SHUTDOWN, flags=Shutdown.BOTH)

    def abort(self, socket: Socket) -> None:
        """End it by RST."""
        if socket.is_open and not socket.is_gone:
            self._reset(socket)

    def restart(self) -> None:
        """Know nothing any more."""
        for socket in list(self.sockets.values()):
            self._forget(socket)
        self.outgoing.clear()

    # -- what comes

    def receive(self, header: Header, payload: bytes) -> None:
        """A packet of the device."""
        key = header.dst_port, header.src_cid, header.src_port
        socket = self.sockets.get(key)
        if socket is None:
            self._receive_for_nobody(header, key)
            return
        assert header.type == socket.type
        socket.peer_buf_alloc, socket.peer_fwd_cnt = header.buf_alloc, header.fwd_cnt
        assert header.op == Op.RST or 0 <= socket.credit <= socket.peer_buf_alloc
        if header.op == Op.RST:
            self._forget(socket)
        elif socket.is_closing:
            assert header.op in (Op.RW, Op.SHUTDOWN, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST)
        elif not socket.is_open:
            assert header.op == Op.RESPONSE
            socket.is_open = True
        elif header.op == Op.RW:
            self._receive_payload(socket, header, payload)
        elif header.op == Op.SHUTDOWN:
            socket.peer_shut |= header.flags
            if socket.peer_shut == Shutdown.BOTH and not socket.unread:
                self._reset(socket)
        elif header.op == Op.CREDIT_REQUEST:
            self._send(socket, Op.CREDIT_UPDATE)
        else:
            assert header.op == Op.CREDIT_UPDATE
        self._write_on(socket)

    def _receive_for_nobody(self, header: Header, key: Key) -> None:
        if header.op == Op.REQUEST and header.dst_port in LISTENED:
            socket = self.sockets[key] = Socket(key, header.type, 1 << 16)
            socket.peer_buf_alloc = header.buf_alloc
            socket.is_open = True
            self._send(socket, Op.RESPONSE)
        elif header.op != Op.RST:
            own_port, cid, port = key
            answer = Header(GUEST_CID, cid, own_port, port, 0, header.type, Op.RST)
            self.outgoing.append((answer, b""))

    def _receive_payload(self, socket: Socket, header: Header, payload: bytes) -> None:
        assert not socket.peer_shut & Shutdown.SEND
        socket.unread += len(payload)
        assert socket.unread <= socket.buf_alloc, "the device sent more than there was credit for"
        if socket.type == STREAM:
            socket.received.append(payload)
            return
        socket.message += payload
        if header.flags & SEQ_EOM:
            socket.received.append(socket.message)
            socket.message = b""

    # -- what goes

    def _write_on(self, socket: Socket) -> None:
        while socket.writing and socket.may_send and socket.credit > 0 and not socket.is_gone:
            data = socket.writing.popleft()
            count = min(len(data), socket.credit, MAX_PAYLOAD_BYTES)
            is_last = count == len(data)
            if not is_last:
                socket.writing.appendleft(data[count:])
            self._send(socket, Op.RW, data[:count], flags=SEQ_EOM if is_last and socket.type != STREAM else 0)
            socket.tx_cnt = (socket.tx_cnt + count) & WRAP

    def _send(self, socket: Socket, op: Op, payload: bytes = b"", flags: int = 0) -> None:
        own_port, cid, port = socket.key
        socket.told = socket.fwd_cnt
        header = Header(
            GUEST_CID, cid, own_port, port, len(payload), socket.type, op, flags, socket.buf_alloc, socket.fwd_cnt
        )
        self.outgoing.append((header, payload))

    def _reset(self, socket: Socket) -> None:
        self._send(socket, Op.RST)
        self._forget(socket)

    def _forget(self, socket: Socket) -> None:
        socket.is_gone = True
        socket.is_open = False
        del self.sockets[socket.key]
