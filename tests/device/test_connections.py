"""Connections between guests and the host's programs, through a broker and a device, from end to end."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import ServiceId
from hvsock.device import connecting
from hvsock.device.device import Limits
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry import ServiceEntry
from hvsock.testing.virtio_driver import MANY, ONE, TWO, Layout
from hvsock.virtio.packet import SEQPACKET, STREAM, Shutdown
from tests.device.conftest import PORT
from tests.device.devices import DeviceThread
from tests.device.ends import Types, accept, connect, from_guest, from_host, listen, receive_exactly
from tests.device.guest import PATIENCE_SECONDS, Guest, GuestSocket
from tests.fabric.peers import fails_with
from tests.waiting import wait_until

TYPES = [
    pytest.param((socket.SOCK_STREAM, STREAM), id="stream"),
    pytest.param((socket.SOCK_SEQPACKET, SEQPACKET), id="seqpacket"),
]


@pytest.fixture(params=["from the guest", "from the host"])
def ends(
    request: pytest.FixtureRequest, fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry
) -> Iterator[tuple[hvsock.socket, GuestSocket]]:
    """A stream between the host and the guest, begun by either."""
    by_guest = request.param == "from the guest"
    with from_guest(fabric, guest, demo) if by_guest else from_host(fabric, vm, guest, demo) as found:
        yield found


# -- data, and its end


@pytest.mark.parametrize("layout", [ONE, TWO, MANY], ids=["one descriptor", "two", "many"])
def test_bytes_go_both_ways(
    fabric: EmbeddedFabric, device: DeviceThread, demo: ServiceEntry, layout: Layout
) -> None:
    """More than any buffer holds."""
    there, back = bytes(range(256)) * 8192, bytes(range(255, -1, -1)) * 8192
    with device.guest(layout) as guest, from_guest(fabric, guest, demo) as (near, far):
        sender = threading.Thread(target=near.sendall, args=(back,))
        sender.start()
        assert far.receive_exactly(len(back)) == back
        sender.join()
        received = bytearray()
        reader = threading.Thread(target=lambda: received.extend(receive_exactly(near, len(there))))
        reader.start()
        far.send(there)
        reader.join()
        assert bytes(received) == there


def test_descriptors_among_the_bytes_hold_nothing_up(
    device: DeviceThread, ends: tuple[hvsock.socket, GuestSocket]
) -> None:
    """A read ends early at bytes that came with descriptors, and nobody tells of those behind them."""
    near, far = ends
    near.sendall(b"0")
    assert far.receive_exactly(1) == b"0"
    with device.reactor.turn:
        for data in (b"1", b"2", b"3"):
            socket.send_fds(near, [data], [near.fileno()])
        near.sendall(b"4")
    assert far.receive_exactly(4) == b"1234"


def test_the_host_ends_first(ends: tuple[hvsock.socket, GuestSocket]) -> None:
    near, far = ends
    near.sendall(b"last words")
    near.shutdown(hvsock.SHUT_WR)
    assert far.receive_exactly(10) == b"last words"
    assert far.receive() == b""
    assert far.peer_shut == Shutdown.SEND
    far.send(b"and the answer")
    assert near.recv(100) == b"and the answer"
    far.close()
    assert near.recv(100) == b""


def test_the_guest_ends_first(ends: tuple[hvsock.socket, GuestSocket]) -> None:
    near, far = ends
    far.send(b"last words")
    far.shutdown(Shutdown.SEND)
    assert near.recv(100) == b"last words"
    assert near.recv(100) == b""
    near.sendall(b"and the answer")
    near.close()
    assert far.receive_exactly(14) == b"and the answer"
    assert far.receive() == b""


def test_the_guest_receives_no_more(ends: tuple[hvsock.socket, GuestSocket]) -> None:
    near, far = ends
    far.shutdown(Shutdown.RECEIVE)

    def fails() -> bool:
        try:
            near.send(b"!")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    wait_until(fails)
    far.send(b"still heard")
    assert near.recv(100) == b"still heard"


def test_what_was_sent_before_a_close_arrives(
    ends: tuple[hvsock.socket, GuestSocket], device: DeviceThread
) -> None:
    near, far = ends
    data = bytes(200_000)
    far.send(data)
    far.close()
    assert receive_exactly(near, len(data)) == data
    assert near.recv(1) == b""
    wait_until(lambda: not device.report()["connections"])


def test_what_the_host_sent_before_it_closed_arrives(ends: tuple[hvsock.socket, GuestSocket]) -> None:
    near, far = ends
    data = bytes(100_000)
    near.sendall(data)
    near.close()
    assert far.receive_exactly(len(data)) == data
    assert far.receive() == b""
    assert far.peer_shut == Shutdown.BOTH


def test_a_reset_of_the_guest_is_a_reset(ends: tuple[hvsock.socket, GuestSocket]) -> None:
    near, far = ends
    far.send(b"unfinished")
    far.reset()
    assert near.recv(100) == b"unfinished"
    with pytest.raises(ConnectionResetError):
        near.recv(100)


def test_a_close_of_the_host_with_something_unread_is_a_reset(ends: tuple[hvsock.socket, GuestSocket]) -> None:
    near, far = ends
    far.send(b"unread")
    assert select.select([near], [], [], PATIENCE_SECONDS)[0]
    near.close()
    far.wait_for_reset()
    assert not far.peer_shut & Shutdown.SEND


@pytest.mark.parametrize("begun_by", ["guest", "host"])
def test_messages_keep_their_bounds(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, begun_by: str
) -> None:
    types, by_guest = (socket.SOCK_SEQPACKET, SEQPACKET), begun_by == "guest"
    made = from_guest(fabric, guest, demo, types) if by_guest else from_host(fabric, vm, guest, demo, types)
    with made as (near, far):
        messages = [b"x", b"yz" * 1000, bytes(128 << 10)]
        for message in messages:
            near.send(message)
            assert far.receive() == message
            far.send(message)
            assert near.recv(200_000) == message
        near.send(b"last")
        near.close()
        assert far.receive() == b"last"
        assert far.receive() == b""


# -- refusals


def test_nothing_listens_in_the_guest(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, device: DeviceThread
) -> None:
    with fails_with(errno.ECONNREFUSED, "nothing listens there in the guest"):
        connect(fabric, vm, demo.id)
    assert device.report()["total"]["ended"] == {"refused": 1}


def test_the_guest_is_silent(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, device: DeviceThread
) -> None:
    guest.ignores = True
    with fails_with(errno.ETIMEDOUT, "the guest did not answer"):
        connect(fabric, vm, demo.id, HVSOCKET_CONNECT_TIMEOUT=150)
    assert device.report()["total"]["ended"] == {"timed_out": 1}
    guest.ignores = False
    guest.listen(PORT)
    with connect(fabric, vm, demo.id), guest.accept(PORT):
        pass


@pytest.mark.parametrize("when", ["no front end", "no driver", "front end gone"])
def test_the_vm_is_not_up(
    fabric: EmbeddedFabric, vm: PartitionHandle, device: DeviceThread, demo: ServiceEntry, when: str
) -> None:
    with contextlib.ExitStack() as stack:
        if when != "no front end":
            guest = stack.enter_context(device.guest(boot=when != "no driver"))
        if when == "front end gone":
            guest.die()
            wait_until(lambda: device.report()["driver"] == "down")
        assert device.report()["driver"] == "down"
        with fails_with(errno.ECONNREFUSED, "the VM is not running, or its driver"):
            connect(fabric, vm, demo.id)


def test_a_connector_that_leaves_tells_the_guest(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, device: DeviceThread
) -> None:
    guest.ignores = True
    with hvsock.socket(partition=fabric.host.folder) as sock:
        sock.setblocking(False)
        assert sock.connect_ex((vm.id, demo.id)) == errno.EINPROGRESS
        wait_until(lambda: device.report()["connections"])
    wait_until(lambda: not device.report()["connections"])


def test_the_guest_is_refused_what_is_not_there(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, device: DeviceThread
) -> None:
    """Nobody listens; the service is not registered; no such CID; a group that it is not in."""
    outsider = fabric.create_partition("outsider")
    with DeviceThread(fabric, outsider) as other, other.guest() as far:
        far.listen(PORT)
        for port, cid in ((PORT, 2), (PORT + 1, 2), (PORT, 999), (PORT, other.cid)):
            with pytest.raises(ConnectionRefusedError):
                guest.connect(port, cid)
        assert not far.sockets
    assert device.report()["refused"] == {"refused": 4}


def test_the_service_is_not_registered(fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest) -> None:
    guest.listen(7)
    with fails_with(errno.EACCES):
        connect(fabric, vm, ServiceId.from_port(7))


@pytest.mark.parametrize("types", TYPES)
def test_no_more_connections_than_allowed(
    fabric: EmbeddedFabric, vm: PartitionHandle, demo: ServiceEntry, types: Types
) -> None:
    with (
        DeviceThread(fabric, vm, Limits(connections=2)) as device,
        device.guest() as guest,
        listen(fabric, demo.id, types[0]) as listener,
    ):
        guest.listen(PORT, types[1])
        first = guest.connect(PORT, type_=types[1])
        with accept(listener), connect(fabric, vm, demo.id, types[0]):
            with pytest.raises(ConnectionRefusedError):
                guest.connect(PORT, type_=types[1])
            with fails_with(errno.ECONNREFUSED, "as many connections as its device allows"):
                connect(fabric, vm, demo.id, types[0])
            first.close()
            guest.connect(PORT, type_=types[1])
            accept(listener).close()


def test_a_connect_that_nobody_settles_ends(
    fabric: EmbeddedFabric, vm: PartitionHandle, demo: ServiceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other VM's device hangs."""
    monkeypatch.setattr(connecting, "HVSOCKET_CONNECT_TIMEOUT_DEFAULT", 50)
    monkeypatch.setattr(connecting, "ANSWER_GRACE_SECONDS", 0.05)
    member = fabric.create_partition("member", group="g")
    with (
        DeviceThread(fabric, vm) as device,
        device.guest() as guest,
        DeviceThread(fabric, member) as other,
        other.guest(),
        other.reactor.turn,
    ):
        with pytest.raises(ConnectionRefusedError):
            guest.connect(PORT, other.cid)
        assert device.report()["refused"] == {"timed_out": 1}


