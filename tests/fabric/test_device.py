"""Devices of VMs: who gets one, what comes to it, and connects of its guest."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import HV_GUID_CHILDREN, HV_GUID_PARENT, HV_GUID_WILDCARD, ServiceId, VmId
from hvsock.fabric import client, messages
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.messages import Established, Flag
from hvsock.registry import ServiceEntry
from tests.fabric.fake_device import FakeDevice, begin_connect, connected, refused
from tests.fabric.peers import Connector, ended, fails_with, start_connect, take
from tests.waiting import PATIENCE_SECONDS, wait_until

TYPES = [pytest.param(socket.SOCK_STREAM, id="stream"), pytest.param(socket.SOCK_SEQPACKET, id="seqpacket")]
PORT = 2761


@pytest.fixture
def vm(fabric: EmbeddedFabric) -> PartitionHandle:
    return fabric.create_partition("vm", group="g")


@pytest.fixture
def service(fabric: EmbeddedFabric) -> ServiceEntry:
    return fabric.register("Demo", ServiceId.from_port(PORT))


def demo(fabric: EmbeddedFabric) -> dict[str, object]:
    """The counters of the service."""
    services = client.call(fabric.host.folder, "status")["services"]
    found: dict[str, object] = next(one for one in services if one["name"] == "Demo")
    return found


def exchange(connector: Connector, device: socket.socket) -> None:
    """Nothing but what was sent arrives, either way."""
    connector.sock.settimeout(PATIENCE_SECONDS)
    connector.sock.sendall(b"from the host")
    assert device.recv(100) == b"from the host"
    device.sendall(b"from the guest")
    assert connector.sock.recv(100) == b"from the guest"


# -- the device's listener


def test_a_vm_has_one_device(fabric: EmbeddedFabric, vm: PartitionHandle) -> None:
    for _ in range(2):
        with FakeDevice(vm.folder):
            with fails_with(errno.EADDRINUSE):
                client.bind_device(vm.folder)
            with hvsock.create_server((HV_GUID_WILDCARD, ServiceId.new()), partition=vm.folder):
                assert_serves(fabric, {"vm"})
            fabric.restart()
            with fails_with(errno.EADDRINUSE):
                client.bind_device(vm.folder)


def assert_serves(fabric: EmbeddedFabric, names: set[str]) -> None:
    """Which VMs have a device, as status tells it; a device counts as no listener of a service."""
    status = client.call(fabric.host.folder, "status")
    assert {one["name"] for one in status["partitions"] if one["device"]} == names
    assert sum(one["listeners"] for one in status["services"]) == 1


def test_containers_have_no_device_and_devices_no_messages(fabric: EmbeddedFabric, vm: PartitionHandle) -> None:
    box = fabric.create_partition("box", "container", parent="vm")
    with fails_with(errno.EINVAL):
        client.bind_device(box.folder)
    with fails_with(errno.EINVAL):
        client.bind(
            vm.folder,
            socket.SOCK_SEQPACKET,
            hvsock.Address(HV_GUID_WILDCARD, ServiceId.new()),
            Flag.DEVICE,
        )
    with FakeDevice(vm.folder):
        pass


def test_a_record_without_flags_is_no_device(fabric: EmbeddedFabric, vm: PartitionHandle) -> None:
    """As a broker wrote it that knew no flags."""
    with hvsock.create_server((HV_GUID_WILDCARD, ServiceId.new()), partition=vm.folder):
        (path,) = Path(fabric.folder, "listeners").glob("*.json")
        record = json.loads(path.read_text())
        del record["flags"]
        path.write_text(json.dumps(record))
        fabric.restart()
        assert_serves(fabric, set())
        with FakeDevice(vm.folder):
            assert_serves(fabric, {"vm"})


# -- connects to a VM


@pytest.mark.parametrize("type_", TYPES)
def test_what_a_device_learns_of_a_connect(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry, type_: int
) -> None:
    with FakeDevice(vm.folder) as device:
        flags = Flag.CONNECTED_SUSPEND
        with start_connect(
            fabric.host.folder, (vm.id, service.id), type_=type_, milliseconds=700, flags=flags
        ) as near:
            with device.take_end() as far:
                assert far.courier == messages.DeviceCourier(
                    hvsock.Address(HV_GUID_PARENT, service.id),
                    hvsock.Address(HV_GUID_PARENT, ServiceId.from_bytes_le(near.token)),
                    near.token,
                    flags,
                    port=PORT,
                    source_cid=2,
                    milliseconds=700,
                    type=type_,
                )
                assert far.sock.type == type_
                assert near.outcome(0.05) is None, "it is pending until the device says more"
                far.establish(Flag.CONNECTED_SUSPEND)
                assert near.settled() == 0
                assert near.sock.recv(messages.ESTABLISHED_BYTES) == Established(Flag.CONNECTED_SUSPEND).pack()
                exchange(near, far.sock)
            assert ended(near.sock)
    assert demo(fabric)["accepted"] == 1


def test_a_member_is_known_by_its_cid(fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry) -> None:
    member = client.call(fabric.host.folder, "partition.create", name="m", kind="vm", group="g", cid=77)
    cid = client.call(fabric.host.folder, "resolve", vm="vm", service=None)["cid"]
    with (
        FakeDevice(vm.folder) as device,
        start_connect(member["folder"], (VmId.from_cid(cid), service.id)),
        device.take_end() as far,
    ):
        assert far.courier is not None
        assert far.courier.source_cid == 77
        assert far.courier.peer.vm_id == member["id"]


def test_a_guest_refuses(fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry) -> None:
    with FakeDevice(vm.folder) as device:
        for type_ in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            with start_connect(fabric.host.folder, (vm.id, service.id), type_=type_) as near:
                device.take_end().refuse(errno.ETIMEDOUT)
                assert near.settled() == errno.ETIMEDOUT
    assert (demo(fabric)["accepted"], demo(fabric)["open"]) == (2, 0)


@pytest.mark.parametrize("when", ["in the backlog", "taken", "told"])
def test_a_device_that_dies_refuses(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry, when: str
) -> None:
    with FakeDevice(vm.folder) as device:
        with start_connect(fabric.host.folder, (vm.id, service.id)) as near:
            if when != "in the backlog":
                with device.take_end() as far:
                    if when == "told":
                        socket.send_fds(far.sock, [Established().pack()], [far.mark.fileno()])
            else:
                wait_until(lambda: not device.quiet())
            device.close()
            poll = select.poll()
            poll.register(near.sock, select.POLLOUT)
            ((_, events),) = poll.poll(10_000)
            assert events & select.POLLERR
        wait_until(lambda: demo(fabric)["reset"] == ({"listener-gone": 1} if when == "in the backlog" else {}))
        with start_connect(fabric.host.folder, (vm.id, service.id)) as near:
            assert near.settled() == errno.ECONNREFUSED, "nothing listens"
    with (
        FakeDevice(vm.folder) as device,
        start_connect(fabric.host.folder, (vm.id, service.id)) as near,
        device.take_end() as far,
    ):
        far.establish()
        assert near.settled() == 0


def test_a_listener_in_the_partition_comes_first(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry
) -> None:
    """As for what runs in the partition's folder beside the VM."""
    with FakeDevice(vm.folder) as device:
        with (
            hvsock.create_server((HV_GUID_PARENT, service.id), partition=vm.folder) as listener,
            start_connect(fabric.host.folder, (vm.id, service.id)) as near,
        ):
            accepted, _ = take(listener)
            with accepted:
                assert near.settled() == 0
            assert device.quiet()
        with start_connect(fabric.host.folder, (vm.id, service.id)), device.take_end():
            pass


