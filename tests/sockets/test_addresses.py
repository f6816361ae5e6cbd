"""Address tuples as CPython takes them, and the names that both ends of a connection show."""

from __future__ import annotations

import errno
import re
import sys
from typing import Any

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    HV_GUID_ZERO,
    Address,
    ServiceId,
    VmId,
)
from hvsock.fabric.embedded import PartitionHandle
from tests.sockets.support import World, fails

GUID = "00000000-0000-0000-0000-000000000000"


class TestErrors:
    """The texts are those of CPython's getsockaddrarg."""

    @pytest.fixture(params=["connect", "connect_ex", "bind", "sendto"])
    def call(self, request: pytest.FixtureRequest) -> Any:
        with hvsock.socket() as sock:
            method = getattr(sock, request.param)
            if request.param == "sendto":
                yield "sendto", lambda address: method(b"data", address)
            else:
                yield request.param.removesuffix("_ex"), method

    @pytest.mark.parametrize("address", [GUID, None, 7, [GUID, GUID], b"12"])
    def test_not_a_tuple(self, call: Any, address: object) -> None:
        name, method = call
        text = f"{name}(): AF_HYPERV address must be tuple, not {type(address).__name__}"
        with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
            method(address)

    @pytest.mark.parametrize("address", [(), (GUID,), (GUID, GUID, GUID), (1, 2), (GUID, 2761), (None, GUID)])
    def test_not_two_strings(self, call: Any, address: object) -> None:
        text = "AF_HYPERV address must be a str tuple (vm_id, service_id)"
        with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
            call[1](address)

    @pytest.mark.parametrize("text", ["", "00", "parent", GUID + "0", "{" + GUID + "}", GUID.replace("0", "g")])
    @pytest.mark.parametrize("half", ["vm_id", "service_id"])
    def test_not_a_guid(self, call: Any, half: str, text: str) -> None:
        name, method = call
        address = (text, GUID) if half == "vm_id" else (GUID, text)
        expected = f"{name}(): AF_HYPERV address {half} is not a valid UUID string"
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            method(address)

    def test_the_socket_can_be_used_after_it(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as sock:
            with pytest.raises(TypeError):
                sock.connect((1, 2))
            sock.connect((HV_GUID_LOOPBACK, service_id))


def test_any_case_will_do(world: World) -> None:
    listener, service_id = world.loopback()
    with listener, world.fresh() as sock:
        sock.connect((HV_GUID_LOOPBACK.upper(), service_id.upper()))
        assert sock.getpeername() == (HV_GUID_LOOPBACK, service_id)
        assert sock.getpeername()[0] == "E0E16197-DD56-4A10-9195-5EE7A155A838"


def test_a_tuple_of_another_kind_will_do(world: World) -> None:
    listener, service_id = world.loopback()
    with listener, world.fresh() as sock:
        sock.connect(Address(VmId(HV_GUID_LOOPBACK), service_id))


def connect(
    world: World,
    listens: PartitionHandle,
    bound: str,
    connects: PartitionHandle,
    destination: str,
    *,
    passthru: bool = False,
) -> tuple[ServiceId, Address, Address, Address, Address, Address]:
    """(service, the connector's own and peer, the accepted end's own and peer, what accept returned)."""
    service_id = world.service()
    with world.listener(listens, bound, service_id) as listener, world.fresh(connects) as connector:
        assert listener.getsockname() == (bound, service_id)
        if passthru:
            connector.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONTAINER_PASSTHRU, 1)
        connector.connect((destination, service_id))
        accepted, address = listener.accept()
        with accepted:
            own, peer = connector.getsockname(), connector.getpeername()
            far_own, far_peer = accepted.getsockname(), accepted.getpeername()
    assert all(isinstance(name, Address) for name in (own, peer, far_own, far_peer, address))
    return service_id, own, peer, far_own, far_peer, address


