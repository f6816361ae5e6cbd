"""Connects, binds and listens, as a broker decides them and hands them over."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

assert sys.platform == "linux"

import socket

import hvsock
from hvsock.addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    SERVICE_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.errors import StateError
from hvsock.fabric import client, messages
from hvsock.fabric.broker import clients, gates, handover, listeners, waiting
from hvsock.fabric.broker.broker import Broker
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.messages import Op, Request
from hvsock.registry import ServiceEntry
from hvsock.topology.sddl import parse_sddl
from tests.fabric.peers import Connector, control, ended, fails_with, start_connect, take
from tests.registry.processes import in_child
from tests.waiting import PATIENCE_SECONDS, in_reactor, wait_until

PARENT, LOOPBACK = HV_GUID_PARENT, HV_GUID_LOOPBACK


@pytest.fixture
def service(fabric: EmbeddedFabric) -> ServiceEntry:
    return fabric.register("Demo")


@pytest.fixture
def guest(fabric: EmbeddedFabric) -> PartitionHandle:
    return fabric.create_partition("web01")


def broker_of(fabric: EmbeddedFabric) -> Broker:
    """The broker in the thread."""
    assert fabric._broker is not None
    return fabric._broker


def status(fabric: EmbeddedFabric) -> dict[str, Any]:
    """The status, with services by name."""
    found: dict[str, Any] = client.call(fabric.host.folder, "status")
    found["services"] = {one["name"]: one for one in found["services"]}
    found["partitions"] = {one["name"]: one for one in found["partitions"]}
    return found


def demo(fabric: EmbeddedFabric) -> dict[str, Any]:
    """The counters of the service."""
    found: dict[str, Any] = status(fabric)["services"]["Demo"]
    return found


@pytest.fixture
def listener(fabric: EmbeddedFabric, service: ServiceEntry) -> Iterator[hvsock.socket]:
    """A listener of the host whose backlog takes one connection."""
    with hvsock.create_server(("any", service.id), backlog=0, partition=fabric.host.folder) as made:
        yield made


@pytest.fixture
def full(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry, listener: hvsock.socket
) -> Iterator[Connector]:
    """The connection that fills the backlog of `listener`."""
    with start_connect(guest.folder, (PARENT, service.id)) as made:
        assert made.settled() == 0
        yield made


# -- verdicts and counters


def test_refusals_are_told_and_counted_by_reason_and_stay_counted(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    host, unregistered = fabric.host.folder, ServiceId.new()
    cases = [
        (guest.folder, HV_GUID_WILDCARD, service.id, errno.EADDRNOTAVAIL),
        (guest.folder, HV_GUID_CHILDREN, service.id, errno.EADDRNOTAVAIL),
        (host, HV_GUID_BROADCAST, service.id, errno.EADDRNOTAVAIL),
        (host, PARENT, service.id, errno.EADDRNOTAVAIL),
        (guest.folder, VmId.new(), service.id, errno.EHOSTUNREACH),
        (guest.folder, PARENT, service.id, errno.ECONNREFUSED),
        (host, guest.id, service.id, errno.ECONNREFUSED),
        (host, guest.id, unregistered, errno.EACCES),
        (guest.folder, PARENT, unregistered, errno.ECONNREFUSED),
        (host, LOOPBACK, unregistered, errno.ECONNREFUSED),
    ]
    for folder, vm_id, service_id, code in cases:
        with start_connect(folder, (vm_id, service_id)) as connector:
            assert connector.settled() == code
    fabric.registry.set_enabled("Demo", False)
    for folder, code in ((host, errno.EINVAL), (guest.folder, errno.ECONNREFUSED)):
        with start_connect(folder, (LOOPBACK if folder == host else PARENT, service.id)) as connector:
            assert connector.settled() == code
    for _ in range(2):
        assert demo(fabric)["refused"] == {
            "not-a-destination": 4,
            "unreachable": 1,
            "no-listener": 2,
            "disabled": 2,
        }
        assert status(fabric)["services"]["(not registered)"]["refused"] == {"not-registered": 2, "no-listener": 1}
        fabric.restart()


def test_connections_are_counted_and_stay_counted(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    with hvsock.create_server(("any", service.id), partition=fabric.host.folder) as listener:
        connectors = [start_connect(guest.folder, (PARENT, service.id)) for _ in range(5)]
        assert {connector.settled() for connector in connectors} == {0}
        before = demo(fabric)
        assert (before["listeners"], before["open"], before["accepted"]) == (1, 5, 5)
        assert 0 < before["connect_microseconds_mean"] <= before["connect_microseconds_max"] < 5e6
        assert status(fabric)["undelivered"] == 5
        assert status(fabric)["partitions"]["web01"] == {
            "name": "web01",
            "id": guest.id,
            "kind": "vm",
            "parent": "host",
            "group": None,
            "cid": 3,
            "folder": guest.folder,
            "listeners": 0,
            "open": 5,
            "device": False,
        }
        accepted = [take(listener)[0] for _ in range(3)]
        wait_until(lambda: status(fabric)["undelivered"] == 2)
        fabric.restart()
        assert demo(fabric) == before
        for sock in accepted:
            sock.close()
        assert demo(fabric)["open"] == 2
        accepted = [take(listener)[0] for _ in range(2)]
        assert demo(fabric)["open"] == 2
        for sock in accepted:
            sock.close()
        for connector in connectors:
            connector.close()
        assert (demo(fabric)["open"], demo(fabric)["accepted"]) == (0, 5)
    assert demo(fabric)["listeners"] == 0


@pytest.mark.parametrize("type_", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_connection_carries_payload_alone(
    type_: int, fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    with (
        hvsock.create_server(("children", service.id), type=type_, partition=fabric.host.folder) as listener,
        start_connect(guest.folder, (PARENT, service.id), type_=type_) as connector,
    ):
        assert connector.settled() == 0
        connector.sock.send(b"first")
        accepted, courier = take(listener)
        with accepted:
            assert accepted.recv(100) == b"first"
            assert courier.token == connector.token
            assert courier.own == (guest.id, service.id)
            assert courier.peer == (guest.id, ServiceId.from_bytes_le(connector.token))
            accepted.send(b"back")
            connector.sock.setblocking(True)
            assert connector.sock.recv(100) == b"back"
        assert connector.sock.recv(100) == b""


def test_the_type_that_a_request_claims_is_the_sockets_own(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    """Else a listener for messages would get a stream."""
    with hvsock.create_server(
        ("any", service.id), type=socket.SOCK_SEQPACKET, partition=fabric.host.folder
    ) as listener:
        listener.setblocking(False)
        with control(guest.folder) as sock:
            address = hvsock.Address(PARENT, service.id)
            sock.sendall(Request(Op.CONNECT, address, socket.SOCK_SEQPACKET, number=2000).pack())
            assert messages.parse_reply_header(sock.recv(messages.REPLY_HEADER_BYTES))[0] == errno.EPROTO
            assert ended(sock)
        with pytest.raises(BlockingIOError):
            listener.accept()
        with start_connect(guest.folder, (PARENT, service.id)) as connector:
            assert connector.settled() == errno.EPROTOTYPE
    assert status(fabric)["bad_requests"] == 1


def test_a_bound_connector_shows_what_it_is_bound_to(fabric: EmbeddedFabric, service: ServiceEntry) -> None:
    with (
        hvsock.create_server(("loopback", service.id), partition=fabric.host.folder) as listener,
        hvsock.socket(partition=fabric.host.folder) as connector,
    ):
        connector.bind((HV_GUID_LOOPBACK, SERVICE_WILDCARD))
        connector.connect((LOOPBACK, service.id))
        accepted, peer = listener.accept()
        with accepted:
            assert peer == (LOOPBACK, connector.getsockname().service_id)


# -- a backlog that is full


def test_connects_wait_for_room_in_their_order(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    full: Connector,
) -> None:
    queue = []
    for _ in range(3):
        queue.append(start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000))
        wait_until(lambda: status(fabric)["connecting"] == len(queue))
    tokens = [full.token, *(connector.token for connector in queue)]
    for position, token in enumerate(tokens):
        assert [connector.outcome() for connector in queue[position:]] == [None] * (3 - position)
        accepted, courier = take(listener)
        accepted.close()
        assert courier.token == token
        if position < 3:
            assert queue[position].settled() == 0
    for connector in queue:
        connector.close()
    assert demo(fabric)["accepted"] == 4
    assert demo(fabric)["refused"] == {}
    assert len(broker_of(fabric).waiting) == 0


def test_a_wait_ends_with_the_connect_time_out(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry, full: Connector
) -> None:
    for milliseconds in (0, 50):
        start = time.monotonic()
        with start_connect(guest.folder, (PARENT, service.id), milliseconds=milliseconds) as connector:
            assert connector.settled() == errno.ETIMEDOUT
            assert time.monotonic() - start >= milliseconds / 1000
    assert demo(fabric)["refused"] == {"backlog-full": 2}


def test_a_time_out_has_a_bound(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    full: Connector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "HVSOCKET_CONNECT_TIMEOUT_MAX", 30)
    with start_connect(guest.folder, (PARENT, service.id), milliseconds=0xFFFFFFFF) as connector:
        assert connector.settled() == errno.ETIMEDOUT


def test_who_gives_up_waits_no_more(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    full: Connector,
) -> None:
    gone = start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000)
    wait_until(lambda: status(fabric)["connecting"] == 1)
    gone.close()
    wait_until(lambda: status(fabric)["connecting"] == 0)
    assert demo(fabric)["reset"] == {"cancelled": 1}
    with start_connect(guest.folder, (PARENT, service.id)) as connector:
        take(listener)[0].close()
        assert connector.settled() == 0
        accepted, courier = take(listener)
        accepted.close()
        assert courier.token == connector.token


def test_who_gave_up_with_the_last_half_of_a_request_waits_no_more(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry, full: Connector
) -> None:
    request = Request(
        Op.CONNECT, hvsock.Address(PARENT, service.id), socket.SOCK_STREAM, number=60_000, token=os.urandom(16)
    ).pack()
    with control(guest.folder) as sock:
        sock.sendall(request[:1000])
        wait_until(lambda: status(fabric)["connecting"] == 1)
        sock.sendall(request[1000:])
        sock.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: status(fabric)["connecting"] == 0)
    assert demo(fabric)["reset"] == {"cancelled": 1}


def test_a_backlog_that_a_killed_broker_filled_makes_room(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    full: Connector,
) -> None:
    fabric.restart()
    with start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000) as connector:
        assert connector.outcome(0.1) is None
        first, courier = take(listener)
        first.close()
        assert courier.token == full.token
        assert connector.settled() == 0
        take(listener)[0].close()


def test_many_queues_take_turns(
    fabric: EmbeddedFabric, guest: PartitionHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "QUEUES_PER_RETRY", 2)
    monkeypatch.setattr(waiting, "RETRY_SECONDS", 0.002)
    monkeypatch.setattr(waiting, "TRIES_PER_TURN", 2)
    service_ids = [fabric.register(f"Service {number}").id for number in range(5)]
    servers = [
        hvsock.create_server(("any", service_id), backlog=3, partition=fabric.host.folder)
        for service_id in service_ids
    ]
    queues = [
        [start_connect(guest.folder, (PARENT, service_id), milliseconds=60_000) for _ in range(10)]
        for service_id in service_ids
    ]
    wait_until(lambda: status(fabric)["connecting"] == 30)
    for server in servers:
        for _ in range(10):
            server.settimeout(PATIENCE_SECONDS)
            take(server)[0].close()
        server.close()
    for queue in queues:
        for connector in queue:
            assert connector.settled() == 0
            connector.close()


# -- what happens to those who wait


def test_when_the_listener_ends_they_are_refused(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    full: Connector,
) -> None:
    queue = [start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000) for _ in range(5)]
    wait_until(lambda: status(fabric)["connecting"] == 5)
    listener.close()
    assert {connector.settled() for connector in queue} == {errno.ECONNREFUSED}
    for connector in queue:
        connector.close()
    assert ended(full.sock)
    assert demo(fabric)["refused"] == {"no-listener": 5}
    assert demo(fabric)["reset"] == {"listener-gone": 1}


def test_when_the_listener_ends_a_less_specific_one_takes_over(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    host = fabric.host.folder
    with (
        hvsock.create_server(("any", service.id), partition=host) as general,
        hvsock.create_server((guest.id, service.id), backlog=0, partition=host) as special,
        start_connect(guest.folder, (PARENT, service.id)) as first,
    ):
        assert first.settled() == 0
        with start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000) as second:
            wait_until(lambda: status(fabric)["connecting"] == 1)
            special.close()
            assert second.settled() == 0
            accepted, courier = take(general)
            accepted.close()
            assert courier.token == second.token


def test_when_their_own_partition_is_removed_they_are_dropped(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    full: Connector,
) -> None:
    queue = [start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000) for _ in range(3)]
    wait_until(lambda: status(fabric)["connecting"] == 3)
    fabric.remove_partition("web01")
    assert {connector.settled() for connector in queue} == {-1}
    for connector in queue:
        connector.close()
    other = fabric.create_partition("web02")
    take(listener)[0].close()
    with start_connect(other.folder, (PARENT, service.id)) as connector:
        assert connector.settled() == 0
        take(listener)[0].close()
    assert status(fabric)["services"]["Demo"]["listeners"] == 1


def test_when_the_listeners_partition_is_removed_they_are_refused(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    host = fabric.host.folder
    with (
        hvsock.create_server(("any", service.id), backlog=0, partition=guest.folder),
        start_connect(host, (guest.id, service.id)) as first,
    ):
        assert first.settled() == 0
        with start_connect(host, (guest.id, service.id), milliseconds=60_000) as second:
            wait_until(lambda: status(fabric)["connecting"] == 1)
            fabric.remove_partition("web01")
            assert second.settled() == errno.EHOSTUNREACH
    assert status(fabric)["services"]["Demo"]["listeners"] == 0
    assert os.listdir(f"{fabric.folder}/listeners") == []


def test_when_the_service_is_disabled_they_are_refused(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry, full: Connector
) -> None:
    with start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000) as connector:
        wait_until(lambda: status(fabric)["connecting"] == 1)
        fabric.registry.set_enabled("Demo", False)
        assert connector.settled() == errno.ECONNREFUSED
    assert demo(fabric)["refused"] == {"disabled": 1}


# -- bounds


def test_undelivered_connections_of_a_partition_are_bounded(
    guest: PartitionHandle, service: ServiceEntry, fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker_of(fabric).undelivered._most = 2
    with hvsock.create_server(("any", service.id), backlog=100, partition=fabric.host.folder) as listener:
        connectors = [start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000) for _ in range(5)]
        wait_until(lambda: status(fabric)["undelivered"] == 2)
        assert sorted(str(connector.outcome()) for connector in connectors) == ["0", "0", "None", "None", "None"]
        for _ in connectors:
            take(listener)[0].close()
        for connector in connectors:
            assert connector.settled() == 0
            connector.close()
    wait_until(lambda: broker_of(fabric).undelivered.held(fabric.host.id) == 0)


def test_clients_of_a_partition_are_bounded_and_others_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gates, "MAX_CLIENTS_PER_PARTITION", 3)
    with EmbeddedFabric() as fabric:
        guest, other = fabric.create_partition("web01"), fabric.create_partition("web02")
        idle = [control(guest.folder) for _ in range(3)]
        wait_until(lambda: status(fabric)["connecting"] == 3)
        with control(guest.folder) as late:
            late.sendall(Request(Op.CALL, call={"method": "ping"}).pack())
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late.recv(100)
            assert client.call(other.folder, "ping")
            assert client.call(fabric.host.folder, "ping")
            idle.pop().close()
            late.settimeout(PATIENCE_SECONDS)
            assert messages.parse_reply_header(late.recv(messages.REPLY_HEADER_BYTES))[0] == 0
        for sock in idle:
            sock.close()


def test_listeners_of_a_partition_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_LISTENERS_PER_PARTITION", 2)
    with EmbeddedFabric() as fabric:
        guest, other = fabric.create_partition("web01"), fabric.create_partition("web02")
        bound = [hvsock.socket(partition=guest.folder) for _ in range(3)]
        for sock in bound[:2]:
            sock.bind((HV_GUID_WILDCARD, SERVICE_WILDCARD))
        with fails_with(errno.ENOBUFS, "short of resources"):
            bound[2].bind((HV_GUID_WILDCARD, SERVICE_WILDCARD))
        with hvsock.socket(partition=other.folder) as sock:
            sock.bind((HV_GUID_WILDCARD, SERVICE_WILDCARD))
        bound[0].close()
        bound[2].bind((HV_GUID_WILDCARD, SERVICE_WILDCARD))
        for sock in bound:
            sock.close()
        assert status(fabric)["services"]["(not registered)"]["refused"] == {"limit": 1}


# -- errors of the system


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EACCES])
def test_a_lack_of_descriptors_at_the_courier_is_waited_out(
    code: int,
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[int] = []
    original = handover.Handover._reach

    def short(self: handover.Handover, grant: Any) -> socket.socket:
        tries.append(1)
        if len(tries) < 4:
            raise OSError(code, os.strerror(code))
        return original(self, grant)

    monkeypatch.setattr(handover.Handover, "_reach", short)
    with start_connect(guest.folder, (PARENT, service.id)) as connector:
        assert connector.settled() == 0
        take(listener)[0].close()
    assert len(tries) == 4
    assert demo(fabric)["listeners"] == 1


@pytest.mark.parametrize("code", [errno.ETOOMANYREFS, errno.ENOBUFS, errno.EPIPE, errno.ECONNRESET])
def test_a_descriptor_that_cannot_be_sent_is_sent_later_and_once(
    code: int,
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EPIPE is an accepter that gave up on a courier, too: the listener may well be alive."""
    tries: list[int] = []
    original = socket.send_fds

    def short(sock: socket.socket, buffers: Any, fds: Any, *more: Any) -> Any:
        if sock.type == socket.SOCK_STREAM and len(buffers[0]) == messages.COURIER_BYTES:
            tries.append(1)
            if len(tries) < 4:
                raise OSError(code, os.strerror(code))
        return original(sock, buffers, fds, *more)

    with hvsock.create_server(("any", service.id), partition=fabric.host.folder) as listener:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "send_fds", short)
            with start_connect(guest.folder, (PARENT, service.id)) as connector:
                assert connector.settled() == 0
                connector.sock.send(b"payload")
                accepted, courier = take(listener)
                with accepted:
                    assert courier.token == connector.token
                    assert accepted.recv(100) == b"payload"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert len(tries) == 4
    assert (demo(fabric)["accepted"], demo(fabric)["open"], demo(fabric)["reset"]) == (1, 0, {})


