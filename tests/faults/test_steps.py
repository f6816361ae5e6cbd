"""Kill -9 of the broker, the listener and the connector at each step; no step loses or mixes a byte."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hvsock
from hvsock.fabric import client, messages
from hvsock.fabric.messages import Established
from hvsock.registry import Registry
from hvsock.sockets.accepting import COURIER_SECONDS

assert sys.platform == "linux"

from tests.fabric.fake_device import DeviceEnd, FakeDevice, begin_connect, connected
from tests.support import SOAK
from tests.waiting import wait_until

from .processes import PATIENCE_SECONDS, BrokerProcess, child
from .steps import (
    BIND_STEPS,
    CONNECT_STEPS,
    LISTEN_STEPS,
    PARTITION_STEPS,
    REFUSAL_STEPS,
    REMOVAL_STEPS,
    WAIT_STEPS,
    wrap,
)

TYPES = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}
DELIVERED = list(CONNECT_STEPS)[list(CONNECT_STEPS).index("after the descriptor") :]


def with_types(steps: Iterable[str]) -> list[Any]:
    """Each step with each type of socket; in `make test` with one of them by turns."""
    made = [pytest.param(step, type_, id=f"{step}-{name}") for step in steps for name, type_ in TYPES.items()]
    return made if SOAK else [one for number, one in enumerate(made) if number % 4 in (0, 3)]


@dataclass
class World:
    """A broker with one service and one VM."""

    broker: BrokerProcess
    service_id: str
    guest: str
    guest_id: str

    def connector(self, type_: int = socket.SOCK_STREAM) -> hvsock.socket:
        """A socket in the VM with a connect under way; the broker may die of it at any time."""
        sock = hvsock.socket(type=type_, partition=self.guest)
        sock.setblocking(False)
        assert sock.connect_ex((hvsock.HV_GUID_PARENT, self.service_id)) == errno.EINPROGRESS
        return sock

    def connector_to_guest(self, type_: int = socket.SOCK_STREAM) -> hvsock.socket:
        """A socket on the host with a connect to the VM under way."""
        sock = hvsock.socket(type=type_, partition=self.broker.host)
        sock.setblocking(False)
        assert sock.connect_ex((self.guest_id, self.service_id)) == errno.EINPROGRESS
        return sock

    def listener(self, type_: int = socket.SOCK_STREAM, backlog: int = 128) -> hvsock.socket:
        """A listener on the host."""
        address = ("children", self.service_id)
        sock = hvsock.create_server(address, type=type_, backlog=backlog, partition=self.broker.host)
        sock.setblocking(False)
        return sock

    def counts(self) -> dict[str, Any]:
        """The counters of the service."""
        services = client.call(self.broker.host, "status")["services"]
        found: dict[str, Any] = next(one for one in services if one["id"] == self.service_id)
        return found


@contextlib.contextmanager
def _world(folder: Path, step: str | None = None, *, stop: bool = False) -> Iterator[World]:
    broker = BrokerProcess(str(folder / "fabric"), step, stop=stop)
    try:
        with Registry(os.path.join(broker.folder, "registry")) as registry:
            service = registry.register("Stepped", port_alias=7)
        vm = client.call(broker.host, "partition.create", name="vm", kind="vm")
        yield World(broker, service.id, vm["folder"], vm["id"])
    finally:
        broker.close()


def _readable(sock: hvsock.socket) -> bool:
    return bool(select.select([sock], [], [], PATIENCE_SECONDS)[0])


def _outcome(sock: hvsock.socket) -> int:
    assert select.select([], [sock], [], PATIENCE_SECONDS)[1], "the connect is still pending"
    error: int = sock.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR)
    return error


def _exchange(near: hvsock.socket, far: hvsock.socket) -> None:
    """The first bytes that each side sees are those that the other sent, and there are no more."""
    for sock in (near, far):
        sock.settimeout(PATIENCE_SECONDS)
    near.sendall(b"first words of the connector")
    assert far.recv(10_000) == b"first words of the connector"
    far.sendall(b"first words of the accepter")
    assert near.recv(10_000) == b"first words of the accepter"
    near.close()
    assert far.recv(10_000) == b""
    far.close()


def _check_service(world: World, listener: hvsock.socket, type_: int) -> None:
    """A new connection works on the listener that there is."""
    near = world.connector(type_)
    assert _readable(listener)
    far, _ = listener.accept()
    assert _outcome(near) == 0
    _exchange(near, far)


@pytest.mark.parametrize(("step", "type_"), with_types(CONNECT_STEPS))
def test_broker_is_killed_at_a_step_of_a_connect(tmp_path: Path, step: str, type_: int) -> None:
    """Before the descriptor is with the listener the connect is refused; from then on it is a connection.

    It is counted once; only a kill in the midst of counting may count it twice.
    """
    with _world(tmp_path, step) as world, world.listener(type_) as listener:
        with world.connector(type_) as near:
            assert world.broker.wait_for_end() == -signal.SIGKILL
            if step in DELIVERED:
                assert _readable(listener)
                far, peer = listener.accept()
                assert _outcome(near) == 0
                assert peer.service_id == near.getsockname().service_id
            else:
                with pytest.raises(BlockingIOError):
                    listener.accept()
                assert _outcome(near) == errno.ECONNREFUSED
            world.broker.start()
            counts = world.counts()
            assert counts["open"] == (step in DELIVERED)
            assert counts["accepted"] == (2 if step == "after it is counted" else step in DELIVERED)
            if step in DELIVERED:
                _exchange(near, far)
        _check_service(world, listener, type_)
        counted = counts["accepted"] + 1
        counts = world.counts()
        assert (counts["open"], counts["accepted"]) == (0, counted)


@pytest.mark.parametrize(
    ("step", "type_"), with_types(step for step in CONNECT_STEPS if step != "after the drain")
)
def test_broker_is_killed_at_a_step_of_a_connect_to_a_guest(tmp_path: Path, step: str, type_: int) -> None:
    """Until the descriptor is with the device the connect is refused; then the device decides."""
    with _world(tmp_path, step) as world, FakeDevice(world.guest) as device:
        with world.connector_to_guest(type_) as near:
            assert world.broker.wait_for_end() == -signal.SIGKILL
            if step in DELIVERED:
                with device.take_end() as far:
                    assert select.select([], [near], [], 0)[1] == []
                    far.establish()
                    assert _outcome(near) == 0
                    world.broker.start()
                    assert world.counts()["open"] == 1
                    _exchange_marked(near, far)
            else:
                assert _outcome(near) == errno.ECONNREFUSED
                world.broker.start()
        with world.connector_to_guest(type_) as near, device.take_end() as far:
            far.refuse()
            assert _outcome(near) == errno.ECONNREFUSED
        counts = world.counts()
        assert counts["accepted"] == (2 if step == "after it is counted" else step in DELIVERED) + 1
        assert counts["open"] == 0


@pytest.mark.parametrize("step", CONNECT_STEPS)
def test_broker_is_killed_at_a_step_of_a_guests_connect(tmp_path: Path, step: str) -> None:
    """What is delivered has its end mark, and nothing but what the device expects is ahead of the payload."""
    with _world(tmp_path, step) as world, world.listener() as listener:
        service_id = hvsock.ServiceId(world.service_id)
        address = hvsock.HV_GUID_PARENT, service_id
        with begin_connect(world.guest, address) as far:
            assert world.broker.wait_for_end() == -signal.SIGKILL
            if step in DELIVERED:
                assert _readable(listener)
                near, _ = listener.accept()
                assert connected(far) == Established(service_id=service_id)
                near.settimeout(PATIENCE_SECONDS)
                _exchange_marked(near, far)
            else:
                with pytest.raises(BlockingIOError):
                    listener.accept()
                assert select.select([], [far.sock], [], PATIENCE_SECONDS)[1]
                assert far.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
        world.broker.start()
        with begin_connect(world.guest, address) as far:
            assert _readable(listener)
            near, _ = listener.accept()
            assert connected(far) == Established(service_id=service_id)
            near.settimeout(PATIENCE_SECONDS)
            _exchange_marked(near, far)


def _exchange_marked(near: hvsock.socket, far: DeviceEnd) -> None:
    """Data both ways; the device's end without a mark is a reset."""
    near.settimeout(PATIENCE_SECONDS)
    with near:
        near.sendall(b"first words of the host")
        assert far.sock.recv(10_000) == b"first words of the host"
        far.sock.sendall(b"first words of the guest")
        assert near.recv(10_000) == b"first words of the guest"
        far.close()
        with pytest.raises(ConnectionResetError):
            near.recv(10_000)