class TestNames:
    """getsockname and getpeername on both ends, as known from Windows."""

    def test_loopback(self, world: World) -> None:
        service, own, peer, far_own, far_peer, address = connect(
            world, world.host, HV_GUID_LOOPBACK, world.host, HV_GUID_LOOPBACK
        )
        assert own.vm_id == HV_GUID_CHILDREN
        assert own.service_id not in (service, HV_GUID_ZERO)
        assert peer == (HV_GUID_LOOPBACK, service)
        assert far_own == (HV_GUID_CHILDREN, service)
        assert far_peer == address == (HV_GUID_LOOPBACK, own.service_id)

    @pytest.mark.parametrize("bound", ["children", "wildcard", "id"])
    def test_guest_to_host(self, world: World, bound: str) -> None:
        vm_id = {"children": HV_GUID_CHILDREN, "wildcard": HV_GUID_WILDCARD, "id": world.vm.id}[bound]
        service, own, peer, far_own, far_peer, address = connect(
            world, world.host, vm_id, world.vm, HV_GUID_PARENT
        )
        assert peer == (HV_GUID_PARENT, service)
        assert own.vm_id == HV_GUID_PARENT
        assert far_own == (world.vm.id, service)
        assert far_peer == address == (world.vm.id, own.service_id)

    @pytest.mark.parametrize("bound", [HV_GUID_PARENT, HV_GUID_WILDCARD])
    def test_host_to_guest(self, world: World, bound: str) -> None:
        service, own, peer, far_own, far_peer, address = connect(world, world.vm, bound, world.host, world.vm.id)
        assert own.vm_id == world.vm.id
        assert peer == (world.vm.id, service)
        assert far_own == (HV_GUID_PARENT, service)
        assert far_peer == address == (HV_GUID_PARENT, own.service_id)

    def test_members_of_a_group(self, world: World) -> None:
        service, own, peer, far_own, far_peer, _ = connect(
            world, world.vm, HV_GUID_WILDCARD, world.member, world.vm.id
        )
        assert peer == (world.vm.id, service)
        assert far_own == (world.member.id, service)
        assert far_peer == (world.member.id, own.service_id)

    def test_container_to_its_vm(self, world: World) -> None:
        service, own, peer, _, far_peer, _ = connect(
            world, world.vm, HV_GUID_CHILDREN, world.in_vm, HV_GUID_PARENT
        )
        assert peer == (HV_GUID_PARENT, service)
        assert far_peer == (world.in_vm.id, own.service_id)

    def test_container_to_its_silo_host(self, world: World) -> None:
        service, own, peer, _, far_peer, _ = connect(
            world, world.host, HV_GUID_CHILDREN, world.container, HV_GUID_SILOHOST
        )
        assert peer == (HV_GUID_SILOHOST, service)
        assert far_peer == (world.container.id, own.service_id)

    def test_container_through_its_vm(self, world: World) -> None:
        service, own, peer, _, far_peer, _ = connect(
            world, world.host, HV_GUID_CHILDREN, world.in_vm, HV_GUID_PARENT, passthru=True
        )
        assert peer == (HV_GUID_PARENT, service)
        assert far_peer == (world.in_vm.id, own.service_id)

    def test_two_connectors_have_two_ids(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as one, world.fresh() as two:
            one.connect((HV_GUID_LOOPBACK, service_id))
            two.connect((HV_GUID_LOOPBACK, service_id))
            assert one.getsockname() != two.getsockname()

    def test_names_stay_after_the_peer_is_gone(self, world: World) -> None:
        near, far = world.pair()
        with near:
            names = near.getsockname(), near.getpeername()
            far.close()
            assert (near.getsockname(), near.getpeername()) == names

    def test_repr_shows_them(self, world: World) -> None:
        near, far = world.pair()
        with near, far:
            assert f"laddr={near.getsockname()}, raddr={near.getpeername()}" in repr(near)


class TestBoundConnectors:
    """Windows lets a connector bind first; WSL and go-winio do."""

    def test_the_peer_sees_the_bound_service(self, world: World) -> None:
        listener, service_id = world.loopback()
        bound = world.service()
        with listener, world.fresh() as connector:
            connector.bind((HV_GUID_LOOPBACK, bound))
            assert connector.getsockname() == (HV_GUID_LOOPBACK, bound)
            connector.connect((HV_GUID_LOOPBACK, service_id))
            assert connector.getsockname() == (HV_GUID_CHILDREN, bound)
            accepted, peer = listener.accept()
            accepted.close()
            assert peer == (HV_GUID_LOOPBACK, bound)

    def test_it_keeps_the_service_after_a_refusal(self, world: World) -> None:
        bound, service_id = world.service(), ServiceId.new()
        with world.fresh() as connector:
            connector.bind((HV_GUID_LOOPBACK, bound))
            with pytest.raises(ConnectionRefusedError):
                connector.connect((HV_GUID_LOOPBACK, service_id))
            assert connector.getsockname() == (HV_GUID_LOOPBACK, bound)
            with world.listener(world.host, HV_GUID_LOOPBACK, service_id) as listener:
                connector.connect((HV_GUID_LOOPBACK, service_id))
                accepted, peer = listener.accept()
                accepted.close()
                assert peer == (HV_GUID_LOOPBACK, bound)

    def test_wildcards_take_a_fresh_service(self, world: World) -> None:
        """As WSL binds, to (WILDCARD, WILDCARD); after a refusal it gets another one."""
        service_id = ServiceId.new()
        with world.fresh() as connector:
            connector.bind((HV_GUID_WILDCARD, HV_GUID_ZERO))
            first = connector.getsockname()
            assert first.service_id != HV_GUID_ZERO
            with pytest.raises(ConnectionRefusedError):
                connector.connect((HV_GUID_LOOPBACK, service_id))
            with world.listener(world.host, HV_GUID_LOOPBACK, service_id) as listener:
                connector.connect((HV_GUID_LOOPBACK, service_id))
                accepted, peer = listener.accept()
                accepted.close()
                assert peer.service_id == connector.getsockname().service_id

    def test_it_cannot_listen_once_connected(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as connector:
            connector.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
            connector.connect((HV_GUID_LOOPBACK, service_id))
            with fails(errno.EINVAL):
                connector.listen()


class TestServiceIdAsNumber:
    """Programs for TCP read the second half of an address as a number."""

    def test_template(self) -> None:
        assert int(ServiceId.from_port(2761)) == 2761

    def test_others(self) -> None:
        assert int(ServiceId("999e53d4-3d5c-4c3e-8779-bed06ec056e1")) == 0x999E53D4