def test_a_listener_whose_socket_was_shut_down_is_none(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    with hvsock.create_server(("any", service.id), partition=fabric.host.folder) as listener:
        socket.socket.shutdown(listener, socket.SHUT_RDWR)
        with start_connect(guest.folder, (PARENT, service.id)) as connector:
            assert connector.settled() == errno.ECONNREFUSED


def test_an_end_that_cannot_be_watched_for_harms_no_connection(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    reactor = broker_of(fabric).reactor
    original, refused = reactor.watch, [select.EPOLLRDHUP]

    def short(descriptor: int, events: int, handler: Callable[[int], None]) -> None:
        if events in refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(descriptor, events, handler)

    monkeypatch.setattr(reactor, "watch", short)
    with hvsock.create_server(("any", service.id), partition=fabric.host.folder) as listener:
        with start_connect(guest.folder, (PARENT, service.id)) as connector:
            assert connector.settled() == 0
            accepted, _ = take(listener)
            with accepted:
                connector.sock.send(b"x")
                assert accepted.recv(10) == b"x"
        assert status(fabric)["undelivered"] == 0
        refused.append(select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        with control(guest.folder) as idle:
            assert ended(idle)
        refused.clear()
        assert client.call(guest.folder, "ping")


def test_a_defect_in_a_connect_harms_it_alone(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def defect(*anything: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(broker_of(fabric)._rules, "connect", defect)
        with start_connect(guest.folder, (PARENT, service.id)) as connector:
            assert connector.settled() == -1
    assert "a defect of the broker" in caplog.text
    with start_connect(guest.folder, (PARENT, service.id)) as connector:
        assert connector.settled() == 0
        take(listener)[0].close()


def test_a_defect_while_others_wait_harms_one_alone(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    full: Connector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = [start_connect(guest.folder, (PARENT, service.id), milliseconds=60_000) for _ in range(2)]
    broker = broker_of(fabric)
    wait_until(lambda: in_reactor(broker.reactor, lambda: len(broker.waiting)) == 2)
    original, failures = handover.Handover._attempt, [1]

    def defect(self: handover.Handover) -> None:
        if failures:
            failures.pop()
            raise ZeroDivisionError
        original(self)

    monkeypatch.setattr(handover.Handover, "_attempt", defect)
    take(listener)[0].close()
    assert queue[0].settled() == -1
    assert queue[1].settled() == 0
    take(listener)[0].close()
    for connector in queue:
        connector.close()


def test_a_registry_that_cannot_be_read_leaves_the_services_as_they_were(
    fabric: EmbeddedFabric,
    guest: PartitionHandle,
    service: ServiceEntry,
    listener: hvsock.socket,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert client.call(guest.folder, "explain", vm="parent", service=service.id)["ok"]

    def damaged(*anything: object) -> None:
        raise StateError("the registry is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(broker_of(fabric).services._registry, "services", damaged)
        patch.setattr(broker_of(fabric).services._registry, "alias", damaged)
        os.utime(fabric.registry.path)  # else a file that has settled is not looked at again
        for service_id, outcome in ((service.id, 0), (ServiceId.from_port(5), errno.ECONNREFUSED)):
            with start_connect(guest.folder, (PARENT, service_id)) as connector:
                assert connector.settled() == outcome
    take(listener)[0].close()
    assert caplog.text.count("the services stay as they were") == 1


def test_the_default_time_out_of_a_program_is_not_the_brokers(
    guest: PartitionHandle, service: ServiceEntry, fabric: EmbeddedFabric
) -> None:
    socket.setdefaulttimeout(60)
    try:
        with (
            control(guest.folder),
            hvsock.create_server(("any", service.id), partition=fabric.host.folder) as listener,
            start_connect(guest.folder, (PARENT, service.id)) as connector,
        ):
            assert connector.settled() == 0
            take(listener)[0].close()
    finally:
        socket.setdefaulttimeout(None)


# -- binds and listens


def test_an_address_is_bound_once(fabric: EmbeddedFabric, service: ServiceEntry) -> None:
    def bound() -> hvsock.socket:
        sock = hvsock.socket(partition=fabric.host.folder)
        try:
            sock.bind((HV_GUID_WILDCARD, service.id))
        except BaseException:
            sock.close()
            raise
        return sock

    with bound():
        for _ in range(2):
            with fails_with(errno.EADDRINUSE, "bound in 'host' already"):
                bound()
            fabric.restart()
    bound().close()
    assert demo(fabric)["refused"] == {"in-use": 2}


def test_a_bind_that_the_rules_refuse(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    for folder, vm_id, service_id, code in (
        (fabric.host.folder, PARENT, service.id, errno.EADDRNOTAVAIL),
        (fabric.host.folder, HV_GUID_BROADCAST, SERVICE_WILDCARD, errno.EADDRNOTAVAIL),
        (fabric.host.folder, HV_GUID_WILDCARD, ServiceId.new(), errno.EACCES),
        (guest.folder, VmId.new(), service.id, errno.EADDRNOTAVAIL),
    ):
        with hvsock.socket(partition=folder) as sock, fails_with(code):
            sock.bind((vm_id, service_id))
    address = hvsock.Address(HV_GUID_WILDCARD, service.id)
    for type_ in (0, socket.SOCK_DGRAM, 0xFFFFFFFF):
        with pytest.raises(OSError, match="no socket type"):
            client.bind(fabric.host.folder, type_, address)
    assert status(fabric)["services"]["Demo"]["refused"] == {"not-bindable": 2, "bad-request": 3}


@pytest.mark.parametrize(("name", "value"), [("_SO_PEERGROUPS", 0x7FFF), ("_PEERGROUPS_BYTES", 1)])
def test_a_user_whose_groups_the_kernel_does_not_tell(
    fabric: EmbeddedFabric,
    service: ServiceEntry,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    name: str,
    value: int,
) -> None:
    """It is served, and denied what any group is: without such an option, and with too many groups."""
    if not (groups := os.getgroups()) and os.geteuid() == 0:
        os.setgroups([12_345])  # whoever is in none has not too many
        request.addfinalizer(lambda: os.setgroups(groups))

    def bind() -> None:
        with hvsock.socket(partition=fabric.host.folder) as sock:
            sock.bind((HV_GUID_WILDCARD, service.id))

    fabric.registry.change_settings(service.id, bind=parse_sddl("D:(D;;FA;;;S-1-22-2-4000000000)(A;;FA;;;WD)"))
    bind()
    monkeypatch.setattr(clients, name, value)
    with fails_with(errno.EACCES, "denies it"):
        bind()
    fabric.registry.change_settings(service.id, bind=parse_sddl("D:(A;;FA;;;BA)"))
    bind()


def test_a_fresh_id_is_reached_by_loopback(fabric: EmbeddedFabric) -> None:
    with hvsock.socket(partition=fabric.host.folder) as listener:
        listener.bind((HV_GUID_WILDCARD, SERVICE_WILDCARD))
        listener.listen()
        assert listener.getsockname().service_id != SERVICE_WILDCARD
        with hvsock.create_connection(
            ("loopback", listener.getsockname().service_id), partition=fabric.host.folder
        ):
            listener.accept()[0].close()


def test_a_fresh_id_for_a_vm_with_defaults_is_theirs_to_allow(
    fabric: EmbeddedFabric, guest: PartitionHandle
) -> None:
    fabric.registry.change_defaults(guest.id, bind=parse_sddl("D:P(D;;FA;;;WD)"))
    with hvsock.socket(partition=fabric.host.folder) as sock:
        with fails_with(errno.EACCES, "denies it"):
            sock.bind((guest.id, SERVICE_WILDCARD))
        fabric.registry.change_defaults(guest.id, bind=parse_sddl("D:P(A;;FA;;;WD)"))
        sock.bind((guest.id, SERVICE_WILDCARD))


def test_a_listen_needs_the_binding(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    binding = client.bind(fabric.host.folder, socket.SOCK_STREAM, hvsock.Address(HV_GUID_WILDCARD, service.id))
    try:
        for folder, token in ((guest.folder, binding.listener_id), (fabric.host.folder, os.urandom(16))):
            with fails_with(errno.EINVAL):
                client.listen(folder, token, 1)
        with monkeypatch.context() as patch:
            patch.setattr(listeners.Listeners, "_write", _no_space)
            with fails_with(errno.ENOBUFS, "No space left"):
                client.listen(fabric.host.folder, binding.listener_id, 1)
            with fails_with(errno.ENOBUFS, "No space left"):
                client.bind(fabric.host.folder, 1, hvsock.Address(HV_GUID_CHILDREN, service.id))
        fabric.registry.set_enabled("Demo", False)
        with fails_with(errno.EINVAL, "disabled"):
            client.listen(fabric.host.folder, binding.listener_id, 1)
        fabric.registry.set_enabled("Demo", True)
        client.listen(fabric.host.folder, binding.listener_id, 1)
    finally:
        os.close(binding.descriptor)


def _no_space(*anything: object, **more: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("code", [errno.ETOOMANYREFS, errno.EPIPE])
def test_a_bound_socket_that_cannot_be_sent_is_no_listener(
    code: int, fabric: EmbeddedFabric, service: ServiceEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*anything: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(socket, "send_fds", short)
        with fails_with(errno.ENETUNREACH if code == errno.EPIPE else errno.ENOBUFS):
            client.bind(fabric.host.folder, 1, hvsock.Address(HV_GUID_WILDCARD, service.id))
    assert os.listdir(f"{fabric.folder}/listeners") == []
    hvsock.create_server(("any", service.id), partition=fabric.host.folder).close()


# -- processes and namespaces


def test_a_forked_child_holds_nothing_of_the_broker(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    with hvsock.create_server(("any", service.id), partition=fabric.host.folder) as listener:
        connectors = [start_connect(guest.folder, (PARENT, service.id)) for _ in range(3)]
        assert {connector.settled() for connector in connectors} == {0}
        idle = control(guest.folder)

        def sockets() -> int:
            """How many sockets and event queues this process has."""
            links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
            targets = [os.readlink(link) for link in links if os.path.lexists(link)]
            fabric.close()
            return sum(target.startswith(("socket:", "anon_inode:[event")) for target in targets)

        # the three connectors, the idle one and the listener are the test's own
        assert in_child(sockets) == 5
        assert client.call(guest.folder, "ping")
        assert status(fabric)["undelivered"] == 3
        idle.close()
        for connector in connectors:
            take(listener)[0].close()
            connector.close()
        wait_until(lambda: status(fabric)["undelivered"] == 0)


def _in_another_network(act: Callable[[], Any]) -> Any:
    def there() -> Any:
        if ctypes.CDLL(None).unshare(0x40000000) != 0:  # CLONE_NEWNET
            return None
        return act()

    return in_child(there)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network namespace: run the tests as root")
def test_connections_from_another_network_namespace_are_open_while_they_are(
    fabric: EmbeddedFabric, guest: PartitionHandle, service: ServiceEntry
) -> None:
    with hvsock.create_server(("any", service.id), partition=fabric.host.folder) as listener:
        counts: list[int] = []

        def connect() -> list[int]:
            for _ in range(2):
                with hvsock.create_connection(("parent", service.id), 5, partition=guest.folder) as connection:
                    connection.recv(1)
            return [demo(fabric)["open"]]

        def accept() -> None:
            for count in (1, 1):
                accepted, _ = listener.accept()
                with accepted:
                    counts.append(demo(fabric)["open"] - count)
                    accepted.send(b"x")

        thread = threading.Thread(target=accept)
        thread.start()
        found = _in_another_network(connect)
        if found is None:
            pytest.skip("network namespaces are not allowed here: run the tests with CAP_SYS_ADMIN")
        thread.join()
        assert counts == [0, 0]
        assert demo(fabric)["accepted"] == 2
        assert demo(fabric)["open"] == 0