DEVICE_STAGES = ("before it takes it", "taken", "told", "established", "marked")


@pytest.mark.parametrize("stage", DEVICE_STAGES)
def test_device_is_killed(tmp_path: Path, stage: str) -> None:
    """A pending connect is refused, a connection is reset unless it was marked, and another device may serve."""
    with _world(tmp_path) as world:

        def serve() -> None:
            with FakeDevice(world.guest) as device:
                os.write(writing, b"!")
                if stage == "before it takes it":
                    select.select([device.listener], [], [])
                    os.kill(os.getpid(), signal.SIGKILL)
                far = device.take_end()
                if stage == "told":
                    socket.send_fds(far.sock, [Established().pack()], [far.mark.fileno()])
                elif stage != "taken":
                    far.establish()
                    far.sock.sendall(b"last words")
                if stage == "marked":
                    far.mark.set()
                os.kill(os.getpid(), signal.SIGKILL)

        reading, writing = os.pipe()
        with child(serve) as pid:
            os.read(reading, 1)
            with world.connector_to_guest() as near:
                os.waitpid(pid, 0)
                if stage in ("established", "marked"):
                    assert _outcome(near) == 0
                    near.settimeout(PATIENCE_SECONDS)
                    assert near.recv(100) == b"last words"
                    if stage == "marked":
                        assert near.recv(100) == b""
                    else:
                        with pytest.raises(ConnectionResetError):
                            near.recv(100)
                else:
                    assert _outcome(near) == errno.ECONNREFUSED
        os.close(reading)
        os.close(writing)
        with FakeDevice(world.guest) as device, world.connector_to_guest() as near, device.take_end() as far:
            far.establish()
            assert _outcome(near) == 0
            _exchange_marked(near, far)