def test_a_connect_waits_for_room_at_a_device(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry
) -> None:
    with FakeDevice(vm.folder, backlog=0) as device, contextlib.ExitStack() as stack:
        address = vm.id, service.id
        first = stack.enter_context(start_connect(fabric.host.folder, address))
        wait_until(lambda: not device.quiet())
        late = stack.enter_context(start_connect(fabric.host.folder, address, milliseconds=30))
        assert late.settled() == errno.ETIMEDOUT
        second = stack.enter_context(start_connect(fabric.host.folder, address, milliseconds=300_000))
        for near in (first, second):
            far = stack.enter_context(device.take_end())
            far.establish()
            assert near.settled() == 0


def test_a_device_and_its_connections_outlive_the_broker(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry
) -> None:
    with FakeDevice(vm.folder) as device, start_connect(fabric.host.folder, (vm.id, service.id)) as near:
        with device.take_end() as far:
            fabric.restart()
            far.establish()
            assert near.settled() == 0
            near.sock.recv(messages.ESTABLISHED_BYTES)
            exchange(near, far.sock)
            assert demo(fabric)["open"] == 1
        with start_connect(fabric.host.folder, (vm.id, service.id)), device.take_end():
            pass
        wait_until(lambda: demo(fabric)["open"] == 0)


def test_a_service_needs_a_port_for_guests(fabric: EmbeddedFabric, vm: PartitionHandle) -> None:
    portless = fabric.register("Portless")
    alias = fabric.registry.register("With an alias", port_alias=PORT).id
    with FakeDevice(vm.folder) as device:
        with (
            hvsock.socket(partition=fabric.host.folder) as sock,
            fails_with(errno.ECONNREFUSED, "--port-alias"),
        ):
            sock.connect((vm.id, portless.id))
        found = client.call(fabric.host.folder, "explain", vm="vm", service="Portless")
        assert found["error"]["reason"] == "no-port"
        assert found["checks"][-2]["found"] == "yes: the VM's device asks the guest"
        assert client.call(fabric.host.folder, "explain", vm="vm", service="With an alias")["ok"]
        for service_id in (alias, ServiceId.from_port(PORT)):
            with start_connect(fabric.host.folder, (vm.id, service_id)), device.take_end() as far:
                assert far.courier is not None
                assert (far.courier.port, far.courier.own.service_id) == (PORT, alias)


