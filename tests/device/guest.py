"""A guest's vsock stack, as small as one can be: what a device sees of a VM, without a VM.

The packets go through the queues of a :class:`~hvsock.testing.virtio_driver.Driver`. A thread takes what the
device sends, as an interrupt handler would; the methods of :class:`Guest` and :class:`GuestSocket` wait for it.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self

from hvsock.testing.virtio_driver import ONE, Driver, Layout
from hvsock.testing.virtio_front_end import FrontEnd
from hvsock.virtio.packet import HEADER_BYTES, HOST_CID, SEQ_EOM, STREAM, Header, Op, Shutdown
from hvsock.virtio.session import RX, TX
from hvsock.virtio.vhost_user import Request

if sys.platform != "linux":
    raise ImportError("the device needs Linux")

PATIENCE_SECONDS: Final = 30.0
"""What nothing here takes on a busy machine; more of it is a failure."""
TICK_SECONDS: Final = 0.02
"""How long the guest's thread waits for an interrupt before it looks whether it is to end."""
ROOM_BYTES: Final = 256 << 10
"""Room of a guest's socket, as Linux has it."""
PACKET_BYTES: Final = 64 << 10
"""Payload of the largest packet of a guest."""
FIRST_PORT: Final = 40_000

Key = tuple[int, int, int]
"""Guest's port, peer's CID, peer's port."""


