"""Front ends that break the protocol, or are slow, or bring what is not what it should be."""

from __future__ import annotations

import contextlib
import os
import socket
import sys

import pytest

assert sys.platform == "linux"

from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry import ServiceEntry
from hvsock.testing.virtio_driver import Driver
from hvsock.testing.virtio_front_end import FrontEnd
from hvsock.virtio import vhost_user
from hvsock.virtio.session import RX
from hvsock.virtio.vhost_user import Flag, MemoryRegion, Message, Request
from tests.device.devices import DeviceThread
from tests.device.ends import from_guest
from tests.device.guest import PATIENCE_SECONDS
from tests.device.test_lifecycle import works
from tests.waiting import wait_until

QUEUE_7 = vhost_user.pack_vring_state(7, 128)
GET_FEATURES = Message(Request.GET_FEATURES, Flag.NONE, b"").pack()
REPLY_BYTES = vhost_user.HEADER_BYTES + 8


def assert_serves(fabric: EmbeddedFabric, device: DeviceThread, demo: ServiceEntry) -> None:
    """The device is there for the next front end."""
    with device.guest() as guest, from_guest(fabric, guest, demo) as ends:
        works(*ends)


def assert_ended(sock: socket.socket) -> None:
    """The device ended the session."""
    sock.settimeout(PATIENCE_SECONDS)
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(65536):
            pass


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff" * 64, id="no header"),
        pytest.param(Message(Request.GET_FEATURES, Flag.NONE, bytes(8)).pack(), id="a payload too much"),
        pytest.param(Message(Request.SET_VRING_NUM, Flag.NONE, QUEUE_7).pack(), id="queue 7"),
        pytest.param(Message(Request.SET_VRING_ADDR, Flag.NONE, bytes(40)).pack(), id="no memory"),
    ],
)
def test_a_front_end_that_breaks_the_protocol(
    fabric: EmbeddedFabric, device: DeviceThread, demo: ServiceEntry, data: bytes
) -> None:
    with device.front_end() as sock:
        sock.sendall(data)
        assert_ended(sock)
    assert_serves(fabric, device, demo)


def test_a_message_in_pieces(device: DeviceThread) -> None:
    with device.front_end() as sock:
        sock.settimeout(PATIENCE_SECONDS)
        for byte in GET_FEATURES:
            sock.send(bytes([byte]))
            device.report()
        assert len(sock.recv(100)) == REPLY_BYTES


def test_many_messages_at_once(device: DeviceThread) -> None:
    """More than it handles in one turn."""
    count = 500
    with device.front_end() as sock:
        sock.settimeout(PATIENCE_SECONDS)
        sock.sendall(GET_FEATURES * count)
        received = 0
        while received < count * REPLY_BYTES:
            received += len(sock.recv(65536))
        assert received == count * REPLY_BYTES


def test_replies_that_nobody_reads(fabric: EmbeddedFabric, device: DeviceThread, demo: ServiceEntry) -> None:
    """They are bounded."""
    with device.front_end() as sock:
        sock.settimeout(PATIENCE_SECONDS)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:  # until it is turned away
                sock.sendall(GET_FEATURES * 1000)
    assert_serves(fabric, device, demo)


def test_a_second_front_end_is_turned_away(
    fabric: EmbeddedFabric, device: DeviceThread, demo: ServiceEntry, caplog: pytest.LogCaptureFixture
) -> None:
    with device.guest() as guest, from_guest(fabric, guest, demo) as ends:
        with device.front_end() as other:
            assert_ended(other)
        assert "a second front end is turned away" in caplog.text
        works(*ends)


def test_memory_that_cannot_be_mapped(fabric: EmbeddedFabric, device: DeviceThread, demo: ServiceEntry) -> None:
    """A descriptor that is no file, a region beyond the file, one that overlaps; none leaves anything behind."""
    reading, writing = os.pipe()
    memory = os.memfd_create("small")
    os.ftruncate(memory, 4096)
    fine = MemoryRegion(0, 4096, 0x1000_0000, 0)
    cases = [
        ([fine], [reading]),
        ([fine._replace(size=1 << 40)], [memory]),
        ([fine._replace(mmap_offset=1 << 62)], [memory]),
        ([fine, fine], [memory, memory]),
        ([fine], [memory, memory]),
    ]
    for regions, descriptors in cases:
        with device.front_end() as sock:
            message = Message(Request.SET_MEM_TABLE, Flag.NONE, vhost_user.pack_memory_table(regions)).pack()
            socket.send_fds(sock, [message], descriptors)
            assert_ended(sock)
    for descriptor in (reading, writing, memory):
        os.close(descriptor)
    assert_serves(fabric, device, demo)


@pytest.mark.parametrize("request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR])
def test_what_is_no_eventfd(
    fabric: EmbeddedFabric, device: DeviceThread, demo: ServiceEntry, request_: Request
) -> None:
    """A full pipe, a file: nobody waits for them, and at worst the session ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    with open("/dev/null", "rb") as file:
        for descriptor in (writing, reading, file.fileno()):
            with device.front_end() as sock, contextlib.closing(Driver(shared=True)) as driver:
                front_end = FrontEnd(sock, driver, seconds=PATIENCE_SECONDS)
                with contextlib.closing(front_end), contextlib.suppress(OSError):
                    front_end.realize()
                    front_end.start()
                    payload = vhost_user.pack_vring_descriptor(RX, attached=True)
                    front_end.send(request_, payload, [descriptor])
                    driver.rx.write_descriptor(0, 1 << 60, 1)
                    driver.rx.offer(0)
                    front_end.kick(RX)
                    front_end.ask(Request.GET_FEATURES)
            wait_until(lambda: device.report()["driver"] == "down")
    os.close(reading)
    os.close(writing)
    assert_serves(fabric, device, demo)


def test_a_kick_that_is_closed_is_forgotten(device: DeviceThread, vm: PartitionHandle) -> None:
    """A socket whose other end is gone would be ready for ever."""
    with device.guest() as guest:
        near, far = socket.socketpair()
        with guest.changed:
            payload = vhost_user.pack_vring_descriptor(RX, attached=True)
            guest.front_end.send(Request.SET_VRING_KICK, payload, [far.fileno()])
        far.close()
        near.close()
        wait_until(lambda: device.report()["driver"] == "running")
