"""The fake front end against a back end as small as one can be: a session, and what performs its actions."""

from __future__ import annotations

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("vhost-user takes Linux", allow_module_level=True)

import contextlib
import mmap
import os
import select
import socket
import threading
from collections.abc import Iterator, Sequence

from hvsock.errors import ProtocolError
from hvsock.testing.virtio_driver import MANY, ONE, TWO, Driver, Layout
from hvsock.testing.virtio_front_end import FrontEnd
from hvsock.virtio import vhost_user
from hvsock.virtio.memory import GuestError, GuestMemory, Region
from hvsock.virtio.packet import HEADER_BYTES
from hvsock.virtio.session import (
    PROTOCOL_FEATURES,
    RX,
    TX,
    Action,
    Close,
    End,
    MapMemory,
    Reply,
    Reset,
    Session,
    SetCall,
    StartQueue,
    StopQueue,
)
from hvsock.virtio.vhost_user import Feature, Flag, ProtocolFeature, Request
from hvsock.virtio.virtqueue import Ring, Virtqueue

FEATURES = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.EVENT_IDX | Feature.INDIRECT_DESC
CONFIG = (7).to_bytes(8, "little")
HEADER = bytes(range(HEADER_BYTES))
SECONDS = 10.0


class Echo:
    """A back end whose device sends every packet back; runs until the front end is gone."""

    def __init__(self, connection: socket.socket, features: int, protocol_features: int) -> None:
        self.connection = connection
        self.session = Session(features, CONFIG, protocol_features=protocol_features)
        self.memory = GuestMemory([])
        self.running: dict[int, tuple[StartQueue, Virtqueue]] = {}
        self.resets = 0
        self.ended = ""

    def run(self) -> None:
        with contextlib.suppress(ConnectionError):
            while not self.ended:
                poll = select.poll()
                poll.register(self.connection, select.POLLIN)
                for start, _ in self.running.values():
                    poll.register(start.kick, select.POLLIN)
                ready = {descriptor for descriptor, _ in poll.poll()}
                for start, _ in list(self.running.values()):
                    if start.kick in ready:
                        os.eventfd_read(start.kick)
                if self.connection.fileno() in ready:
                    self.receive()
                self.serve()
        self.running.clear()
        for descriptor in self.session.close():
            os.close(descriptor)
        self.connection.close()

    def receive(self) -> None:
        header, descriptors, _, _ = socket.recv_fds(
            self.connection, vhost_user.HEADER_BYTES, vhost_user.MAX_REGIONS
        )
        if not header:
            raise ConnectionError("the front end is gone")
        size = vhost_user.payload_bytes(header)
        payload = self.connection.recv(size, socket.MSG_WAITALL) if size else b""
        self.perform(self.session.handle(header + payload, descriptors))

    def perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Reply(data):
                    self.connection.sendall(data)
                case MapMemory(regions):
                    found = []
                    for region, descriptor in regions:
                        mapped = mmap.mmap(descriptor, region.size, offset=region.mmap_offset)
                        os.close(descriptor)
                        view = memoryview(mapped)
                        found.append(Region(region.guest_address, region.user_address, region.size, view))
                    self.memory = GuestMemory(found)
                case StartQueue():
                    ring = Ring.at(self.memory, action.size, *action.addresses)
                    queue = Virtqueue(
                        self.memory,
                        ring,
                        base=action.base,
                        event_idx=action.event_idx,
                        writable=action.queue == RX,
                        fence=lambda: None,
                    )
                    self.running[action.queue] = action, queue
                case StopQueue(index):
                    _, queue = self.running.pop(index)
                    self.perform(self.session.stopped(index, queue.next_available))
                case SetCall(index, call):
                    start, queue = self.running[index]
                    self.running[index] = start._replace(call=call), queue
                case Reset():
                    self.resets += 1
                case Close(descriptors):
                    for descriptor in descriptors:
                        os.close(descriptor)
                case End(text):
                    self.ended = text

    def serve(self) -> None:
        if self.running.keys() != {RX, TX}:
            return
        rx, tx = self.running[RX][1], self.running[TX][1]
        try:
            while True:
                while (sent := tx.take()) is not None:
                    if (buffer := rx.take()) is None:
                        tx.put_back(1)
                        break
                    data = b"".join(sent[1])
                    buffer[1][0][: len(data)] = data
                    rx.give(buffer[0], len(data))
                    tx.give(sent[0], 0)
                has_buffers, has_packets = rx.rearm(), tx.rearm()
                if not (has_buffers and has_packets):
                    break
        except GuestError:
            os.eventfd_write(self.error_descriptor(), 1)
            return
        for index, queue in ((RX, rx), (TX, tx)):
            call = self.running[index][0].call
            if queue.publish() and call is not None:
                os.eventfd_write(call, 1)

    def error_descriptor(self) -> int:
        err = self.running[TX][0].err
        assert err is not None
        return err


