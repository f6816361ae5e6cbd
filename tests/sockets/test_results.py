"""The table of results (design, section 3) as a program meets it at its sockets."""

from __future__ import annotations

import errno
import sys

import pytest

assert sys.platform == "linux"

from hvsock import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.fabric.embedded import PartitionHandle
from tests.sockets.support import World, fails, so_error, writable


@pytest.fixture(params=["waiting", "not waiting"], autouse=True)
def blocking(request: pytest.FixtureRequest) -> bool:
    """Every result comes from connect, and from SO_ERROR where connect does not wait."""
    return bool(request.param == "waiting")


def outcome(world: World, source: PartitionHandle, vm_id: str, service_id: str, blocking: bool) -> int:
    """The errno of a connect, 0 for success."""
    with world.fresh(source, blocking=blocking) as sock:
        code = sock.connect_ex((vm_id, service_id))
        if blocking:
            return code
        assert code == errno.EINPROGRESS
        assert writable(sock)
        return so_error(sock)


def test_nothing_listens(world: World, blocking: bool) -> None:
    service_id = world.service()
    for source, vm_id in ((world.host, world.vm.id), (world.vm, HV_GUID_PARENT), (world.host, HV_GUID_LOOPBACK)):
        assert outcome(world, source, vm_id, service_id, blocking) == errno.ECONNREFUSED


def test_nothing_that_listens_takes_it(world: World, blocking: bool) -> None:
    service_id = world.service()
    with world.listener(world.host, HV_GUID_LOOPBACK, service_id):
        assert outcome(world, world.vm, HV_GUID_PARENT, service_id, blocking) == errno.ECONNREFUSED


def test_not_registered(world: World, blocking: bool) -> None:
    service_id = ServiceId.new()
    with world.listener(world.vm, HV_GUID_WILDCARD, service_id):
        assert outcome(world, world.host, world.vm.id, service_id, blocking) == errno.EACCES
    assert outcome(world, world.vm, HV_GUID_PARENT, service_id, blocking) == errno.ECONNREFUSED


def test_not_registered_loopback(world: World, blocking: bool) -> None:
    service_id = ServiceId.new()
    for place in (world.host, world.vm, world.container):
        with world.listener(place, HV_GUID_LOOPBACK, service_id):
            assert outcome(world, place, HV_GUID_LOOPBACK, service_id, blocking) == 0


@pytest.mark.parametrize("vm_id", [HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_BROADCAST])
@pytest.mark.parametrize("place", ["host", "vm", "container"])
def test_no_destinations(world: World, blocking: bool, vm_id: str, place: str) -> None:
    source = getattr(world, place)
    assert outcome(world, source, vm_id, world.service(), blocking) == errno.EADDRNOTAVAIL


@pytest.mark.parametrize(
    ("place", "vm_id"), [("host", HV_GUID_PARENT), ("host", HV_GUID_SILOHOST), ("vm", HV_GUID_SILOHOST)]
)
def test_words_that_lead_nowhere(world: World, blocking: bool, vm_id: str, place: str) -> None:
    source = getattr(world, place)
    assert outcome(world, source, vm_id, world.service(), blocking) == errno.EADDRNOTAVAIL


def test_guests_do_not_reach_each_other(world: World, blocking: bool) -> None:
    service_id = world.service()
    with world.listener(world.stranger, HV_GUID_WILDCARD, service_id):
        for vm_id in (world.stranger.id, VmId.new()):
            assert outcome(world, world.vm, vm_id, service_id, blocking) == errno.EHOSTUNREACH
    with world.listener(world.member, HV_GUID_WILDCARD, service_id):
        assert outcome(world, world.vm, world.member.id, service_id, blocking) == 0


def test_disabled(world: World, blocking: bool) -> None:
    service_id = world.service()
    registry = world.fabric.registry
    with (
        world.listener(world.host, HV_GUID_CHILDREN, service_id) as listener,
        world.listener(world.vm, HV_GUID_WILDCARD, service_id),
    ):
        registry.set_enabled(service_id, False)
        assert outcome(world, world.vm, HV_GUID_PARENT, service_id, blocking) == errno.ECONNREFUSED
        assert outcome(world, world.host, world.vm.id, service_id, blocking) == errno.EINVAL
        with fails(errno.EINVAL):
            listener.listen()
        registry.set_enabled(service_id, True)
        assert outcome(world, world.vm, HV_GUID_PARENT, service_id, blocking) == 0
        assert outcome(world, world.host, world.vm.id, service_id, blocking) == 0


def test_the_most_specific_listener_takes_it(world: World, blocking: bool) -> None:
    service_id = world.service()
    with (
        world.listener(world.host, HV_GUID_WILDCARD, service_id) as anyone,
        world.listener(world.host, HV_GUID_CHILDREN, service_id) as children,
        world.listener(world.host, world.vm.id, service_id) as the_vm,
    ):
        for source, vm_id, listener in (
            (world.vm, HV_GUID_PARENT, the_vm),
            (world.stranger, HV_GUID_PARENT, children),
            (world.host, HV_GUID_LOOPBACK, anyone),
        ):
            assert outcome(world, source, vm_id, service_id, blocking) == 0
            listener.accept()[0].close()
