"""Byte strings as programs of a hostile guest, of a hostile front end, and of the hosts at the other side.

Every byte string is a program. It plays until it ends, or until :data:`MAX_STEPS`. What may come out of the
device's pure parts is a GuestError, nothing else; what must hold all the time is asserted here.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Final

from hvsock.errors import ProtocolError
from hvsock.testing.virtio_driver import HIGH_GUEST_ADDRESS, HIGH_USER_ADDRESS, LOW_USER_ADDRESS, Driver
from hvsock.virtio import session as actions
from hvsock.virtio import vhost_user
from hvsock.virtio.connection import Connection, State
from hvsock.virtio.memory import GuestError
from hvsock.virtio.packet import HEADER_BYTES, HOST_CID, SEQPACKET, STREAM, Header, Op
from hvsock.virtio.session import Session
from hvsock.virtio.to_guest import MAX_STRAYS
from hvsock.virtio.vhost_user import Feature, Flag, MemoryRegion, Request, RingAddresses
from hvsock.virtio.virtqueue import DESCRIPTOR, Ring
from tests.virtio.fakes import GUEST_CID, Bench, FakeEnd

MAX_STEPS: Final = 48
"""Steps of one program: enough for a connection's life, and few enough for thousands of programs in a second."""
QUEUE_SIZE: Final = 8
RX_BUFFER_BYTES: Final = 256
MAX_PACKET_BYTES: Final = 2048
CONNECTIONS: Final = 4
"""Most connections of the fuzzed device, so that its limit is reached."""
BUFFER_BYTES: Final = 1000
"""Room of its connections, so that credit runs out."""
MAX_PIECES: Final = 1024
"""Most pieces that the kernel sends at once (UIO_MAXIOV)."""
PAYLOAD: Final = bytes(range(256)) * 8

_CIDS = (HOST_CID, HOST_CID, HOST_CID, 43, GUEST_CID, 0, 1 << 32 | HOST_CID)
_GUEST_PORTS = (1, 1, 2, 3)
_HOST_PORTS = (80, 80, 81, 1 << 30, (1 << 30) + 1)
_NUMBERS = (0, 1, 100, 256, 1000, 64 << 10, 1 << 31, 0xFFFF_FFFF)
_ADDRESSES = (0, 16, 4096, HIGH_GUEST_ADDRESS, HIGH_GUEST_ADDRESS + 256, 1 << 40, (1 << 64) - 8)
_USER_ADDRESSES = (
    LOW_USER_ADDRESS, LOW_USER_ADDRESS + 4096, LOW_USER_ADDRESS + 8192, HIGH_USER_ADDRESS, 0, (1 << 64) - 16,
)  # fmt: skip
_LENGTHS = (0, 1, 16, 43, 44, 45, 100, 256, 4096, 0xFFFF_FFFF)


class Reader:
    """The program's bytes in turn; 0 behind its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._data)

    def byte(self) -> int:
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def number(self) -> int:
        """32 bits."""
        return self.byte() | self.byte() << 8 | self.byte() << 16 | self.byte() << 24

    def some(self, count: int) -> bytes:
        """The next bytes, as many as there are."""
        at = self._at
        self._at = at + count
        return self._data[at : at + count]

    def choose(self, *values: int) -> int:
        return values[self.byte() % len(values)]


@functools.cache
def _driver() -> Driver:
    """The guest's memory; all programs use the same in turn, which saves most of their time."""
    return Driver(queue_size=QUEUE_SIZE, rx_buffer_bytes=RX_BUFFER_BYTES, max_packet_bytes=MAX_PACKET_BYTES)