@pytest.mark.parametrize("step", REFUSAL_STEPS)
def test_broker_is_killed_at_a_refusal(tmp_path: Path, step: str) -> None:
    """The connect is refused in any case."""
    with _world(tmp_path, step) as world:
        with world.connector() as near:
            assert world.broker.wait_for_end() == -signal.SIGKILL
            assert _outcome(near) == errno.ECONNREFUSED
        world.broker.start()
        assert world.counts()["refused"] == ({"no-listener": 1} if step == "after the refusal" else {})


@pytest.mark.parametrize("step", WAIT_STEPS)
def test_broker_is_killed_while_a_connect_waits_for_room(tmp_path: Path, step: str) -> None:
    """The one that waits is refused, the one in the backlog is delivered, and the next one gets in."""
    with (
        _world(tmp_path, step) as world,
        world.listener(backlog=0) as listener,
        world.connector() as first,
        world.connector() as second,
    ):
        assert world.broker.wait_for_end() == -signal.SIGKILL
        assert _outcome(first) == 0
        assert _outcome(second) == errno.ECONNREFUSED
        world.broker.start()
        third = world.connector()
        far, peer = listener.accept()
        assert peer.service_id == first.getsockname().service_id
        _exchange(first, far)
        assert _outcome(third) == 0
        assert _readable(listener)
        _exchange(third, listener.accept()[0])


