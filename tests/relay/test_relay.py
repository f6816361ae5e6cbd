"""The relay with a fabric: many connections, limits, targets that are down or slow, and what it follows."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, ServiceId, VmId
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.reactor import Reactor
from hvsock.registry import Registry, ServiceEntry
from hvsock.registry.forwards import Forward, parse_forward
from hvsock.relay import complaints
from hvsock.relay import relay as relay_module
from hvsock.relay.following import Binding, Follower, Registered, Wanted, wanted
from hvsock.relay.relay import Relay
from hvsock.topology.access import Settings
from hvsock.virtio.packet import Shutdown
from tests.device.devices import DeviceThread
from tests.relay.servers import tcp_server, unix_server
from tests.waiting import in_reactor, wait_until

ONE = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
VM, OTHER_VM = VmId.new(), VmId.new()
WEB = Forward("/run/web.sock")
BOTH = {Binding(HV_GUID_CHILDREN, ONE), Binding(HV_GUID_LOOPBACK, ONE)}


@pytest.mark.parametrize(
    ("settings", "per_vm", "bindings"),
    [
        (Settings(), {}, BOTH),
        (Settings(enabled=False), {}, set()),
        (Settings(), {VM: Settings(enabled=False)}, BOTH),
        (Settings(enabled=False), {VM: Settings(enabled=True)}, {Binding(VM, ONE)}),
        (Settings(enabled=False), {VM: Settings(wildcard_binds=True)}, set()),
        (Settings(), {VM: Settings(wildcard_binds=False)}, BOTH | {Binding(VM, ONE)}),
    ],
)
def test_where_a_forward_is_listened_on(
    settings: Settings, per_vm: dict[VmId, Settings], bindings: set[Binding]
) -> None:
    entry = ServiceEntry(ONE, "web", settings=settings, per_vm=per_vm, forward=WEB)
    assert wanted([entry], {}) == dict.fromkeys(bindings, Wanted("web", WEB))
    assert wanted([ServiceEntry(ONE, "web", settings=settings, per_vm=per_vm)], {}) == {}


class World:
    """A fabric with a VM and a relay in a thread that follows the fabric's registry, at each :meth:`look`."""

    def __init__(self, fabric: EmbeddedFabric) -> None:
        self.fabric = fabric
        self.vm = fabric.create_partition("web01")
        self.reactor = Reactor()
        self.relay = Relay(self.reactor)
        self.registry = Registry(os.path.join(fabric.folder, "registry"), read_only_because="only looks")
        self.follower = Follower(Registered(self.registry), fabric.host.folder, self.reactor, self.relay)
        self._thread = threading.Thread(target=self.reactor.run)
        self._thread.start()

    def forward(self, name: str, target: str) -> ServiceEntry:
        entry = self.fabric.registry.register(name, forward=parse_forward(target))
        self.look()
        return entry

    def look(self) -> None:
        self.follower.look()
        in_reactor(self.reactor, lambda: None)

    def connect(self, partition: PartitionHandle | None = None, name: str = "web") -> hvsock.socket:
        """A connection from the VM, or another partition."""
        partition = partition or self.vm
        vm = "loopback" if partition is self.fabric.host else "parent"
        return hvsock.create_connection((vm, name), 10, partition=partition.folder)

    def close(self) -> None:
        self.reactor.stop()
        self._thread.join()
        self.relay.close()
        self.reactor.close()
        self.registry.close()


@pytest.fixture
def world(hvsock_fabric: EmbeddedFabric) -> Iterator[World]:
    made = World(hvsock_fabric)
    try:
        yield made
    finally:
        made.close()


def echoed(sock: hvsock.socket, data: bytes = b"hello") -> bytes:
    """What comes back of `data`, up to the end, of a connection that is closed then."""
    with sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = bytearray()
        while piece := sock.recv(1 << 20):
            got += piece
        sender.join()
    return bytes(got)


def refused(world: World, partition: PartitionHandle | None = None) -> bool:
    try:
        world.connect(partition).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_vms_and_local_programs_reach_an_existing_server(world: World, tmp_path: Path, kind: str) -> None:
    data = os.urandom(2_000_000)
    with tcp_server(b"hi ") if kind == "tcp" else unix_server(tmp_path / "s", b"hi ") as target:
        world.forward("web", target)
        assert echoed(world.connect(), data) == b"hi " + data
        assert echoed(world.connect(world.fabric.host)) == b"hi hello"
        wait_until(lambda: not len(world.relay))


def test_it_follows_the_registry(world: World) -> None:
    registry = world.fabric.registry
    other = world.fabric.create_partition("web02")
    with tcp_server(b"one ") as one, tcp_server(b"two ") as two:
        service = world.forward("web", one)
        old = world.connect()
        assert old.recv(4) == b"one "  # the relay has taken it, and does not come to it after the change
        registry.set_forward("web", parse_forward(two))
        world.look()
        assert echoed(world.connect()) == b"two hello"
        assert echoed(old) == b"hello"
        registry.set_enabled("web", False)
        world.look()
        assert refused(world)
        assert refused(world, world.fabric.host)
        registry.set_enabled("web", True, world.vm.id)
        world.look()
        assert echoed(world.connect()) == b"two hello"
        assert refused(world, other)
        registry.set_enabled("web", None)
        registry.set_enabled("web", None, world.vm.id)
        world.look()
        assert echoed(world.connect(other)) == b"two hello"
        registry.set_forward("web", None)
        world.look()
        assert refused(world)
        with hvsock.create_server(("children", service.id)):  # its place is free
            pass