# -- who is who


@pytest.mark.parametrize("types", TYPES)
def test_guests_in_a_group_reach_each_other(
    fabric: EmbeddedFabric, guest: Guest, demo: ServiceEntry, device: DeviceThread, types: Types
) -> None:
    """They know each other by their CIDs; a reset is a reset, and an end an end."""
    member = fabric.create_partition("member", group="g")
    with DeviceThread(fabric, member) as other, other.guest() as far_guest:
        far_guest.listen(PORT, types[1])
        for graceful in (True, False):
            near = guest.connect(PORT, other.cid, types[1])
            far = far_guest.accept(PORT, types[1])
            assert far.key[1] == device.cid
            near.send(b"from one guest")
            assert far.receive() == b"from one guest"
            far.send(b"to the other")
            assert near.receive() == b"to the other"
            if graceful:
                near.close()
                assert far.receive() == b""
            else:
                near.reset()
                with pytest.raises(ConnectionResetError):
                    far.receive()
        assert set(device.report()["services"]) == {demo.id}


def test_a_guest_reaches_a_service_by_its_port_alias(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, device: DeviceThread
) -> None:
    """It counts for the service, not for the port, and ends with the service."""
    service = fabric.registry.register("Anything", port_alias=77)
    with listen(fabric, service.id) as listener:
        near = guest.connect(77)
        with accept(listener) as accepted:
            near.send(b"hello")
            assert accepted.recv(10) == b"hello"
            assert accepted.getsockname().service_id == service.id
            assert set(device.report()["services"]) == {service.id}
            fabric.registry.set_enabled("Anything", False)
            near.wait_for_reset()
            with pytest.raises(ConnectionResetError):
                accepted.recv(10)
    fabric.registry.set_enabled("Anything", True)
    guest.listen(77)
    with connect(fabric, vm, service.id), guest.accept(77):
        assert device.report()["services"][service.id]["open"] == 1