def test_an_accepter_gives_up_on_a_courier_of_a_broker_that_is_stopped(tmp_path: Path) -> None:
    """The broker that goes on finds its courier gone and the listener alive: it sends another one."""
    with _world(tmp_path, "after the courier", stop=True) as world, world.listener() as listener:
        with world.connector() as near:
            world.broker.wait_until_stopped()
            assert _readable(listener)
            started = time.monotonic()
            with pytest.raises(BlockingIOError):
                listener.accept()
            assert time.monotonic() - started >= COURIER_SECONDS
            world.broker.go_on()
            assert _readable(listener)
            far, peer = listener.accept()
            assert _outcome(near) == 0
            assert peer.service_id == near.getsockname().service_id
            _exchange(near, far)
        counts = world.counts()
        assert (counts["accepted"], counts["listeners"], counts["reset"]) == (1, 1, {})


def test_a_connection_of_a_broker_that_is_stopped_before_the_drain_is_reset(tmp_path: Path) -> None:
    """Its accepter cannot know whether the broker is going to drain payload, so the connection is given up."""
    with _world(tmp_path, "after the descriptor", stop=True) as world, world.listener() as listener:
        with world.connector() as near:
            world.broker.wait_until_stopped()
            assert _readable(listener)
            with pytest.raises(BlockingIOError):
                listener.accept()
            world.broker.go_on()
            assert _outcome(near) in (0, errno.ECONNREFUSED)
            near.settimeout(PATIENCE_SECONDS)
            with contextlib.suppress(OSError):
                assert near.recv(100) == b""
        _check_service(world, listener, socket.SOCK_STREAM)
        assert world.counts()["reset"] == {"listener-gone": 1}


@pytest.mark.parametrize("step", BIND_STEPS)
def test_broker_is_killed_at_a_step_of_a_bind(tmp_path: Path, step: str) -> None:
    """The bind fails or holds; either way the address is free again once the socket is closed."""
    with _world(tmp_path, step) as world:
        with hvsock.socket(partition=world.broker.host) as sock:
            with contextlib.suppress(OSError):
                sock.bind((hvsock.HV_GUID_CHILDREN, world.service_id))
            assert world.broker.wait_for_end() == -signal.SIGKILL
        world.broker.start()
        with world.listener() as listener:
            _check_service(world, listener, socket.SOCK_STREAM)


@pytest.mark.parametrize("step", LISTEN_STEPS)
def test_broker_is_killed_at_a_step_of_a_listen(tmp_path: Path, step: str) -> None:
    """The listen fails and can be made again; the binding is kept all the while."""
    with _world(tmp_path, step) as world, hvsock.socket(partition=world.broker.host) as sock:
        sock.bind((hvsock.HV_GUID_CHILDREN, world.service_id))
        with pytest.raises(OSError, match="broker"):
            sock.listen()
        assert world.broker.wait_for_end() == -signal.SIGKILL
        world.broker.start()
        sock.listen()
        _check_service(world, sock, socket.SOCK_STREAM)


@pytest.mark.parametrize("step", PARTITION_STEPS)
def test_broker_is_killed_at_a_step_of_a_new_partition(tmp_path: Path, step: str) -> None:
    """Afterwards the partition is there with its folder, or neither is, and making it again works."""
    with _world(tmp_path, step) as world, world.listener() as listener:
        with pytest.raises(hvsock.NoFabricError):
            client.call(world.broker.host, "partition.create", name="new", kind="vm")
        assert world.broker.wait_for_end() == -signal.SIGKILL
        world.broker.start()
        there = {one["name"]: one["folder"] for one in client.call(world.broker.host, "partition.list")}
        assert ("new" in there) == (step == "after the tree is saved")
        folders = set(os.listdir(os.path.join(world.broker.folder, "partitions")))
        assert folders == {os.path.basename(folder) for folder in there.values()}
        if "new" not in there:
            made = client.call(world.broker.host, "partition.create", name="new", kind="vm")
            there["new"] = made["folder"]
        with hvsock.socket(partition=there["new"]) as near:
            near.connect((hvsock.HV_GUID_PARENT, world.service_id))
            _exchange(near, listener.accept()[0])


