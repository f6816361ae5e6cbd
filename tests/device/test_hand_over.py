"""What goes wrong between the device and the broker, or another VM's device: nothing of it is a connection."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock import HV_GUID_PARENT, Address
from hvsock.fabric import client, messages
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import DeviceCourier, Established, Flag
from hvsock.registry import ServiceEntry
from hvsock.virtio.packet import HOST_CID
from tests.device.conftest import PORT
from tests.device.devices import DeviceThread
from tests.device.ends import connect, from_guest, from_host, listen
from tests.device.guest import PATIENCE_SECONDS, Guest
from tests.device.test_lifecycle import works
from tests.fabric.fake_device import DeviceEnd, FakeDevice
from tests.fabric.peers import ended, fails_with, read_errno
from tests.waiting import wait_until


def courier(service: ServiceEntry, flags: Flag = Flag.NONE) -> bytes:
    """What the broker sends for a connect of the host."""
    address, type_ = Address(HV_GUID_PARENT, service.id), socket.SOCK_STREAM
    port, cid = PORT, HOST_CID
    return DeviceCourier(
        address, address, bytes(16), flags, port=port, source_cid=cid, milliseconds=2000, type=type_
    ).pack()


@pytest.fixture
def link(fabric: EmbeddedFabric, guest: Guest) -> Iterator[socket.socket]:
    """A courier's way to the device, as the broker has it."""
    folder = os.path.join(fabric.folder, "listeners")
    (name,) = (name.removesuffix(".json") for name in os.listdir(folder) if name.endswith(".json"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_SECONDS)
        sock.connect(os.path.join(folder, name))
        yield sock


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connector and the other end of its connection."""
    near, far = socket.socketpair()
    near.settimeout(PATIENCE_SECONDS)
    with near, far:
        yield near, far


@pytest.mark.parametrize("data", [b"?", bytes(messages.DEVICE_MESSAGE_BYTES), messages.DONE, b""])
def test_what_is_no_courier(
    fabric: EmbeddedFabric,
    vm: PartitionHandle,
    guest: Guest,
    demo: ServiceEntry,
    link: socket.socket,
    pair: tuple[socket.socket, socket.socket],
    data: bytes,
) -> None:
    """What came along is closed."""
    near, far = pair
    if data:
        socket.send_fds(link, [data], [far.fileno()])
    else:
        link.shutdown(socket.SHUT_WR)
    far.close()
    assert ended(link)
    assert not data or ended(near)
    with from_host(fabric, vm, guest, demo) as ends:
        works(*ends)


def test_a_courier_without_a_connection(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, link: socket.socket
) -> None:
    link.sendall(courier(demo))
    link.sendall(messages.DONE)
    assert ended(link)
    with from_host(fabric, vm, guest, demo) as ends:
        works(*ends)


@pytest.mark.parametrize("along", ["nothing", "a pipe"])
def test_an_end_mark_is_missing(
    demo: ServiceEntry, link: socket.socket, pair: tuple[socket.socket, socket.socket], along: str
) -> None:
    """Without it every death of the other device would be a clean end."""
    near, far = pair
    reading, writing = os.pipe()
    more = [writing] if along == "a pipe" else []
    socket.send_fds(link, [courier(demo, Flag.END_MARK)], [far.fileno(), *more])
    assert read_errno(near) == errno.ENOBUFS
    far.close()
    assert ended(near)
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_no_descriptor_for_an_end_mark(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> EndMark:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(EndMark, "new", none)
    with fails_with(errno.ENOBUFS, "short of descriptors"):
        connect(fabric, vm, demo.id)
    with pytest.raises(ConnectionRefusedError):
        guest.connect(PORT)
    monkeypatch.undo()
    for ends in (from_guest(fabric, guest, demo), from_host(fabric, vm, guest, demo)):
        with ends as found:
            works(*found)


def test_too_many_watches(
    fabric: EmbeddedFabric,
    vm: PartitionHandle,
    guest: Guest,
    device: DeviceThread,
    demo: ServiceEntry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel counts them for each user."""
    original = device.reactor.watch
    guest.listen(PORT)

    def short_of(*without: int) -> Callable[..., None]:
        def watch(descriptor: int, events: int, handler: Any) -> None:
            if events in without:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(descriptor, events, handler)

        return watch

    edge = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
    with from_guest(fabric, guest, demo) as found:
        monkeypatch.setattr(device.reactor, "watch", short_of(select.EPOLLRDHUP, select.EPOLLOUT, edge))
        with fails_with(errno.ECONNREFUSED):
            connect(fabric, vm, demo.id)
        with pytest.raises(ConnectionRefusedError):
            guest.connect(PORT)
        monkeypatch.setattr(device.reactor, "watch", short_of(edge))
        with listen(fabric, demo.id), pytest.raises(ConnectionRefusedError):
            guest.connect(PORT)
        monkeypatch.setattr(device.reactor, "watch", short_of(select.EPOLLIN | select.EPOLLRDHUP))
        with fails_with(errno.ECONNREFUSED):
            connect(fabric, vm, demo.id)
        monkeypatch.undo()
        works(*found)


def test_the_broker_has_no_room(
    fabric: EmbeddedFabric, guest: Guest, demo: ServiceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connect is tried again, for as long as it may take."""
    original, tries = client.start_connect, []

    def full(*arguments: Any) -> None:
        tries.append(arguments)
        if len(tries) < 4:
            raise OSError(errno.ENOBUFS, "full")
        original(*arguments)

    monkeypatch.setattr(client, "start_connect", full)
    guest_end = guest.begin_connect(PORT)
    with guest.changed:
        guest.wait_for(lambda: guest_end.was_reset)
    assert len(tries) == 4, "nobody listens, but the broker was asked"


@pytest.mark.parametrize("when", ["at first", "later"])
def test_no_broker(
    guest: Guest, device: DeviceThread, demo: ServiceEntry, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    tries = []

    def gone(*arguments: Any) -> None:
        tries.append(arguments)
        if when == "later" and len(tries) == 1:
            raise OSError(errno.ENOBUFS, "full")
        raise OSError(errno.ENETUNREACH, "no broker answers")

    monkeypatch.setattr(client, "start_connect", gone)
    with pytest.raises(ConnectionRefusedError):
        guest.connect(PORT)
    wait_until(lambda: device.report()["refused"] == {"refused": 1})


@pytest.mark.parametrize("wrong", ["no message", "a pipe", "the end"])
def test_another_device_that_is_wrong(
    fabric: EmbeddedFabric, guest: Guest, device: DeviceThread, demo: ServiceEntry, wrong: str
) -> None:
    """It drains the request, but what it says is not that the connection is established."""
    member = fabric.create_partition("member", group="g")
    cid = client.call(fabric.host.folder, "resolve", vm="member")["cid"]

    def answer(far: DeviceEnd) -> None:
        with far:
            if wrong == "no message":
                far.sock.sendall(b"payload, so to speak")
            elif wrong == "a pipe":
                reading, writing = os.pipe()
                socket.send_fds(far.sock, [Established().pack()], [writing])
                os.close(writing)
                os.close(reading)
            far.sock.recv(messages.REQUEST_BYTES)

    with FakeDevice(member.folder) as other, other.serving(answer), pytest.raises(ConnectionRefusedError):
        guest.connect(PORT, cid)
    assert not device.report()["connections"]


def test_a_guest_that_changes_its_mind(
    fabric: EmbeddedFabric, guest: Guest, device: DeviceThread, demo: ServiceEntry
) -> None:
    """Its connect is under way at another device, and is given up there."""
    member = fabric.create_partition("member", group="g")
    cid = client.call(fabric.host.folder, "resolve", vm="member")["cid"]
    with FakeDevice(member.folder) as other:
        sock = guest.begin_connect(PORT, cid)
        with other.take_end() as far:
            sock.reset()
            far.sock.recv(messages.REQUEST_BYTES)
            assert ended(far.sock)
    assert not device.report()["connections"]