@contextlib.contextmanager
def echoing(
    driver: Driver,
    *,
    features: int = FEATURES,
    offered: int = PROTOCOL_FEATURES,
    wanted: int = ~0,
) -> Iterator[tuple[FrontEnd, Echo]]:
    """A front end that is connected to an echoing back end, and the back end."""
    near, far = socket.socketpair()
    echo = Echo(far, features, offered)
    thread = threading.Thread(target=echo.run)
    thread.start()
    try:
        front_end = FrontEnd(near, driver, protocol_features=wanted, seconds=SECONDS)
        with contextlib.closing(driver), near, contextlib.closing(front_end):
            yield front_end, echo
    finally:
        thread.join()


def exchange(driver: Driver, front_end: FrontEnd, packets: Sequence[bytes]) -> list[bytes]:
    """Sends packets; returns what came back until there are as many."""
    received: list[bytes] = []
    todo = list(packets)
    while len(received) < len(packets):
        while todo and driver.send(HEADER, todo[0]):
            del todo[0]
        if driver.add_rx_buffers() or driver.tx.kick_wanted():
            front_end.kick(RX)
            front_end.kick(TX)
        new = driver.received()
        received += new
        if new:
            front_end.kick(RX)
        elif not front_end.wait_call(TX if todo else RX, SECONDS):
            break
    return received


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("layout", [ONE, TWO, MANY, Layout(5, header_apart=False)])
def test_packets_go_through_a_back_end_in_another_thread(layout: Layout, event_idx: bool) -> None:
    driver = Driver(layout=layout, event_idx=event_idx, shared=True)
    packets = [number.to_bytes(2, "little") * (number % 700) for number in range(1_000)]
    with echoing(driver) as (front_end, echo):
        front_end.realize()
        assert front_end.config == CONFIG
        front_end.start()
        assert exchange(driver, front_end, packets) == [HEADER + packet for packet in packets]
        assert bool(echo.session.features & Feature.EVENT_IDX) == event_idx
        front_end.stop()
        assert front_end.bases[TX] == 1_000
        assert echo.resets == 1


def test_a_guest_is_paused_and_reset() -> None:
    driver = Driver(shared=True)
    with echoing(driver) as (front_end, echo):
        front_end.realize()
        front_end.start()
        for round_ in range(3):
            assert exchange(driver, front_end, [b"before"]) == [HEADER + b"before"]
            front_end.stop()
            assert front_end.bases == [2 * round_ + 1] * 2
            driver.send(HEADER, b"while it is paused")
            front_end.start()
            while not (received := driver.received()):  # a device may call when it starts, too
                assert front_end.wait_call(RX, SECONDS)
            assert received == [HEADER + b"while it is paused"]
            assert echo.resets == 1
        front_end.set_memory()
        assert exchange(driver, front_end, [b"other memory"]) == [HEADER + b"other memory"]
        front_end.reboot()
        assert exchange(driver, front_end, [b"anew"]) == [HEADER + b"anew"]
        assert echo.resets == 2


