"""Pause, reboot, and the end of a guest, its front end, its device or the broker, at once and at any moment."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import ServiceId
from hvsock.fabric import client, paths
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry import Registry, ServiceEntry
from hvsock.testing import leak_check
from hvsock.virtio.packet import HEADER_BYTES, SEQPACKET, STREAM
from hvsock.virtio.session import RX, TX
from hvsock.virtio.virtqueue import WRITE
from tests.cli.helpers import broker, ended, told_until_it_ends
from tests.device.conftest import PORT
from tests.device.devices import DeviceThread, device_process, guest_of
from tests.device.ends import Types, accept, connect, from_guest, from_host, listen
from tests.device.guest import PATIENCE_SECONDS, Guest, GuestSocket
from tests.fabric.peers import fails_with
from tests.waiting import wait_until

TYPES = [
    pytest.param((socket.SOCK_STREAM, STREAM), id="stream"),
    pytest.param((socket.SOCK_SEQPACKET, SEQPACKET), id="seqpacket"),
]


def works(near: hvsock.socket, far: GuestSocket) -> None:
    """Bytes go both ways."""
    near.sendall(b"from the host")
    assert far.receive() == b"from the host"
    far.send(b"from the guest")
    assert near.recv(100) == b"from the guest"


def is_reset(near: hvsock.socket) -> None:
    """The connection ends, and not gracefully."""
    with pytest.raises(ConnectionResetError):
        near.recv(100)


def is_refused(pending: hvsock.socket) -> None:
    """The connect under way is refused."""
    assert select.select([], [pending], [], PATIENCE_SECONDS)[1]
    assert pending.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR) == errno.ECONNREFUSED


# -- pause


@pytest.mark.parametrize("survives", [1, 0])
@pytest.mark.parametrize("begun_by", ["guest", "host"])
def test_a_pause(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, begun_by: str, survives: int
) -> None:
    """HVSOCKET_CONNECTED_SUSPEND counts on the connecting socket, and on the listener for what guests begin."""
    guest.listen(PORT)
    with contextlib.ExitStack() as stack:
        if begun_by == "guest":
            with listen(fabric, demo.id, HVSOCKET_CONNECTED_SUSPEND=survives) as listener:
                far = guest.connect(PORT)
                near = stack.enter_context(accept(listener))
        else:
            near = stack.enter_context(connect(fabric, vm, demo.id, HVSOCKET_CONNECTED_SUSPEND=survives))
            far = guest.accept(PORT)
        near.sendall(b"before")
        assert far.receive() == b"before"
        guest.pause()
        if survives:
            near.sendall(b"meanwhile")
            guest.resume()
            assert far.receive() == b"meanwhile"
            works(near, far)
        else:
            is_reset(near)
            guest.resume()
            far.wait_for_reset()
        with from_host(fabric, vm, guest, demo) as ends:
            works(*ends)


def test_connects_during_a_pause(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, device: DeviceThread
) -> None:
    """They wait for the guest, as long as their time-out says."""
    with from_host(fabric, vm, guest, demo) as ends:
        works(*ends)
    guest.pause()
    wait_until(lambda: device.report()["driver"] == "paused")
    with fails_with(errno.ETIMEDOUT, "the guest did not answer"):
        connect(fabric, vm, demo.id, HVSOCKET_CONNECT_TIMEOUT=100)
    with hvsock.socket(partition=fabric.host.folder) as near:
        near.setblocking(False)
        assert near.connect_ex((vm.id, demo.id)) == errno.EINPROGRESS
        wait_until(lambda: device.report()["connections"])
        guest.resume()
        far = guest.accept(PORT)
        near.settimeout(PATIENCE_SECONDS)
        works(near, far)


# -- reboot


def test_a_reboot(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, demo: ServiceEntry, device: DeviceThread
) -> None:
    """Connections are reset, those that would survive a pause too; the host's listeners stay."""
    with listen(fabric, demo.id, HVSOCKET_CONNECTED_SUSPEND=1) as listener:
        guest.connect(PORT)
        with accept(listener) as survivor, from_host(fabric, vm, guest, demo) as (near, _):
            guest.reboot()
            is_reset(survivor)
            is_reset(near)
        assert not device.report()["connections"]
        far = guest.connect(PORT)
        with accept(listener) as again:
            works(again, far)
    with from_host(fabric, vm, guest, demo) as ends:
        works(*ends)