@pytest.mark.parametrize("step", REMOVAL_STEPS)
def test_broker_is_killed_at_a_step_of_a_removal(tmp_path: Path, step: str) -> None:
    """Afterwards the partition is there with its listeners, or nothing of it is."""
    with (
        _world(tmp_path) as world,
        world.listener() as listener,
        hvsock.create_server(("any", world.service_id), partition=world.guest),
    ):
        world.broker.kill()
        world.broker.start(step)
        with pytest.raises(hvsock.NoFabricError):
            client.call(world.broker.host, "partition.remove", name="vm")
        assert world.broker.wait_for_end() == -signal.SIGKILL
        world.broker.start()
        there = [one["name"] for one in client.call(world.broker.host, "partition.list")]
        if step == "before the smaller tree is saved":
            assert there == ["host", "vm"]
            assert world.counts()["listeners"] == 2
            _check_service(world, listener, socket.SOCK_STREAM)
        else:
            assert there == ["host"]
            assert world.counts()["listeners"] == 1
            assert os.listdir(os.path.join(world.broker.folder, "partitions")) == ["host"]
            assert (
                len(os.listdir(os.path.join(world.broker.folder, "listeners"))) == 2
            )  # the host's, and its record


ACCEPT_STEPS = {
    "before the courier": lambda: wrap(socket.socket, "accept", "before"),
    "after the courier": lambda: wrap(socket.socket, "accept", "after"),
    "after a look at the descriptor": lambda: wrap(socket.socket, "recvmsg", "after"),
    "before the message is taken": lambda: wrap(socket.socket, "recv", "before"),
    "after the message is taken": lambda: wrap(socket.socket, "recv", "after"),
    "after DONE": lambda: wrap(socket.socket, "recv", "after", lambda data, *_: data == messages.DONE),
}
"""The steps of an accept, in their order."""


@pytest.mark.parametrize("step", ACCEPT_STEPS)
def test_accepter_is_killed_at_a_step_of_an_accept(tmp_path: Path, step: str) -> None:
    """The connection in its hands ends for the connector at once; other accepters of the listener go on."""
    with _world(tmp_path) as world, world.listener() as listener:

        def accept() -> None:
            ACCEPT_STEPS[step]()
            listener.setblocking(True)
            listener.accept()

        with child(accept) as pid, world.connector() as near:
            assert _outcome(near) == 0
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            if step == "before the courier":
                assert _readable(listener)
                _exchange(near, listener.accept()[0])
            else:
                near.settimeout(PATIENCE_SECONDS)
                with contextlib.suppress(ConnectionResetError):
                    assert near.recv(100) == b""
        _check_service(world, listener, socket.SOCK_STREAM)
        counts = world.counts()
        assert (counts["accepted"], counts["open"], counts["listeners"]) == (2, 0, 1)


def test_a_listener_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """Connects fill its backlog, wait, time out, or are served when it goes on."""
    with _world(tmp_path) as world, contextlib.ExitStack() as stack:
        reading, writing = os.pipe()

        def serve() -> None:
            with world.listener(backlog=1) as listener:
                listener.setblocking(True)
                os.write(writing, b"!")
                while True:
                    with listener.accept()[0] as far:
                        far.sendall(far.recv(100))

        with child(serve) as pid:
            os.read(reading, 1)
            os.kill(pid, signal.SIGSTOP)
            os.waitid(os.P_PID, pid, os.WSTOPPED)
            near = [stack.enter_context(world.connector()) for _ in range(4)]
            late = stack.enter_context(hvsock.socket(partition=world.guest))
            late.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, 50)
            with pytest.raises(TimeoutError):
                late.connect((hvsock.HV_GUID_PARENT, world.service_id))
            assert [sock.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR) for sock in near] == [0] * 4
            assert select.select([], near, [], 0)[1] == near[:2]
            os.kill(pid, signal.SIGCONT)
            for number, sock in enumerate(near):
                assert _outcome(sock) == 0
                sock.settimeout(PATIENCE_SECONDS)
                sock.sendall(f"number {number}".encode())
                assert sock.recv(100) == f"number {number}".encode()
        os.close(reading)
        os.close(writing)