def test_a_removed_partition_has_no_connections(
    fabric: EmbeddedFabric, ends: tuple[hvsock.socket, GuestSocket]
) -> None:
    near, far = ends
    fabric.remove_partition("vm")
    far.wait_for_reset()
    with pytest.raises(ConnectionResetError):
        near.recv(10)


def test_the_broker_is_started_anew(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry
) -> None:
    with from_guest(fabric, guest, demo) as (near, far):
        fabric.restart()
        far.send(b"still here")
        assert near.recv(100) == b"still here"
        for make in (from_guest(fabric, guest, demo), from_host(fabric, vm, guest, demo)):
            with make as (other, far_other):
                other.sendall(b"new")
                assert far_other.receive() == b"new"


# -- many


def test_a_slow_reader_stalls_only_itself(fabric: EmbeddedFabric, guest: Guest, demo: ServiceEntry) -> None:
    with listen(fabric, demo.id) as listener, contextlib.ExitStack() as stack:
        slow_far = guest.connect(PORT)
        slow = stack.enter_context(accept(listener))
        sent = bytearray()

        def push() -> None:
            while len(sent) < 4 << 20:
                sent.extend(b"s" * 65536)
                slow_far.send(b"s" * 65536)

        thread = threading.Thread(target=push)
        thread.start()
        far = guest.connect(PORT)
        near = stack.enter_context(accept(listener))
        data = bytes(1 << 20)
        reader = threading.Thread(target=receive_exactly, args=(near, len(data)))
        reader.start()
        far.send(data)
        reader.join()
        held = len(sent)
        assert held < 4 << 20, "the slow one's sender has to wait"
        assert len(receive_exactly(slow, 4 << 20)) == 4 << 20
        thread.join()


def test_an_idle_device_sleeps(guest: Guest, device: DeviceThread) -> None:
    """Nothing to do takes no processor time: its loop does not turn."""
    turns: list[None] = []
    original = device.reactor.run_once

    def counted() -> None:
        turns.append(None)
        original()

    device.reactor.run_once = counted  # type: ignore[method-assign]
    device.report()
    before = len(turns)
    time.sleep(0.2)
    assert len(turns) <= before + 2


def test_waiting_for_a_service_waits_for_the_guests_listener(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry
) -> None:
    """Which only the guest knows; its device is there long before."""
    address = (vm.id, demo.id)
    with pytest.raises(TimeoutError, match=r"not there after 0\.05 s: (nothing listens|timed out)"):
        hvsock.wait_for_service(address, 0.05, partition=fabric.host.folder)
    waiting = threading.Thread(
        target=hvsock.wait_for_service, args=(address, PATIENCE_SECONDS), kwargs={"partition": fabric.host.folder}
    )
    waiting.start()
    guest.listen(PORT)
    waiting.join()