class DeviceProgram:
    """One program against a virtqueue and a muxer: packets, rings and memory of the guest; ends of the hosts."""

    def __init__(self, data: bytes) -> None:
        self.read = Reader(data)
        self.bench = Bench(driver=_driver(), connections=CONNECTIONS, buffer_bytes=BUFFER_BYTES)
        self.ends: list[FakeEnd] = []
        self.open: list[tuple[Connection, FakeEnd]] = []
        self.now = 0.0
        self.steps: tuple[Callable[[], None], ...] = (
            self._packet, self._fitting_packet, self._fitting_packet, self._device_works, self._device_works,
            self._host_answers, self._host_answers, self._host_does, self._host_does, self._host_connects,
            self._descriptor, self._chain, self._available, self._memory, self._guest_reads, self._all_at_once,
        )  # fmt: skip

    def play(self) -> None:
        """Play it, and end all that is left."""
        for _ in range(MAX_STEPS):
            if self.read.is_over:
                break
            self.steps[self.read.byte() % len(self.steps)]()
            self.check()
        muxer = self.bench.muxer
        muxer.close()
        assert not muxer.table
        assert not self.bench.host.wanted
        for end in self.ends:
            assert not end.is_open
            assert max(end.sends, default=0) <= MAX_PIECES

    def check(self) -> None:
        """What holds at any time."""
        muxer = self.bench.muxer
        assert len(muxer.table) <= CONNECTIONS
        assert muxer.depth <= MAX_STRAYS + 2 * CONNECTIONS
        for connection in muxer.table.values():
            assert connection.state not in (State.FLUSHING, State.GONE)
            kept = sum(map(len, connection.pending or ())) + len(connection.message or b"")
            assert kept <= BUFFER_BYTES
            assert (connection.end is None) == (connection.state in (State.OPENING, State.CLOSING))

    # -- the guest

    def _packet(self) -> None:
        """A packet that may be right, near the connections that there are."""
        read = self.read
        shape, kind, size = read.byte(), read.byte(), read.byte()
        payload = PAYLOAD[: size * 4]
        length = len(payload)
        if shape & 1:
            length = read.choose(0, length + 1, 43, 0xFFFF_FFFF)
        fwd_cnt = 0
        if shape & 2:
            fwd_cnt = read.choose(*_NUMBERS)
        header = Header(
            read.number() if shape & 0xE0 == 0xE0 else GUEST_CID,
            _CIDS[kind % len(_CIDS)],
            _GUEST_PORTS[kind >> 2 & 3],
            _HOST_PORTS[(kind >> 4) % len(_HOST_PORTS)],
            length,
            SEQPACKET if shape & 8 else STREAM if not shape & 64 else read.byte(),
            read.byte() % 9,
            read.byte() % 5,
            _NUMBERS[read.byte() % len(_NUMBERS)],
            fwd_cnt,
        )
        self._send(header.pack()[: 20 if shape & 0xF8 == 0x90 else HEADER_BYTES], payload)

    def _fitting_packet(self) -> None:
        """A packet of a connection that there is, or that the guest begins, from a guest that has read all."""
        read, table = self.read, self.bench.muxer.table
        pick, op, size = read.byte(), read.byte(), read.byte()
        payload = PAYLOAD[: size * 4]
        ops = (Op.RW, Op.RW, Op.RW, Op.RESPONSE, Op.SHUTDOWN, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, Op.RST)
        header = Header(
            GUEST_CID, HOST_CID, 1 + pick % 3, 80, len(payload), 1 + (pick & 1), Op.REQUEST, op >> 3 & 3, 1000
        )
        if table and pick & 0xC0:
            connection = list(table.values())[pick % len(table)]
            port, cid, peer_port = connection.key
            header = header._replace(
                src_port=port, dst_cid=cid, dst_port=peer_port, type=connection.type, op=ops[op & 7],
                fwd_cnt=connection.outgoing.sent,
            )  # fmt: skip
        self._send(header.pack(), payload)

    def _send(self, header: bytes, payload: bytes) -> None:
        with contextlib.suppress(ProtocolError):  # the program wrote into the rings, so the driver is lost there
            self.bench.driver.send(header, payload)

    def _queue_side(self) -> int:
        return self.read.byte() & 1

    def _descriptor(self) -> None:
        """One descriptor, right or not."""
        read = self.read
        queue = (self.bench.driver.rx, self.bench.driver.tx)[self._queue_side()]
        address, length = read.choose(*_ADDRESSES), read.choose(*_LENGTHS)
        queue.write_descriptor(read.byte() % QUEUE_SIZE, address, length, read.byte() & 7, read.byte() % 10)

    def _chain(self) -> None:
        """Offers whatever descriptor."""
        queue = (self.bench.driver.rx, self.bench.driver.tx)[self._queue_side()]
        queue.offer(self.read.byte() % (QUEUE_SIZE + 1))

    def _available(self) -> None:
        """Another available index, or another word of a ring."""
        queue = (self.bench.driver.rx, self.bench.driver.tx)[self._queue_side()]
        area = queue.available if self.read.byte() & 1 else queue.used
        area[self.read.byte() % len(area)] = self.read.byte() % 20

    def _memory(self) -> None:
        """Bytes of the program anywhere in memory: rings, tables and packets that wait."""
        read = self.read
        line = DESCRIPTOR.pack(read.choose(*_ADDRESSES), read.choose(*_LENGTHS), read.byte() & 7, read.byte() % 10)
        data = line if read.byte() & 1 else read.some(16)
        self.bench.driver.memory.view(read.byte() * 128, len(data))[:] = data

    def _guest_reads(self) -> None:
        """Takes back what the device gave, if it can still tell what that is."""
        driver = self.bench.driver
        with contextlib.suppress(ProtocolError):
            driver.reclaim_tx()
            driver.received()

    # -- the hosts

    def _host_answers(self) -> None:
        wanted = self.bench.host.wanted
        choice = self.read.byte()
        if not wanted:
            return
        connection = wanted.pop(choice % len(wanted))
        if choice & 0x40:
            self.bench.muxer.declined(connection)
            return
        end = self._new_end(connection.type)
        self.open.append((connection, end))
        self.bench.muxer.opened(connection, end, "service", survives_pause=bool(choice & 8))

    def _host_connects(self) -> None:
        choice = self.read.byte()
        type_ = SEQPACKET if choice & 1 else STREAM
        end = self._new_end(type_)
        connection = self.bench.muxer.offer(
            end, _GUEST_PORTS[choice >> 1 & 3], type_=type_, seconds=2.0, service="service"
        )
        if connection is None:
            self.ends.pop()
        else:
            self.open.append((connection, end))

    def _host_does(self) -> None:
        """What a program does with its end of the last connections."""
        choice, size = self.read.byte(), self.read.byte() * 4
        if not self.open:
            return
        connection, end = self.open[-1 - (choice >> 4) % len(self.open)]
        if not end.is_open:
            return
        muxer = self.bench.muxer
        match choice & 7:
            case 0 | 1 | 2:
                if size and not end.ended:
                    end.outbox.append(PAYLOAD[:size])
                    muxer.readable(connection)
            case 3:
                end.ended = True
                muxer.readable(connection, ending=True)
            case 4:
                end.ended = end.gone = True
                muxer.hung_up(connection)
            case 5:
                end.broken = True
                muxer.hung_up(connection)
            case _:
                end.room += size
                muxer.writable(connection)

    def _new_end(self, type_: int) -> FakeEnd:
        end = FakeEnd(type_, self.read.byte() * 8)
        self.ends.append(end)
        return end

    # -- the device

    def _device_works(self) -> None:
        try:
            self.bench.step()
        except GuestError:
            self._start_over()

    def _start_over(self) -> None:
        """What the device does when the guest broke the rules, and the guest when it starts the device anew."""
        self.bench.muxer.detach()
        self.bench.muxer.reset()
        self.bench.driver.reset()
        self.bench.driver.add_rx_buffers()
        self.bench.attach()

    def _all_at_once(self) -> None:
        muxer = self.bench.muxer
        match self.read.byte() % 6:
            case 0:
                indexes = muxer.detach()
                muxer.pause()
                self.bench.attach(*indexes)
            case 1:
                self._start_over()
            case 2:
                muxer.cancel("service")
            case 3:
                muxer.cancel()
            case 4:
                self.bench.attach(*muxer.detach())
            case _:
                self.now += self.read.byte() / 10
                muxer.tick(self.now)