class GuestSocket:
    """A connection as a program in the guest has it. Methods that wait raise TimeoutError in the end.

    Attributes:
        key: its ports.
        connected: whether the other side took it.
        was_reset: whether RST came.
        peer_shut: what SHUTDOWN said.
        messages: what was received: bytes of a stream, or whole messages.
    """

    def __init__(self, guest: Guest, key: Key, type_: int) -> None:
        self.guest = guest
        self.key = key
        self.type = type_
        self.connected = False
        self.was_reset = False
        self.peer_shut = 0
        self.messages: deque[bytes] = deque()
        self._partial = b""
        self._sent = self._passed_on = self._told = 0
        self._peer_room = self._peer_passed_on = 0

    def packet(self, header: Header, payload: bytes) -> None:
        """Take what came; the guest's lock is held."""
        self._peer_room, self._peer_passed_on = header.buf_alloc, header.fwd_cnt
        match header.op:
            case Op.RESPONSE:
                self.connected = True
            case Op.RST:
                self.was_reset = True
                del self.guest.sockets[self.key]
            case Op.SHUTDOWN:
                self.peer_shut |= header.flags
                if self.peer_shut == Shutdown.BOTH:
                    self.post(Op.RST)
                    del self.guest.sockets[self.key]
            case Op.RW if self.type == STREAM:
                self.messages.append(payload)
            case Op.RW:
                self._partial += payload
                if header.flags & SEQ_EOM:
                    self.messages.append(self._partial)
                    self._partial = b""
            case Op.CREDIT_REQUEST:
                self.post(Op.CREDIT_UPDATE)

    def post(self, op: Op, payload: bytes = b"", flags: int = 0) -> None:
        """Send a packet; the guest's lock is held."""
        port, cid, peer_port = self.key
        self._told = self._passed_on
        header = Header(
            self.guest.cid, cid, port, peer_port, len(payload), self.type, op, flags, ROOM_BYTES, self._passed_on
        )
        self.guest.transmit(header.pack(), payload)

    def send(self, data: bytes) -> None:
        """Send all of it; as one message, if it is a socket for messages."""
        rest = memoryview(data)
        while rest:
            with self.guest.changed:
                self.guest.wait_for(lambda: self.was_reset or self._free() > 0)
                if self.was_reset:
                    raise ConnectionResetError
                piece = rest[: min(self._free(), PACKET_BYTES)]
                rest = rest[len(piece) :]
                self._sent = (self._sent + len(piece)) & 0xFFFFFFFF
                self.post(Op.RW, bytes(piece), 0 if rest or self.type == STREAM else SEQ_EOM)

    def send_some(self, data: memoryview) -> int:
        """Send what there is credit for, in one packet; how much that is."""
        with self.guest.changed:
            assert not self.was_reset, "the connection was reset"
            piece = data[: max(0, min(self._free(), PACKET_BYTES))]
            if piece:
                self._sent = (self._sent + len(piece)) & 0xFFFFFFFF
                self.post(Op.RW, bytes(piece), 0 if self.type == STREAM else SEQ_EOM)
            return len(piece)

    def _free(self) -> int:
        return self._peer_room - ((self._sent - self._peer_passed_on) & 0xFFFFFFFF)

    def receive(self) -> bytes:
        """What came next: bytes or a message; empty at the end."""
        with self.guest.changed:
            self.guest.wait_for(lambda: self.messages or self.peer_shut & Shutdown.SEND or self.was_reset)
            if not self.messages:
                if self.was_reset and not self.peer_shut & Shutdown.SEND:
                    raise ConnectionResetError
                return b""
            data = self.messages.popleft()
            self._passed_on = (self._passed_on + len(data)) & 0xFFFFFFFF
            if (self._passed_on - self._told) & 0xFFFFFFFF >= ROOM_BYTES // 4 and not self.was_reset:
                self.post(Op.CREDIT_UPDATE)
            return data

    def receive_exactly(self, count: int) -> bytes:
        """So many bytes of a stream."""
        data = bytearray()
        while len(data) < count:
            piece = self.receive()
            assert piece, f"the stream ended after {len(data)} of {count} bytes"
            data += piece
        assert len(data) == count
        return bytes(data)

    def shutdown(self, how: Shutdown) -> None:
        """Say that one direction is over, or both."""
        with self.guest.changed:
            self.post(Op.SHUTDOWN, flags=how)

    def close(self) -> None:
        """Close gracefully, as Linux does: SHUTDOWN of both, then the device's RST."""
        with self.guest.changed:
            if self.guest.sockets.get(self.key) is self:
                self.post(Op.SHUTDOWN, flags=Shutdown.BOTH)
                self.guest.wait_for(lambda: self.guest.sockets.get(self.key) is not self)

    def reset(self) -> None:
        """Close without any grace."""
        with self.guest.changed:
            self.post(Op.RST)
            del self.guest.sockets[self.key]

    def wait_for_reset(self) -> None:
        """Wait until RST came."""
        with self.guest.changed:
            self.guest.wait_for(lambda: self.was_reset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Guest:
    """A VM, over `connection` to its device, from construction to close().

    Args:
        connection: an AF_UNIX socket that the device serves; closed by close().
        layout: how its driver cuts packets.
        queue_size: descriptors in each queue.

    Attributes:
        cid: its CID, as the device told it.
        sockets: its connections.
        ignores: whether it leaves requests without an answer.
        front_end: QEMU's side.
        driver: its driver.
    """

    def __init__(self, connection: socket.socket, *, layout: Layout = ONE, queue_size: int = 128) -> None:
        self.connection = connection
        self.driver = Driver(
            queue_size=queue_size, layout=layout, max_packet_bytes=HEADER_BYTES + PACKET_BYTES, shared=True
        )
        self.front_end = FrontEnd(connection, self.driver, seconds=PATIENCE_SECONDS)
        self.sockets: dict[Key, GuestSocket] = {}
        self.changed = threading.Condition()
        self.ignores = False
        self._listening: dict[tuple[int, int], deque[GuestSocket]] = {}
        self._port = FIRST_PORT
        self._ends = False
        self._failure: BaseException | None = None
        try:
            self.front_end.realize()
            self.cid = int.from_bytes(self.front_end.config, "little")
        except BaseException:
            self._close_driver()
            raise
        self._thread = threading.Thread(target=self._run, name="guest")
        self._thread.start()

    def boot(self) -> Self:
        """Have the driver come up; the device has taken all that belongs to it then, with its descriptors."""
        with self.changed:
            self.front_end.start()
            self.driver.add_rx_buffers()
            self.front_end.ask(Request.GET_FEATURES)
            self.front_end.kick(RX)
        return self

    def pause(self) -> None:
        """What QEMU does when the VM is paused, or switched off."""
        with self.changed:
            self.front_end.stop()

    def resume(self) -> None:
        """And when it goes on."""
        with self.changed:
            self.front_end.start()
            self.front_end.kick(RX)
            self.front_end.kick(TX)

    def reboot(self) -> None:
        """Start the device anew, with nothing known of what was."""
        with self.changed:
            self.sockets.clear()
            self.front_end.reboot()
            self.driver.add_rx_buffers()
            self.front_end.kick(RX)

    def listen(self, port: int, type_: int = STREAM) -> None:
        """Take connections to a port."""
        with self.changed:
            self._listening[port, type_] = deque()

    def accept(self, port: int, type_: int = STREAM) -> GuestSocket:
        """The next connection to a port."""
        waiting = self._listening[port, type_]
        with self.changed:
            self.wait_for(lambda: waiting)
            return waiting.popleft()

    def begin_connect(self, port: int, cid: int = HOST_CID, type_: int = STREAM) -> GuestSocket:
        """Ask for a connection."""
        with self.changed:
            self._port += 1
            made = GuestSocket(self, (self._port, cid, port), type_)
            self.sockets[made.key] = made
            made.post(Op.REQUEST)
            return made

    def connect(self, port: int, cid: int = HOST_CID, type_: int = STREAM) -> GuestSocket:
        """Connect.

        Raises:
            ConnectionRefusedError: RST is the answer.
        """
        made = self.begin_connect(port, cid, type_)
        with self.changed:
            self.wait_for(lambda: made.connected or made.was_reset)
        if not made.connected:
            raise ConnectionRefusedError
        return made

    def transmit(self, header: bytes, payload: bytes = b"") -> None:
        """Put a packet into the tx queue, whatever it says; the lock is held."""
        while not self.driver.send(header, payload):
            self.changed.wait(0.001)  # the device gives buffers back without a word
        if self.driver.tx.kick_wanted():
            self.front_end.kick(TX)

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until that is so; the lock is held."""
        assert self.changed.wait_for(lambda: condition() or self._failure, PATIENCE_SECONDS), "that did not happen"
        if self._failure is not None:
            raise self._failure

    def die(self) -> None:
        """QEMU is gone, without a word."""
        if not self._ends:
            self._ends = True
            self._thread.join()
            self._close_driver()

    close = die

    def _close_driver(self) -> None:
        self.connection.close()
        self.front_end.close()
        self.driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._ends:
                self.front_end.wait_call(RX, TICK_SECONDS)
                with self.changed:
                    packets = self.driver.received()
                    if packets and self.driver.rx.kick_wanted():
                        self.front_end.kick(RX)
                    for packet in packets:
                        self._packet(Header.unpack(packet), packet[HEADER_BYTES:])
                    self.changed.notify_all()
        except BaseException as error:
            with self.changed:
                self._failure = error
                self.changed.notify_all()

    def _packet(self, header: Header, payload: bytes) -> None:
        key = header.dst_port, header.src_cid, header.src_port
        if (found := self.sockets.get(key)) is not None:
            found.packet(header, payload)
        elif header.op == Op.REQUEST and not self.ignores:
            made = GuestSocket(self, key, header.type)
            made.packet(header, payload)
            waiting = self._listening.get((key[0], header.type))
            if waiting is None:
                made.post(Op.RST)
                return
            self.sockets[key] = made
            made.connected = True
            made.post(Op.RESPONSE)
            waiting.append(made)