def test_a_broken_guest(
    fabric: EmbeddedFabric,
    guest: Guest,
    demo: ServiceEntry,
    device: DeviceThread,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its driver is stopped, its connections are reset, and the front end is told; a reboot mends all of it."""
    with from_guest(fabric, guest, demo) as (near, far):
        works(near, far)
        with guest.changed:
            guest.driver.tx.write_descriptor(0, 1 << 60, 100)
            guest.driver.tx.offer(0)
            guest.front_end.kick(TX)
        is_reset(near)
        for queue in (RX, TX):
            assert guest.front_end.wait_err(queue, PATIENCE_SECONDS)
    assert device.report()["driver"] == "down"
    assert "the guest's driver is stopped until it resets the device" in caplog.text
    guest.reboot()
    with from_guest(fabric, guest, demo) as ends:
        works(*ends)


def test_a_guest_whose_receive_buffers_are_broken(
    fabric: EmbeddedFabric, vm: PartitionHandle, device: DeviceThread, demo: ServiceEntry
) -> None:
    with device.guest(boot=False) as guest:
        with guest.changed:
            guest.front_end.start()
            guest.driver.rx.write_descriptor(0, 0, HEADER_BYTES - 1, WRITE)
            guest.driver.rx.offer(0)
        with fails_with(errno.ECONNREFUSED, "the guest's sockets were reset"):
            connect(fabric, vm, demo.id)
        assert guest.front_end.wait_err(RX, PATIENCE_SECONDS)
        guest.reboot()
        with from_host(fabric, vm, guest, demo) as ends:
            works(*ends)


# -- ends


@pytest.mark.parametrize("types", TYPES)
def test_the_front_end_is_gone(
    fabric: EmbeddedFabric, vm: PartitionHandle, device: DeviceThread, demo: ServiceEntry, types: Types
) -> None:
    """What is established is reset, what is pending refused; the next VM finds the device ready."""
    with device.guest() as guest, listen(fabric, demo.id, types[0]) as listener:
        guest.connect(PORT, type_=types[1])
        with accept(listener) as first, from_host(fabric, vm, guest, demo, types) as (second, _):
            guest.ignores = True
            with hvsock.socket(type=types[0], partition=fabric.host.folder) as pending:
                pending.setblocking(False)
                assert pending.connect_ex((vm.id, demo.id)) == errno.EINPROGRESS
                wait_until(lambda: device.report()["connections"] == 3)
                guest.die()
                is_reset(first)
                is_reset(second)
                is_refused(pending)
        with device.guest() as next_guest:
            far = next_guest.connect(PORT, type_=types[1])
            with accept(listener) as near:
                near.send(b"hello")
                assert far.receive() == b"hello"


@pytest.mark.parametrize("types", TYPES)
def test_the_device_is_killed(
    fabric: EmbeddedFabric, vm: PartitionHandle, demo: ServiceEntry, types: Types, tmp_path: Path
) -> None:
    """No end of stream looks like a clean one, and nobody waits; the next device serves the next guest."""
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            process = stack.enter_context(device_process(fabric, str(tmp_path)))
            guest = stack.enter_context(guest_of(str(tmp_path)))
            listener = stack.enter_context(listen(fabric, demo.id, types[0]))
            far = guest.connect(PORT, type_=types[1])
            first = stack.enter_context(accept(listener))
            second, _ = stack.enter_context(from_host(fabric, vm, guest, demo, types))
            far.send(b"last words")
            assert first.recv(100) == b"last words"
            guest.ignores = True
            pending = stack.enter_context(hvsock.socket(type=types[0], partition=fabric.host.folder))
            pending.setblocking(False)
            assert pending.connect_ex((vm.id, demo.id)) == errno.EINPROGRESS
            process.kill()
            is_reset(first)
            is_reset(second)
            is_refused(pending)
            with fails_with(errno.ECONNREFUSED):
                connect(fabric, vm, demo.id, types[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_device_is_told_to_end(
    fabric: EmbeddedFabric, vm: PartitionHandle, demo: ServiceEntry, tmp_path: Path, number: signal.Signals
) -> None:
    """Its connections end as a reset, and its sockets' names go."""
    with (
        device_process(fabric, str(tmp_path)) as process,
        guest_of(str(tmp_path)) as guest,
        from_guest(fabric, guest, demo) as (near, _),
    ):
        process.send_signal(number)
        is_reset(near)
        told_until_it_ends(process, number)  # one more does no harm
        assert ended(process) == (0, b"", b"")
    assert os.listdir(tmp_path) == []


def test_the_broker_is_killed(tmp_path: Path) -> None:
    """Connections go on; the next broker finds the device's listener, and the device finds the next broker."""
    folder = str(tmp_path / "fabric")
    with contextlib.ExitStack() as stack:
        first_broker = stack.enter_context(broker(folder))
        host = paths.host_folder(folder)
        with Registry(str(tmp_path / "fabric" / "registry")) as registry:
            service = registry.register("Demo", ServiceId.from_port(PORT))
        made = client.call(host, "partition.create", name="vm", kind="vm")
        fabric = FabricOf(folder, host)
        process = stack.enter_context(device_process(fabric, str(tmp_path)))
        guest = stack.enter_context(guest_of(str(tmp_path)))
        vm = PartitionHandle("vm", made["id"], made["folder"])
        near, far = stack.enter_context(from_guest(fabric, guest, service))
        first_broker.kill()
        first_broker.wait()
        works(near, far)
        with pytest.raises(ConnectionRefusedError):
            guest.connect(PORT)
        stack.enter_context(broker(folder))
        for ends in (from_guest(fabric, guest, service), from_host(fabric, vm, guest, service)):
            with ends as found:
                works(*found)
        works(near, far)
        assert process.poll() is None


class FabricOf(EmbeddedFabric):
    """The fabric of a broker in another process."""

    def __init__(self, folder: str, host: str) -> None:
        self.folder = folder
        self.host = PartitionHandle("host", hvsock.HV_GUID_ZERO, host)


def test_a_vm_has_one_device(fabric: EmbeddedFabric, vm: PartitionHandle, device: DeviceThread) -> None:
    with fails_with(errno.EADDRINUSE):
        DeviceThread(fabric, vm)


def test_nothing_is_left(fabric: EmbeddedFabric, vm: PartitionHandle, demo: ServiceEntry) -> None:
    """Whatever was under way when the device was closed: what it has open is closed."""
    steps: list[Callable[[Guest], object]] = [
        lambda guest: guest.begin_connect(PORT),
        lambda guest: guest.begin_connect(hvsock.constants.VSOCK_BROKER_PORT),
        lambda guest: guest.pause(),
    ]
    with leak_check(grace_seconds=PATIENCE_SECONDS), listen(fabric, demo.id) as listener:
        for step in steps:
            with DeviceThread(fabric, vm) as device, device.guest() as guest:
                guest.connect(PORT)
                accept(listener).close()
                step(guest)
                device.close()