def test_what_cannot_be_listened_on_is_tried_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with tcp_server() as target:
        taken = world.fabric.register("web")
        with hvsock.create_server(("children", taken.id)):
            world.fabric.registry.set_forward("web", parse_forward(target))
            world.look()
            world.look()
            assert echoed(world.connect(world.fabric.host)) == b"hello"
        assert caplog.text.count("'web' is not forwarded for children") == 1
        world.look()
        assert echoed(world.connect()) == b"hello"


def test_200_connections_at_once_with_a_slow_reader_among_them(world: World) -> None:
    with tcp_server() as target:
        world.forward("web", target)
        with contextlib.ExitStack() as stack:
            slow = stack.enter_context(world.connect())
            slow.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    slow.send(bytes(1 << 16))  # and nothing of what comes back is read
            socks = [stack.enter_context(world.connect()) for _ in range(200)]
            for number, sock in enumerate(socks):
                sock.sendall(b"%04d" % number * 100)
            for number, sock in enumerate(socks):
                got = b""
                while len(got) < 400:
                    got += sock.recv(400)
                assert got == b"%04d" % number * 100
        wait_until(lambda: not len(world.relay))


def test_a_partition_has_its_limit_and_leaves_room_for_others(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay_module, "MAX_CONNECTIONS_PER_PARTITION", 2)
    other = world.fabric.create_partition("web02")
    with tcp_server(b"hi") as target:
        world.forward("web", target)
        with world.connect() as one, world.connect() as two:
            assert (one.recv(9), two.recv(9)) == (b"hi", b"hi")
            with world.connect() as third:
                assert third.recv(9) == b""
            assert echoed(world.connect(other)) == b"hihello"
        wait_until(lambda: not len(world.relay))
        assert echoed(world.connect()) == b"hihello"
        assert "it has 2, the most of one partition" in caplog.text


def test_there_is_a_limit_for_all(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.relay._most = 1
    with tcp_server(b"hi") as target:
        world.forward("web", target)
        with world.connect() as one, world.connect(world.fabric.host) as two:
            assert one.recv(9) == b"hi"
            assert two.recv(9) == b""
        assert "there are 1, the most" in caplog.text


@pytest.mark.parametrize("target", ["unix:/nonexistent/web.sock", "tcp:127.0.0.1:1"])
def test_a_target_that_is_down_closes_the_connection_with_a_line_in_the_log(
    world: World, target: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complaints, "COMPLAINT_SECONDS", 600.0)
    world.forward("web", target)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            with world.connect() as sock:
                assert sock.recv(9) == b""
    assert caplog.text.count(f"{target} does not answer: ") == 1  # a flood is one line, and a number later
    wait_until(lambda: not len(world.relay))


def test_a_target_whose_queue_stays_full_is_given_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay_module, "CONNECT_SECONDS", 0.1)
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        world.forward("web", f"unix:{path}")
        with world.connect() as sock:
            assert sock.recv(9) == b""
        assert "its queue was full" in caplog.text
        monkeypatch.setattr(relay_module, "CONNECT_SECONDS", 30.0)
        with world.connect() as sock:
            wait_until(lambda: len(world.relay) == 1)
            listener.accept()[0].close()
            accepted, _ = listener.accept()
            accepted.sendall(b"at last")
            assert sock.recv(9) == b"at last"
            accepted.close()


def test_connections_and_listeners_outlive_the_broker(world: World) -> None:
    with tcp_server(b"hi") as target:
        world.forward("web", target)
        with world.connect() as sock:
            assert sock.recv(9) == b"hi"
            world.fabric.restart()
            sock.sendall(b"still here")
            assert sock.recv(99) == b"still here"
        assert echoed(world.connect()) == b"hihello"


def test_a_target_that_ends_ends_its_connections_and_no_others(world: World, tmp_path: Path) -> None:
    with tcp_server(b"hi") as stays:
        world.forward("stays", stays)
        with unix_server(tmp_path / "s", b"hi") as target:
            world.forward("web", target)
            one, other = world.connect(), world.connect(name="stays")
            assert (one.recv(9), other.recv(9)) == (b"hi", b"hi")
        assert one.recv(9) == b""
        one.close()
        with world.connect() as later:
            assert later.recv(9) == b""
        other.sendall(b"unharmed")
        assert other.recv(99) == b"unharmed"
        other.close()


def test_the_guest_of_a_device_reaches_it_and_its_reset_is_one_to_the_server(world: World) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        DeviceThread(world.fabric, world.vm) as device,
        device.guest() as guest,
    ):
        world.fabric.registry.register(
            "web", ServiceId.from_port(2761), forward=Forward("127.0.0.1", listener.getsockname()[1])
        )
        world.look()
        graceful, broken = guest.connect(2761), guest.connect(2761)
        first, second = listener.accept()[0], listener.accept()[0]
        with first, second:
            graceful.send(b"all of it")
            graceful.shutdown(Shutdown.SEND)
            broken.send(b"half of it")
            broken.reset()
            got = {}
            for sock in (first, second):
                data, end = b"", "end"
                try:
                    while piece := sock.recv(99):
                        data += piece
                except ConnectionResetError:
                    end = "reset"
                got[data] = end
            assert got == {b"all of it": "end", b"half of it": "reset"}
            first.sendall(b"thanks")
            second.close()
            assert graceful.receive() == b"thanks"
        wait_until(lambda: not len(world.relay))
