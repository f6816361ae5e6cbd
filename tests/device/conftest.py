"""Fixtures of the device's tests: a fabric with a VM, its device in a thread, and its guest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
    from hvsock.registry import ServiceEntry
    from tests.device.devices import DeviceThread
    from tests.device.guest import Guest

PORT = 2761
"""The port of the service "Demo"."""


@pytest.fixture
def fabric() -> Iterator[EmbeddedFabric]:
    """A fabric with a broker in a thread."""
    from hvsock.fabric.embedded import EmbeddedFabric

    with EmbeddedFabric() as made:
        yield made


@pytest.fixture
def vm(fabric: EmbeddedFabric) -> PartitionHandle:
    """A VM in the group "g"."""
    return fabric.create_partition("vm", group="g")


@pytest.fixture
def demo(fabric: EmbeddedFabric) -> ServiceEntry:
    """The service "Demo", at PORT."""
    from hvsock.addresses import ServiceId

    return fabric.register("Demo", ServiceId.from_port(PORT))


@pytest.fixture
def device(fabric: EmbeddedFabric, vm: PartitionHandle) -> Iterator[DeviceThread]:
    """The VM's device."""
    from tests.device.devices import DeviceThread

    with DeviceThread(fabric, vm) as made:
        yield made


@pytest.fixture
def guest(device: DeviceThread) -> Iterator[Guest]:
    """The VM's guest, up."""
    with device.guest() as made:
        yield made