def test_without_what_is_optional() -> None:
    driver = Driver(shared=True, event_idx=False)
    with echoing(driver, wanted=ProtocolFeature.CONFIG) as (front_end, _):
        front_end.realize()
        front_end.start()
        assert exchange(driver, front_end, [b"plain"]) == [HEADER + b"plain"]


def test_the_trace_is_qemus() -> None:
    """The order of requests that was measured."""
    near, far = socket.socketpair()
    seen = []
    driver = Driver(shared=True)

    class Recorder(Echo):
        def receive(self) -> None:
            header = far.recv(vhost_user.HEADER_BYTES, socket.MSG_PEEK)
            seen.extend([int.from_bytes(header[:4], "little")] if header else [])
            super().receive()

    recorder = Recorder(far, FEATURES, PROTOCOL_FEATURES)
    thread = threading.Thread(target=recorder.run)
    thread.start()
    with contextlib.closing(driver), near, contextlib.closing(FrontEnd(near, driver)) as front_end:
        front_end.realize()
        front_end.start()
        front_end.stop()
        near.shutdown(socket.SHUT_WR)
        thread.join()
    assert seen == [
        *(1, 15, 16, 17, 3, 1, 13, 14, 13, 14, 24),
        *(13, 13, 2, 40, 39, 5, 8, 10, 9, 12, 8, 10, 9, 12, 18, 18, 13, 13),
        *(18, 18, 11, 11, 13, 13),
    ]
    assert recorder.session.protocol_features == PROTOCOL_FEATURES


def test_a_hostile_guest_is_told_of_by_the_err_descriptor() -> None:
    driver = Driver(shared=True)
    with echoing(driver) as (front_end, _):
        front_end.realize()
        front_end.start()
        assert not front_end.wait_err(TX, 0)
        driver.tx.write_descriptor(0, 1 << 60, 1)
        driver.tx.offer(0)
        front_end.kick(TX)
        assert front_end.wait_err(TX, SECONDS)
        assert not front_end.wait_call(TX, 0)
        front_end.reboot()
        assert exchange(driver, front_end, [b"again"]) == [HEADER + b"again"]


@pytest.mark.parametrize(
    ("features", "offered", "what"),
    [
        (FEATURES & ~Feature.VERSION_1, PROTOCOL_FEATURES, "features"),
        (FEATURES & ~Feature.EVENT_IDX, PROTOCOL_FEATURES, "features"),
        (FEATURES, PROTOCOL_FEATURES & ~ProtocolFeature.CONFIG, "CONFIG"),
    ],
)
def test_a_back_end_that_qemu_refuses_is_refused(features: int, offered: int, what: str) -> None:
    back_end = echoing(Driver(shared=True), features=features, offered=offered)
    with back_end as (front_end, _), pytest.raises(ProtocolError, match=what):
        front_end.realize()


def test_a_back_end_with_one_queue_is_refused() -> None:
    with echoing(Driver(shared=True)) as (front_end, echo):
        echo.session = Session(FEATURES, CONFIG, queues=1)
        with pytest.raises(ProtocolError, match="1 queues"):
            front_end.realize()


def test_a_back_end_that_ends_the_session_is_seen() -> None:
    driver = Driver(shared=True)
    with echoing(driver) as (front_end, echo):
        front_end.realize()
        front_end.send(Request.SET_VRING_NUM, vhost_user.pack_vring_state(9, 1))
        with pytest.raises(ConnectionError):
            front_end.ask(Request.GET_FEATURES)
        assert "queue 9" in echo.ended


def test_memory_that_was_refused_is_told() -> None:
    driver = Driver(shared=True)
    with echoing(driver) as (front_end, _):
        front_end.realize()
        driver.regions = driver.regions * 5
        with pytest.raises(ProtocolError, match="memory"):
            front_end.set_memory()
        assert vhost_user.parse_u64(front_end.ask(Request.SET_OWNER, flags=Flag.NEED_REPLY)) == 0
