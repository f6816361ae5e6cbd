"""Notices: devices are told, without traffic, which connections may not go on."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.addresses import VmId
from hvsock.fabric import client
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.messages import Notice, NoticeKind
from hvsock.registry import Registry, ServiceEntry
from tests.fabric.fake_device import DeviceEnd, FakeDevice
from tests.fabric.peers import start_connect
from tests.waiting import wait_until

QUIET_SECONDS = 0.7
"""Longer than the pause between two looks of the broker."""


@pytest.fixture
def vm(fabric: EmbeddedFabric) -> PartitionHandle:
    return fabric.create_partition("vm")


@pytest.fixture
def service(fabric: EmbeddedFabric) -> ServiceEntry:
    return fabric.registry.register("Demo", port_alias=7)


CHANGES: dict[str, Callable[[Registry, ServiceEntry, VmId], object]] = {
    "disabled": lambda registry, service, vm: registry.set_enabled(service.id, False),
    "disabled for the VM": lambda registry, service, vm: registry.set_enabled(service.id, False, vm_id=vm),
    "unregistered": lambda registry, service, vm: registry.unregister(service.id),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_service_that_ends(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry, change: str
) -> None:
    with FakeDevice(vm.folder) as device:
        CHANGES[change](fabric.registry, service, vm.id)
        assert device.take_notice() == Notice(NoticeKind.CANCEL_SERVICE, service.id)
        fabric.registry.register("Another one")
        assert device.quiet(QUIET_SECONDS), "it is told once"


def test_what_is_another_vms_affair(fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry) -> None:
    """Nor is a VM told for which the service is enabled in particular, nor of settings that end nothing."""
    other = fabric.create_partition("other")
    fabric.registry.set_enabled(service.id, True, vm_id=vm.id)
    with FakeDevice(vm.folder) as device, FakeDevice(other.folder) as told:
        fabric.registry.set_enabled(service.id, False)
        assert told.take_notice() == Notice(NoticeKind.CANCEL_SERVICE, service.id)
        assert device.quiet(QUIET_SECONDS)
        fabric.registry.set_enabled(service.id, True)
        fabric.registry.change_settings(service.id, wildcard_binds=False)
        assert device.quiet(QUIET_SECONDS)
        assert told.quiet()


def test_a_partition_that_is_removed(fabric: EmbeddedFabric, vm: PartitionHandle) -> None:
    with FakeDevice(vm.folder) as device:
        fabric.remove_partition("vm")
        assert device.take_notice() == Notice(NoticeKind.CANCEL_ALL)
        assert os.listdir(os.path.join(fabric.folder, "listeners")) == []


def test_notices_come_behind_what_was_handed_over(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry
) -> None:
    """So no connection slips through; and a device that is busy is told later."""
    with FakeDevice(vm.folder, backlog=0) as device:
        with start_connect(fabric.host.folder, (vm.id, service.id)) as near:
            wait_until(lambda: not device.quiet())
            fabric.registry.unregister(service.id)
            assert client.call(fabric.host.folder, "status")["services"]
            fabric.remove_partition("vm")
            with device.take_end() as far:
                far.establish()
                assert near.settled() == 0
        found = {device.take_notice(), device.take_notice()}
        assert found == {Notice(NoticeKind.CANCEL_SERVICE, service.id), Notice(NoticeKind.CANCEL_ALL)}
        wait_until(lambda: os.listdir(os.path.join(fabric.folder, "listeners")) == [])


def test_what_happened_without_a_broker(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with EmbeddedFabric(str(tmp_path)) as fabric:
            service = fabric.register("Demo")
            kept, removed = fabric.create_partition("kept"), fabric.create_partition("removed")
            device = stack.enter_context(FakeDevice(kept.folder))
            orphan = stack.enter_context(FakeDevice(removed.folder))
            fabric.registry.set_enabled(fabric.register("Off for another").id, False, vm_id=removed.id)
        with Registry(str(tmp_path / "registry")) as registry:
            registry.set_enabled(service.id, False)
        state = tmp_path / "state" / "partitions.json"  # as a broker leaves it that is killed in a removal
        value = json.loads(state.read_text())
        value["partitions"] = [one for one in value["partitions"] if one["name"] != "removed"]
        state.write_text(json.dumps(value))
        with EmbeddedFabric(str(tmp_path)):
            assert device.take_notice() == Notice(NoticeKind.CANCEL_SERVICE, service.id)
            assert orphan.take_notice() == Notice(NoticeKind.CANCEL_ALL)
            assert device.quiet(QUIET_SECONDS)
            assert len(os.listdir(tmp_path / "listeners")) == 2, (
                "the socket of the one that is kept, and its record"
            )


@pytest.mark.soak
def test_devices_that_are_gone_are_forgotten(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry
) -> None:
    """And the next one is told as the first was."""
    for enabled in (False, True):
        with FakeDevice(vm.folder) as device:
            fabric.registry.set_enabled(service.id, True)
            wait_until(lambda: client.call(vm.folder, "services"))
            fabric.registry.set_enabled(service.id, False)
            assert device.take_notice().service_id == service.id
        if enabled:
            fabric.registry.set_enabled(service.id, True)
        wait_until(lambda: os.listdir(os.path.join(fabric.folder, "listeners")) == [])


def test_a_connection_lives_until_its_device_resets_it(
    fabric: EmbeddedFabric, vm: PartitionHandle, service: ServiceEntry
) -> None:
    """What a device does with a notice, from end to end."""
    with FakeDevice(vm.folder) as device, start_connect(fabric.host.folder, (vm.id, service.id)) as near:
        far: DeviceEnd = device.take_end()
        far.establish()
        assert near.settled() == 0
        fabric.registry.set_enabled(service.id, False)
        notice = device.take_notice()
        assert far.courier is not None
        assert notice.service_id == far.courier.own.service_id
        far.close()
