"""create_connection, create_server, socketpair, wait_for_service and resolve."""

from __future__ import annotations

import errno
import socket
import sys
import threading
import time

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import AF_HYPERV, HV_GUID_CHILDREN, HV_GUID_LOOPBACK, HV_GUID_PARENT, SOCK_SEQPACKET, SOCK_STREAM
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.sockets.patience import connect_patiently
from tests.sockets.support import QUIET_SECONDS, WAIT_SECONDS, FakeBroker, Job, World, fails, pending


class TestCreateConnection:
    @pytest.mark.parametrize("form", ["url", "pair", "names", "port"])
    def test_addresses(self, world: World, form: str) -> None:
        addresses: dict[str, str | tuple[str, str]]
        if form == "port":
            service_id = hvsock.ServiceId.from_port(2761)
            world.fabric.register("port 2761", service_id)
        else:
            service_id = world.service()
        addresses = {
            "url": f"hvsocket://parent/{service_id}",
            "pair": (HV_GUID_PARENT, service_id),
            "names": ("parent", f"service {service_id}"),
            "port": "hvsocket://parent/2761",
        }
        with (
            world.listener(world.host, HV_GUID_CHILDREN, service_id),
            hvsock.create_connection(addresses[form], partition=world.vm.folder) as sock,
        ):
            assert sock.getpeername() == (HV_GUID_PARENT, service_id)

    def test_a_vm_by_its_name(self, world: World) -> None:
        service_id = world.service()
        with (
            world.listener(world.vm, HV_GUID_PARENT, service_id),
            hvsock.create_connection(("vm", service_id), partition=world.host.folder) as sock,
        ):
            assert sock.getpeername() == (world.vm.id, service_id)

    @pytest.mark.parametrize("type_", [SOCK_STREAM, SOCK_SEQPACKET])
    @pytest.mark.parametrize("timeout", [None, 5])
    def test_type_and_time_out(self, world: World, type_: int, timeout: float | None) -> None:
        listener, service_id = world.loopback(type=type_)
        with (
            listener,
            hvsock.create_connection(
                ("loopback", service_id), timeout, type=type_, partition=world.host.folder
            ) as sock,
        ):
            assert sock.gettimeout() == timeout
            assert sock.type == type_

    def test_refused(self, world: World) -> None:
        with fails(errno.ECONNREFUSED):
            hvsock.create_connection(("loopback", hvsock.ServiceId.new()), partition=world.host.folder)

    def test_time_out(self, world: World) -> None:
        with pending(world) as (_, _, first), pytest.raises(TimeoutError):
            hvsock.create_connection(first.getpeername(), 0.03, partition=world.host.folder)

    @pytest.mark.parametrize("address", ["nonsense", "tcp://parent/1", "hvsocket://parent", ""])
    def test_no_address(self, address: str) -> None:
        with pytest.raises(hvsock.UsageError, match="not an address"):
            hvsock.create_connection(address, 1, retry=True)

    def test_no_such_name(self, world: World) -> None:
        with pytest.raises(hvsock.NotFoundError):
            hvsock.create_connection(("parent", "No Such Service"), partition=world.vm.folder)

    def test_no_broker_for_names(self, fake: FakeBroker) -> None:
        fake.close()
        with pytest.raises(hvsock.NoFabricError):
            hvsock.create_connection(("parent", "Some Service"), partition=fake.folder)

    def test_an_interrupt_leaves_nothing_open(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(hvsock.socket, "connect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            hvsock.create_connection(("loopback", hvsock.ServiceId.new()), partition=world.host.folder)


class TestRetry:
    def test_until_somebody_listens(self, world: World) -> None:
        service_id = hvsock.ServiceId.new()
        job = Job(
            lambda: hvsock.create_connection(
                ("loopback", service_id), WAIT_SECONDS, retry=True, partition=world.host.folder
            )
        )
        assert job.is_blocked()
        with world.listener(world.host, HV_GUID_LOOPBACK, service_id), job.result() as sock:
            assert sock.gettimeout() == WAIT_SECONDS

    def test_until_the_name_is_registered(self, world: World) -> None:
        name = f"Late {time.monotonic_ns()}"
        job = Job(
            lambda: hvsock.create_connection(("parent", name), WAIT_SECONDS, retry=True, partition=world.vm.folder)
        )
        assert job.is_blocked()
        entry = world.fabric.register(name)
        with world.listener(world.host, HV_GUID_CHILDREN, entry.id), job.result() as sock:
            assert sock.getpeername() == (HV_GUID_PARENT, entry.id)

    def test_until_there_is_a_fabric(self, tmp_path: object) -> None:
        folder = f"{tmp_path}/fabric"
        service_id = hvsock.ServiceId.new()
        job = Job(
            lambda: hvsock.create_connection(
                ("loopback", service_id), WAIT_SECONDS, retry=True, partition=f"{folder}/partitions/host"
            )
        )
        assert job.is_blocked()
        with (
            EmbeddedFabric(folder) as fabric,
            hvsock.create_server(("loopback", service_id), partition=fabric.host.folder),
        ):
            job.result().close()

    def test_until_there_is_room(self, world: World) -> None:
        with pending(world) as (_, listener, first):
            job = Job(
                lambda: hvsock.create_connection(
                    first.getpeername(), WAIT_SECONDS, retry=True, partition=world.host.folder
                )
            )
            assert job.is_blocked()
            for _ in range(2):
                listener.accept()[0].close()
            job.result().close()

    def test_the_last_error_counts(self, world: World) -> None:
        began = time.monotonic()
        with fails(errno.ECONNREFUSED):
            hvsock.create_connection(
                ("loopback", hvsock.ServiceId.new()), 0.3, retry=True, partition=world.host.folder
            )
        assert 0.29 < time.monotonic() - began < WAIT_SECONDS

    def test_a_last_try_that_had_no_time_left_tells_nothing(self) -> None:
        refused, late = ConnectionRefusedError(errno.ECONNREFUSED, "nothing listens"), TimeoutError("timed out")
        outcomes = iter((refused, late, late))

        class Socket(socket.socket):
            def connect(self, address: object, /) -> None:
                raise next(outcomes)

        target = hvsock.Address(HV_GUID_LOOPBACK, hvsock.ServiceId.new())
        for told in (refused, late):  # the first of all tries that has none is told of
            with pytest.raises(type(told)) as caught:
                connect_patiently(Socket, lambda: target, WAIT_SECONDS, retry=True)
            assert caught.value is told

    @pytest.mark.parametrize("vm_id", ["any", "children", "broadcast"])
    def test_not_what_waiting_cannot_mend(self, world: World, vm_id: str) -> None:
        with fails(errno.EADDRNOTAVAIL):
            hvsock.create_connection((vm_id, world.service()), retry=True, partition=world.host.folder)


class TestCreateServer:
    def test_by_name(self, world: World) -> None:
        entry = world.fabric.register(f"Served {time.monotonic_ns()}")
        address = f"hvsocket://children/{entry.name.replace(' ', '%20')}"
        with hvsock.create_server(address, partition=world.host.folder) as listener:
            assert listener.getsockname() == (HV_GUID_CHILDREN, entry.id)
            assert listener.gettimeout() is None

    @pytest.mark.parametrize("backlog", [0, 2])
    def test_backlog(self, world: World, backlog: int) -> None:
        listener, service_id = world.loopback(backlog=backlog)
        with listener:
            sockets = []
            for _ in range(backlog + 1):
                sockets.append(
                    hvsock.create_connection(("loopback", service_id), WAIT_SECONDS, partition=world.host.folder)
                )
            with pytest.raises(TimeoutError):
                hvsock.create_connection(("loopback", service_id), QUIET_SECONDS, partition=world.host.folder)
            for sock in sockets:
                sock.close()

    def test_errors_leave_nothing_open(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, fails(errno.EADDRINUSE):
            hvsock.create_server(("loopback", service_id), partition=world.host.folder)
        with fails(errno.EADDRNOTAVAIL):
            hvsock.create_server(("parent", service_id), partition=world.host.folder)
        with fails(errno.EACCES):
            hvsock.create_server(("any", hvsock.ServiceId.new()), partition=world.host.folder)
        with pytest.raises(hvsock.UsageError):
            hvsock.create_server("nonsense", partition=world.host.folder)


class TestSocketpair:
    @pytest.mark.parametrize("type_", [SOCK_STREAM, SOCK_SEQPACKET])
    def test_it_needs_no_broker(self, type_: int) -> None:
        near, far = hvsock.socketpair(type=type_)
        with near, far:
            assert near.type == far.type == type_
            near.sendall(b"data")
            assert far.recv(10) == b"data"
            far.sendall(b"answer")
            assert near.recv(10) == b"answer"

    def test_its_names_are_those_of_a_loopback_connection(self) -> None:
        near, far = hvsock.socketpair()
        with near, far:
            assert near.getsockname().vm_id == far.getsockname().vm_id == HV_GUID_CHILDREN
            assert near.getpeername() == (HV_GUID_LOOPBACK, far.getsockname().service_id)
            assert far.getpeername() == (HV_GUID_LOOPBACK, near.getsockname().service_id)

    @pytest.mark.parametrize("family", [None, AF_HYPERV, socket.AF_UNIX])
    def test_as_the_standard_function_is_called(self, family: int | None) -> None:
        for sock in hvsock.socketpair(family, socket.SOCK_STREAM, 0):
            sock.close()

    def test_errors(self) -> None:
        with fails(errno.EAFNOSUPPORT):
            hvsock.socketpair(socket.AF_INET)
        with fails(errno.ESOCKTNOSUPPORT):
            hvsock.socketpair(type=socket.SOCK_DGRAM)


class TestWaitForService:
    def test_at_once(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener:
            hvsock.wait_for_service(("loopback", service_id), 0, partition=world.host.folder)
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):  # it makes no connection
                listener.accept()

    def test_until_it_listens(self, world: World) -> None:
        service_id = world.service()
        job = Job(
            lambda: hvsock.wait_for_service(
                f"hvsocket://parent/{service_id}", WAIT_SECONDS, partition=world.vm.folder
            )
        )
        assert job.is_blocked()
        with world.listener(world.host, HV_GUID_CHILDREN, service_id):
            job.result()

    def test_without_a_limit(self, world: World) -> None:
        service_id = hvsock.ServiceId.new()
        found = threading.Event()

        def wait() -> None:
            hvsock.wait_for_service(("loopback", service_id), partition=world.host.folder)
            found.set()

        job = Job(wait)
        assert job.is_blocked()
        with world.listener(world.host, HV_GUID_LOOPBACK, service_id):
            job.result()
        assert found.is_set()

    @pytest.mark.parametrize(
        ("service", "missing"),
        [("No Such Service", "No Such Service"), ("8a7d0f52-3f0b-4b21-9f0e-51d2c7a6e413", "listens")],
    )
    def test_the_text_says_what_was_missing(self, world: World, service: str, missing: str) -> None:
        with pytest.raises(TimeoutError, match=f"not there after 0.02 s: .*{missing}") as caught:
            hvsock.wait_for_service(("loopback", service), 0.02, partition=world.host.folder)
        assert caught.value.errno == errno.ETIMEDOUT

    def test_no_broker(self, fake: FakeBroker) -> None:
        fake.close()
        with pytest.raises(TimeoutError, match="no broker answers"):
            hvsock.wait_for_service(("loopback", "1"), 0.02, partition=fake.folder)

    def test_no_address(self) -> None:
        with pytest.raises(hvsock.UsageError):
            hvsock.wait_for_service("nonsense", 1)
