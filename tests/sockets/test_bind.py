"""bind and listen: the socket that takes the place of the own one."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    HV_GUID_ZERO,
    ServiceId,
)
from tests.sockets.support import FakeBroker, World, fails, pending


def test_the_descriptor_keeps_its_number_and_settings(world: World) -> None:
    with world.fresh() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 5))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3, 0))
        sock.set_inheritable(True)
        sock.settimeout(3)
        number = sock.fileno()
        sock.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
        assert sock.fileno() == number
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 60_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == struct.pack("ii", 1, 5)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == struct.pack("ll", 3, 0)
        assert sock.get_inheritable()
        assert sock.gettimeout() == 3
        assert not os.get_blocking(number)


@pytest.mark.parametrize("timeout", [None, 0, 2.5])
def test_blocking_or_not_is_kept(world: World, timeout: float | None) -> None:
    with world.fresh() as sock:
        sock.settimeout(timeout)
        sock.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
        assert sock.gettimeout() == timeout
        assert os.get_blocking(sock.fileno()) == (timeout is None)
        assert not sock.get_inheritable()


def test_service_zero_takes_a_fresh_one(world: World) -> None:
    with world.fresh() as one, world.fresh() as two:
        for sock in (one, two):
            sock.bind((HV_GUID_WILDCARD, HV_GUID_ZERO))
            assert sock.getsockname().vm_id == HV_GUID_WILDCARD
        assert len({one.getsockname(), two.getsockname(), HV_GUID_ZERO}) == 3


class TestErrors:
    def test_twice(self, world: World) -> None:
        with world.fresh() as sock:
            sock.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
            bound = sock.getsockname()
            with fails(errno.EINVAL):
                sock.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
            assert sock.getsockname() == bound

    @pytest.mark.parametrize("other_type", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
    def test_in_use(self, world: World, other_type: int) -> None:
        """Both types share one namespace."""
        listener, service_id = world.loopback()
        with listener, world.fresh(type=other_type) as sock:
            with fails(errno.EADDRINUSE):
                sock.bind((HV_GUID_LOOPBACK, service_id))
            listener.close()
            sock.bind((HV_GUID_LOOPBACK, service_id))

    def test_in_use_without_listen(self, world: World) -> None:
        service_id = world.service()
        with world.fresh() as one, world.fresh() as two:
            one.bind((HV_GUID_LOOPBACK, service_id))
            with fails(errno.EADDRINUSE):
                two.bind((HV_GUID_LOOPBACK, service_id))
            two.bind((HV_GUID_CHILDREN, service_id))

    @pytest.mark.parametrize(
        ("place", "vm_id"),
        [
            ("host", HV_GUID_PARENT),
            ("host", HV_GUID_SILOHOST),
            ("host", HV_GUID_BROADCAST),
            ("vm", HV_GUID_SILOHOST),
            ("vm", HV_GUID_BROADCAST),
            ("container", HV_GUID_BROADCAST),
            ("host", "5d9a1f5e-6a3b-4c0e-9d52-0c1c5f0a7b11"),
        ],
    )
    def test_no_address_here(self, world: World, place: str, vm_id: str) -> None:
        with world.fresh(getattr(world, place)) as sock, fails(errno.EADDRNOTAVAIL):
            sock.bind((vm_id, world.service()))

    @pytest.mark.parametrize("vm_id", [HV_GUID_WILDCARD, HV_GUID_CHILDREN])
    def test_not_registered(self, world: World, vm_id: str) -> None:
        with world.fresh() as sock, pytest.raises(PermissionError) as caught:
            sock.bind((vm_id, ServiceId.new()))
        assert caught.value.errno == errno.EACCES

    def test_guests_need_no_registration(self, world: World) -> None:
        with world.fresh(world.vm) as sock:
            sock.bind((HV_GUID_PARENT, ServiceId.new()))

    def test_connected(self, world: World) -> None:
        near, far = world.pair()
        with near, far:
            for sock in (near, far):
                with fails(errno.EINVAL):
                    sock.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
            near.sendall(b"unharmed")
            assert far.recv(10) == b"unharmed"

    def test_connecting(self, world: World) -> None:
        with pending(world) as (sock, _, _), fails(errno.EINVAL):
            sock.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))

    def test_no_broker(self, tmp_path: Path) -> None:
        with hvsock.socket(partition=str(tmp_path)) as sock, fails(errno.ENETUNREACH):
            sock.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))

    def test_a_socket_can_be_bound_after_a_refusal(self, world: World) -> None:
        with world.fresh() as sock:
            with pytest.raises(PermissionError):
                sock.bind((HV_GUID_CHILDREN, ServiceId.new()))
            sock.bind((HV_GUID_CHILDREN, world.service()))


class TestListen:
    def test_not_bound(self, world: World) -> None:
        with world.fresh() as sock, fails(errno.EINVAL):
            sock.listen()

    @pytest.mark.parametrize("backlog", [-5, 0, 1, 100_000])
    def test_backlogs(self, world: World, backlog: int) -> None:
        service_id = ServiceId.new()
        with world.fresh() as sock, world.fresh() as connector:
            sock.bind((HV_GUID_LOOPBACK, service_id))
            sock.listen(backlog)
            connector.connect((HV_GUID_LOOPBACK, service_id))

    def test_twice(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as connector:
            listener.listen(3)
            connector.connect((HV_GUID_LOOPBACK, service_id))

    @pytest.mark.parametrize("backlog", ["5", None, 1 << 40])
    def test_not_a_backlog(self, world: World, backlog: Any) -> None:
        with world.fresh() as sock:
            sock.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
            with pytest.raises((TypeError, OverflowError)):
                sock.listen(backlog)

    def test_bound_and_not_listening_refuses(self, world: World) -> None:
        service_id = ServiceId.new()
        with world.fresh() as sock, world.fresh() as connector:
            sock.bind((HV_GUID_LOOPBACK, service_id))
            with pytest.raises(ConnectionRefusedError):
                connector.connect((HV_GUID_LOOPBACK, service_id))

    def test_no_broker_any_more(self, fake: FakeBroker) -> None:
        with fake.listener() as listener:
            fake.close()
            with fails(errno.ENETUNREACH):
                listener.listen()

    def test_connecting_on_a_listener_is_an_error_and_harmless(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as connector:
            for _ in range(2):
                with fails(errno.EINVAL, errno.EISCONN):
                    listener.connect((HV_GUID_LOOPBACK, service_id))
            connector.connect((HV_GUID_LOOPBACK, service_id))
            accepted, _ = listener.accept()
            accepted.close()

    def test_the_other_listeners_live_when_one_is_closed(self, world: World) -> None:
        listener, service_id = world.loopback()
        listener.close()
        with world.listener(world.host, HV_GUID_LOOPBACK, service_id) as again, world.fresh() as connector:
            connector.connect((HV_GUID_LOOPBACK, service_id))
            assert select.select([again], [], [], 20)[0]