# -- connects of a guest


@pytest.mark.parametrize("type_", TYPES)
def test_a_guest_connects_with_an_end_mark(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry, type_: int
) -> None:
    """Its device learns the listener's options, the listener gets the mark."""
    for suspend, expected in ((1, Flag.CONNECTED_SUSPEND), (0, Flag.NONE)):
        with hvsock.socket(type=type_, partition=fabric.host.folder) as listener:
            listener.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECTED_SUSPEND, suspend)
            listener.bind((HV_GUID_CHILDREN, service.id))
            listener.listen()
            fabric.restart()  # the options are written down
            with begin_connect(vm.folder, (HV_GUID_PARENT, service.id), type_=type_) as near:
                assert connected(near) == Established(expected, service.id)
                accepted, peer = listener.accept()
                with accepted:
                    assert peer.vm_id == vm.id
                    near.sock.sendall(b"from the guest")
                    assert accepted.recv(100) == b"from the guest"
                    accepted.sendall(b"from the host")
                    assert near.sock.recv(100) == b"from the host"
                    near.end()
                    assert accepted.recv(100) == b""


def test_a_guest_is_refused(vm: PartitionHandle, service: ServiceEntry) -> None:
    assert refused(begin_connect(vm.folder, (HV_GUID_PARENT, service.id))) == errno.ECONNREFUSED


def test_what_is_no_end_mark_is_refused(vm: PartitionHandle, service: ServiceEntry) -> None:
    reading, writing = os.pipe()
    address = HV_GUID_PARENT, service.id
    try:
        for descriptors in ([], [reading], [writing]):
            assert refused(begin_connect(vm.folder, address, descriptors=descriptors)) == errno.EINVAL
    finally:
        os.close(reading)
        os.close(writing)


def test_descriptors_that_nobody_asked_for_are_left_alone(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry
) -> None:
    """Without the flag the broker looks at none; with it, it takes one and no more."""
    reading, writing = os.pipe()
    with hvsock.create_server((HV_GUID_CHILDREN, service.id), partition=fabric.host.folder) as listener:
        address = HV_GUID_PARENT, service.id
        with begin_connect(vm.folder, address, flags=Flag.NONE, descriptors=[writing]) as near:
            accepted, _ = listener.accept()
            os.close(writing)
            assert os.read(reading, 1) == b"", "nobody has the other end any more"
            os.close(reading)
            accepted.close()
            assert near.sock.recv(1) == b""
        mark = os.eventfd(0)
        extra, other = os.pipe()
        with begin_connect(vm.folder, address, descriptors=[mark, other, other]) as near:
            assert connected(near).service_id == service.id
            accepted, _ = listener.accept()
            os.close(other)
            assert os.read(extra, 1) == b""
            os.eventfd_write(mark, 1)
            near.close()
            assert accepted.recv(1) == b""
            accepted.close()
        os.close(mark)
        os.close(extra)


def test_a_guest_waits_for_room_with_its_mark(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry
) -> None:
    """And a broker that ends meanwhile keeps nothing of it."""
    address = HV_GUID_PARENT, service.id
    with hvsock.create_server((HV_GUID_CHILDREN, service.id), backlog=0, partition=fabric.host.folder) as listener:
        with begin_connect(vm.folder, address) as first, begin_connect(vm.folder, address) as second:
            listener.accept()[0].close()
            assert connected(first) == Established(service_id=service.id)
            listener.accept()[0].close()
            assert connected(second) == Established(service_id=service.id)
        with begin_connect(vm.folder, address), begin_connect(vm.folder, address) as second:
            wait_until(lambda: client.call(fabric.host.folder, "status")["connecting"] == 1)
            fabric.restart()
            assert ended(second.sock)


@pytest.mark.parametrize("type_", TYPES)
def test_from_guest_to_guest(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry, type_: int
) -> None:
    """Each device has the other's end mark, and the accepting one says what its guest's socket has for options."""
    member = fabric.create_partition("member", group="g")
    with (
        FakeDevice(vm.folder) as device,
        begin_connect(member.folder, (vm.id, service.id), type_=type_) as near,
        device.take_end() as far,
    ):
        assert far.peer_mark is not None
        far.establish(Flag.CONNECTED_SUSPEND)
        data, descriptors, _, _ = socket.recv_fds(near.sock, messages.ESTABLISHED_BYTES, 1)
        assert Established.unpack(data) == Established(Flag.CONNECTED_SUSPEND)
        os.close(*descriptors)
        near.sock.sendall(b"hello")
        assert far.sock.recv(100) == b"hello"
        assert not far.peer_mark.is_set()
        near.end()
        assert far.sock.recv(100) == b""
        assert far.peer_mark.is_set()