def test_listener_is_killed_with_connections_in_its_backlog(tmp_path: Path) -> None:
    """They end at once for their connectors, the next connect is refused, and the address is free."""
    with _world(tmp_path) as world, contextlib.ExitStack() as stack:
        reading, writing = os.pipe()

        def listen() -> None:
            with world.listener():
                os.write(writing, b"!")
                signal.pause()

        with child(listen) as pid:
            os.read(reading, 1)
            waiting = [stack.enter_context(world.connector()) for _ in range(5)]
            assert [_outcome(sock) for sock in waiting] == [0] * 5
            os.kill(pid, signal.SIGKILL)
            for sock in waiting:
                assert _readable(sock)
                with contextlib.suppress(ConnectionResetError):
                    assert sock.recv(10) == b""
        os.close(reading)
        os.close(writing)
        with world.connector() as refused:
            assert _outcome(refused) == errno.ECONNREFUSED
        with world.listener() as listener:
            _check_service(world, listener, socket.SOCK_STREAM)
        status = client.call(world.broker.host, "status")
        counts = next(one for one in status["services"] if one["id"] == world.service_id)
        assert counts["reset"] == {"listener-gone": 5}
        assert counts["open"] == 0


def test_connector_is_killed_while_its_connect_waits(tmp_path: Path) -> None:
    """A connect that waits for a full backlog ends with its process; those behind it are served."""
    with _world(tmp_path) as world, contextlib.ExitStack() as stack:
        address = ("children", world.service_id)
        listener = stack.enter_context(hvsock.create_server(address, backlog=0, partition=world.broker.host))
        listener.setblocking(False)
        first = stack.enter_context(world.connector())
        assert _outcome(first) == 0

        def connect() -> None:
            with world.connector() as sock:
                select.select([], [sock], [])

        with child(connect) as pid:
            wait_until(lambda: client.call(world.broker.host, "status")["connecting"] >= 1)
            behind = stack.enter_context(world.connector())
            os.kill(pid, signal.SIGKILL)
        _exchange(first, listener.accept()[0])
        assert _outcome(behind) == 0
        assert _readable(listener)
        _exchange(behind, listener.accept()[0])


@pytest.mark.parametrize("stage", ["pending", "connected", "after payload"])
def test_connector_is_killed_once_it_has_asked(tmp_path: Path, stage: str) -> None:
    """The accepter gets what was sent, without a byte of the request, and the end."""
    with _world(tmp_path) as world, world.listener() as listener:

        def connect() -> None:
            sock = world.connector()
            if stage != "pending":
                sock.setblocking(True)
                _outcome(sock)
            if stage == "after payload":
                sock.sendall(b"last words")
            os.kill(os.getpid(), signal.SIGKILL)

        with child(connect) as pid:
            os.waitpid(pid, 0)
            assert _readable(listener)
            far, _ = listener.accept()
            with far:
                far.settimeout(PATIENCE_SECONDS)
                assert far.recv(100) == (b"last words" if stage == "after payload" else b"")
                assert far.recv(100) == b""
        _check_service(world, listener, socket.SOCK_STREAM)
        assert world.counts()["open"] == 0


@pytest.mark.parametrize("stage", ["before the request", "within the request"])
def test_connector_is_killed_before_it_has_asked(tmp_path: Path, stage: str) -> None:
    """A connection to a control socket that ends early is nothing to anybody."""
    with _world(tmp_path) as world, world.listener() as listener:

        def connect() -> None:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(os.path.join(world.guest, "stream"))
            if stage == "within the request":
                sock.send(b"HVS")
            os.kill(os.getpid(), signal.SIGKILL)

        with child(connect):
            _check_service(world, listener, socket.SOCK_STREAM)