class SessionProgram:
    """One program against a vhost-user session: messages in any order, with descriptors that are only numbers."""

    def __init__(self, data: bytes) -> None:
        self.driver = _driver()
        self.read = Reader(data)
        offered = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.EVENT_IDX | Feature.INDIRECT_DESC | 7
        self.session = Session(offered, GUEST_CID.to_bytes(8, "little"))
        self.held: set[int] = set()
        self.running: set[int] = set()
        self.next = 100
        self.ended = False

    def play(self) -> None:
        """Play it; every descriptor is closed once."""
        for _ in range(MAX_STEPS):
            if self.read.is_over or self.ended:
                break
            message, count = self._message()
            descriptors = list(range(self.next, self.next + count))
            self.next += count
            self.held.update(descriptors)
            self._perform(self.session.handle(message, descriptors))
            assert len(self.held) <= 6
        self._close(self.session.close())
        assert not self.held

    def _message(self) -> tuple[bytes, int]:
        """A message, and the number of descriptors that come with it."""
        read = self.read
        requests = list(Request)
        kind = read.byte()
        request = requests[kind % len(requests)] if kind < 0xF8 else read.byte()
        shape = read.byte()
        payload, count = self._payload(request)
        if shape & 0x30 == 0x30:
            payload = payload[: read.byte()] + read.some(read.byte() & 15)
        if shape & 0xC0 == 0xC0:
            count = shape & 7
        flags = Flag.NEED_REPLY if shape & 8 else Flag.NONE
        message = vhost_user.Message(request, flags, payload).pack()
        if shape == 0x0F:
            message = read.some(20)
        return message, count

    def _payload(self, request: int) -> tuple[bytes, int]:
        """What belongs to the request, with numbers of the program."""
        read = self.read
        index = read.byte() % 3
        match request:
            case Request.SET_MEM_TABLE:
                regions = self.driver.regions if index else [MemoryRegion(0, 4096, 0, 0)]
                return vhost_user.pack_memory_table(regions), len(regions)
            case Request.SET_VRING_NUM:
                return vhost_user.pack_vring_state(index, read.choose(8, 8, 128, 0, 3, 1 << 16)), 0
            case Request.SET_VRING_BASE | Request.GET_VRING_BASE:
                return vhost_user.pack_vring_state(index, read.choose(0, 1, 0xFFFF, 0x10000)), 0
            case Request.SET_VRING_ENABLE:
                return vhost_user.pack_vring_state(index, read.choose(1, 1, 0, 2)), 0
            case Request.SET_VRING_ADDR:
                places = [read.choose(*_USER_ADDRESSES) + (read.byte() & 15) // 8 for _ in range(3)]
                return vhost_user.pack_vring_addresses(index, RingAddresses(*places)), 0
            case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
                attached = read.byte() & 7 != 0
                return vhost_user.pack_vring_descriptor(index, attached), int(attached)
            case Request.SET_FEATURES | Request.SET_PROTOCOL_FEATURES | Request.SET_STATUS:
                features = (0x1_6000_0002, 0x1_2000_0002, 0x1_0209, 8, 0, read.number())
                return vhost_user.pack_u64(features[read.byte() % len(features)]), 0
            case Request.GET_CONFIG | Request.SET_CONFIG:
                return vhost_user.pack_config(read.byte() & 15, bytes(read.byte() & 15)), 0
            case _:
                return b"", 0

    def _perform(self, todo: Sequence[actions.Action]) -> None:
        """Do what the session says, as the device's process does."""
        for action in todo:
            match action:
                case actions.MapMemory(regions):
                    assert not self.running
                    self._close([descriptor for _, descriptor in regions])
                case actions.StartQueue():
                    assert action.queue not in self.running
                    assert action.kick in self.held
                    self.running.add(action.queue)
                    try:
                        Ring.at(self.driver.memory, action.size, *action.addresses)
                    except GuestError:
                        self.ended = True
                case actions.StopQueue(queue):
                    self.running.remove(queue)
                    self._perform(self.session.stopped(queue, self.read.byte()))
                case actions.SetCall(queue, call):
                    assert queue in self.running
                    assert call is None or call in self.held
                case actions.Close(descriptors):
                    self._close(descriptors)
                case actions.End():
                    self.ended = True

    def _close(self, descriptors: Sequence[int]) -> None:
        for descriptor in descriptors:
            self.held.remove(descriptor)


PROGRAMS: Final[dict[str, type[DeviceProgram | SessionProgram]]] = {
    "device": DeviceProgram,
    "session": SessionProgram,
}
"""What there is to fuzz; the corpus has a folder of the same name for each."""


def play(name: str, data: bytes) -> None:
    """Play one program; any exception is a finding."""
    PROGRAMS[name](data).play()
