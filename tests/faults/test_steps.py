"""Kill -9 of the broker, the listener and the connector at each step; no step loses or mixes a byte."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import hvsock
from hvsock.fabric import client
from hvsock.registry import Registry

assert sys.platform == "linux"

from .processes import PATIENCE_SECONDS, BrokerProcess, child
from .steps import BIND_STEPS, CONNECT_STEPS, LISTEN_STEPS, PARTITION_STEPS

TYPES = [pytest.param(socket.SOCK_STREAM, id="stream"), pytest.param(socket.SOCK_SEQPACKET, id="seqpacket")]
DELIVERED = list(CONNECT_STEPS)[list(CONNECT_STEPS).index("after the descriptor") :]


@dataclass
class World:
    """A broker with one service and one VM."""

    broker: BrokerProcess
    service_id: str
    guest: str

    def connector(self, type_: int = socket.SOCK_STREAM) -> hvsock.socket:
        """A socket in the VM with a connect under way; the broker may die of it at any time."""
        sock = hvsock.socket(type=type_, partition=self.guest)
        sock.setblocking(False)
        assert sock.connect_ex((hvsock.HV_GUID_PARENT, self.service_id)) == errno.EINPROGRESS
        return sock

    def listener(self, type_: int = socket.SOCK_STREAM) -> hvsock.socket:
        """A listener on the host."""
        sock = hvsock.create_server(("children", self.service_id), type=type_, partition=self.broker.host)
        sock.setblocking(False)
        return sock


@contextlib.contextmanager
def _world(folder: Path) -> Iterator[World]:
    broker = BrokerProcess(str(folder / "fabric"))
    try:
        with Registry(os.path.join(broker.folder, "registry")) as registry:
            service = registry.register("Stepped")
        guest = client.call(broker.host, "partition.create", name="vm", kind="vm")["folder"]
        yield World(broker, service.id, guest)
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


@pytest.mark.parametrize("type_", TYPES)
@pytest.mark.parametrize("step", CONNECT_STEPS)
def test_broker_is_killed_at_a_step_of_a_connect(tmp_path: Path, step: str, type_: int) -> None:
    """Before the descriptor is with the listener the connect is refused; from then on it is a connection."""
    with _world(tmp_path) as world, world.listener(type_) as listener:
        world.broker.kill()
        world.broker.start(step)
        with world.connector(type_) as near:
            assert world.broker.wait_for_end() == -signal.SIGKILL
            if step in DELIVERED:
                assert _readable(listener)
                far, peer = listener.accept()
                assert _outcome(near) == 0
                assert peer.service_id == near.getsockname().service_id
                _exchange(near, far)
            else:
                with pytest.raises(BlockingIOError):
                    listener.accept()
                assert _outcome(near) == errno.ECONNREFUSED
            world.broker.start()
            _check_service(world, listener, type_)


@pytest.mark.parametrize("step", BIND_STEPS)
def test_broker_is_killed_at_a_step_of_a_bind(tmp_path: Path, step: str) -> None:
    """The bind fails or holds; either way the address is free again once the socket is closed."""
    with _world(tmp_path) as world:
        world.broker.kill()
        world.broker.start(step)
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
    with _world(tmp_path) as world:
        world.broker.kill()
        world.broker.start(step)
        with hvsock.socket(partition=world.broker.host) as sock:
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
    with _world(tmp_path) as world, world.listener() as listener:
        world.broker.kill()
        world.broker.start(step)
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
            deadline_counts = 0
            while client.call(world.broker.host, "status")["connecting"] < 1 and deadline_counts < 1000:
                deadline_counts += 1
            behind = stack.enter_context(world.connector())
            os.kill(pid, signal.SIGKILL)
        _exchange(first, listener.accept()[0])
        assert _outcome(behind) == 0
        assert _readable(listener)
        _exchange(behind, listener.accept()[0])


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
