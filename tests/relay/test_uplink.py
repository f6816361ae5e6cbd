"""The way up: a fabric whose host is a partition of another one."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock.addresses import HV_GUID_PARENT, ServiceId
from hvsock.errors import UsageError
from hvsock.fabric import client, vsocklink
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.reactor import Reactor
from hvsock.relay import uplink as uplink_module
from hvsock.relay.uplink import Uplink, way_of
from hvsock.sockets.vsock import ports
from tests.fabric.peers import fails_with
from tests.waiting import wait_until

ECHO = ServiceId("11111111-2222-4333-8444-555555555555")
SILENT = ServiceId.from_port(5_001)
ABSENT = ServiceId.from_port(5_002)


class Worlds:
    """Two fabrics: the host of the inner one is the VM `web01` of the outer one.

    Args:
        outer: the outer fabric.
        inner: the inner one.
    """

    def __init__(self, outer: EmbeddedFabric, inner: EmbeddedFabric) -> None:
        self.outer, self.inner = outer, inner
        outer.register("echo", ECHO)
        outer.register("silent", SILENT)
        self.web01 = outer.create_partition("web01")
        self.way = f"unix:{self.web01.folder}"
        self.container = inner.create_partition("box", "container")
        self.vm = inner.create_partition("nested", "vm")
        self.inside = inner.create_partition("inside", "container", parent="nested")

    @contextlib.contextmanager
    def uplink(self) -> Iterator[Uplink]:
        """The way up, in a thread."""
        reactor = Reactor()
        made = Uplink(reactor, self.inner.host.folder, way_of(self.way), 100)
        thread = threading.Thread(target=reactor.run)
        thread.start()
        try:
            yield made
        finally:
            reactor.stop()
            thread.join()
            made.close()
            reactor.close()

    def connect(
        self, partition: PartitionHandle, service: ServiceId = ECHO, *, passthru: bool = False
    ) -> hvsock.socket:
        """A connection of `partition` to its parent."""
        sock = hvsock.socket(partition=partition.folder)
        try:
            sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONTAINER_PASSTHRU, int(passthru))
            sock.settimeout(20)
            sock.connect((HV_GUID_PARENT, service))
        except BaseException:
            sock.close()
            raise
        return sock

    def listen(self, at: EmbeddedFabric, service: ServiceId = ECHO) -> hvsock.socket:
        """A listener for the children of a host."""
        return hvsock.create_server(("children", str(service)), partition=at.host.folder)


@pytest.fixture
def worlds() -> Iterator[Worlds]:
    with EmbeddedFabric() as outer, EmbeddedFabric() as inner:
        yield Worlds(outer, inner)


def talk(near: hvsock.socket, far: hvsock.socket) -> None:
    """Both ways, with a half-close that leaves the other way open."""
    near.sendall(b"x" * 200_000)
    near.shutdown(socket.SHUT_WR)
    assert sum(len(piece) for piece in iter(lambda: far.recv(65536), b"")) == 200_000
    far.sendall(b"answer")
    far.close()
    assert near.recv(99) == b"answer"
    assert near.recv(99) == b""


def test_parent_and_passthru(worlds: Worlds) -> None:
    """PARENT of the host is the outer host; that of a container is the inner one, and with passthru the outer."""
    with worlds.uplink(), worlds.listen(worlds.outer) as above:
        for partition, passthru in (
            (worlds.inner.host, False),
            (worlds.inner.host, True),
            (worlds.container, True),
        ):
            with worlds.connect(partition, passthru=passthru) as near:
                far, peer = above.accept()
                assert peer.vm_id == worlds.web01.id
                assert near.getpeername() == (HV_GUID_PARENT, ECHO)
                with far:
                    talk(near, far)
        worlds.inner.register("echo", ECHO)
        with worlds.listen(worlds.inner) as here:
            for partition, passthru in ((worlds.container, False), (worlds.vm, True), (worlds.vm, False)):
                with worlds.connect(partition, passthru=passthru) as near, here.accept()[0] as far:
                    assert far.getpeername()[0] == partition.id
                    talk(near, far)
            with worlds.connect(worlds.inside, passthru=True) as near, here.accept()[0] as far:
                assert far.getpeername()[0] == worlds.inside.id


def test_what_the_outer_fabric_refuses(worlds: Worlds) -> None:
    with worlds.uplink():
        for service in (ABSENT, SILENT):  # not registered, and nothing listens
            with pytest.raises(ConnectionRefusedError):
                worlds.connect(worlds.inner.host, service)
        with (
            pytest.raises(OSError, match="SOCK_STREAM alone") as failed,
            hvsock.socket(type=socket.SOCK_SEQPACKET, partition=worlds.inner.host.folder) as sock,
        ):
            sock.connect((HV_GUID_PARENT, ECHO))
        assert failed.value.errno == errno.EPROTOTYPE
        worlds.outer.remove_partition("web01")
        with pytest.raises(OSError, match="no broker answers in") as failed:
            worlds.connect(worlds.inner.host)
        assert failed.value.errno == errno.ENETUNREACH


def test_without_a_way_up_the_host_has_no_parent(worlds: Worlds) -> None:
    def is_bare() -> None:
        with pytest.raises(OSError, match="means no partition in 'host'") as failed:
            worlds.connect(worlds.inner.host)
        assert failed.value.errno == errno.EADDRNOTAVAIL

    is_bare()
    with worlds.uplink():
        with pytest.raises(OSError, match="a way up serves 'host' already") as failed:
            client.bind_device(worlds.inner.host.folder)
        assert failed.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match="nothing listens"):
            worlds.connect(worlds.inner.host)
    is_bare()
    with pytest.raises(OSError, match="Invalid argument") as failed:
        client.bind_device(worlds.container.folder)
    assert failed.value.errno == errno.EINVAL


def test_it_outlives_the_broker_and_doctor_knows_it(worlds: Worlds) -> None:
    with worlds.uplink(), worlds.listen(worlds.outer) as above:
        with worlds.connect(worlds.inner.host) as first, above.accept()[0] as far:
            worlds.inner.restart()
            talk(first, far)
        with worlds.connect(worlds.container, passthru=True) as near, above.accept()[0] as far:
            talk(near, far)
        found = client.call(worlds.inner.host.folder, "explain", vm=HV_GUID_PARENT, service=ECHO)
        assert found["ok"]
        assert "the way up" in found["checks"][-1]["found"]


@contextlib.contextmanager
def leading_nowhere(worlds: Worlds, folder: str) -> Iterator[str]:
    """A way up as a process; its line that says why it leads nowhere."""
    command = [sys.executable, "-m", "hvsock", "uplink", f"unix:{folder}"]
    environment = {**os.environ, "HVSOCK_DIR": worlds.inner.folder}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()  # where it leads
            yield process.stderr.readline().decode()
        finally:
            process.terminate()


def test_a_folder_that_is_no_partitions(worlds: Worlds) -> None:
    with leading_nowhere(worlds, worlds.outer.folder) as said:
        assert f"it leads nowhere yet: no broker answers in {worlds.outer.folder}; bind-mount" in said


def test_a_way_that_leads_nowhere_yet(worlds: Worlds, tmp_path: Path) -> None:
    """It is said at the beginning, and once there is something it leads there."""
    folder = tmp_path / "later"
    with leading_nowhere(worlds, str(folder)) as said:
        assert f"it leads nowhere yet: there is no folder {folder}; bind-mount" in said
        with fails_with(errno.ENETUNREACH):
            worlds.connect(worlds.inner.host)
        folder.symlink_to(worlds.web01.folder)
        with (
            worlds.listen(worlds.outer) as above,
            worlds.connect(worlds.inner.host) as near,
            above.accept()[0] as far,
        ):
            talk(near, far)


def test_a_way_up_that_is_killed_is_a_reset(worlds: Worlds) -> None:
    """And not an end of stream; another one can be started then."""
    command = [sys.executable, "-m", "hvsock", "uplink", worlds.way]
    environment = {**os.environ, "HVSOCK_DIR": worlds.inner.folder}
    with (
        worlds.listen(worlds.outer) as above,
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        assert b"the way up is unix:" in process.stderr.readline()
        with worlds.connect(worlds.inner.host) as near, above.accept()[0] as far:
            near.sendall(b"hello")
            assert far.recv(9) == b"hello"
            process.send_signal(signal.SIGKILL)
            with pytest.raises(ConnectionResetError):
                near.recv(9)
        process.wait()
    with (
        worlds.uplink(),
        worlds.listen(worlds.outer) as above,
        worlds.connect(worlds.inner.host) as near,
        above.accept()[0] as far,
    ):
        talk(near, far)


def test_a_reset_above_is_one_below(worlds: Worlds) -> None:
    with (
        worlds.uplink(),
        worlds.listen(worlds.outer) as above,
        worlds.connect(worlds.inner.host) as near,
        above.accept()[0] as far,
    ):
        near.sendall(b"never read")
        wait_until(lambda: len(far.recv(99, socket.MSG_PEEK)) == 10)
        far.close()  # with something unread
        with pytest.raises(ConnectionResetError):
            near.recv(9)


def test_one_partition_has_so_many(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink_module, "MAX_CONNECTIONS_OF_ONE", 2)
    with worlds.uplink(), worlds.listen(worlds.outer), contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(worlds.connect(worlds.inner.host))
        with pytest.raises(ConnectionRefusedError, match="as many connections"):
            worlds.connect(worlds.inner.host)
        stack.enter_context(worlds.connect(worlds.container, passthru=True))


def test_a_defect_costs_one_connection(
    worlds: Worlds, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused and counted no more."""
    monkeypatch.setattr(uplink_module, "MAX_CONNECTIONS_OF_ONE", 1)
    with worlds.uplink() as uplink, worlds.listen(worlds.outer):
        with monkeypatch.context() as patched:
            patched.setattr(uplink, "_way", lambda _: [].pop())
            with pytest.raises(ConnectionRefusedError, match="its log says why"):
                worlds.connect(worlds.inner.host)
        assert "a defect of the way up" in caplog.text
        wait_until(lambda: not uplink._by_partition)
        worlds.connect(worlds.inner.host).close()


def begin(sock: hvsock.socket) -> None:
    """A connect to the parent that is given the longest time there is."""
    sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, hvsock.HVSOCKET_CONNECT_TIMEOUT_MAX)
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.connect((HV_GUID_PARENT, ECHO))


def test_one_partition_blocks_no_other(worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connects wait for one another, those of others pass, and a connector that hangs up makes room."""
    monkeypatch.setattr(uplink_module, "MAX_CONNECTS_OF_ONE", 2)
    with (
        worlds.uplink() as uplink,
        hvsock.create_server(("children", str(ECHO)), backlog=0, partition=worlds.outer.host.folder) as full,
        worlds.listen(worlds.outer, SILENT),
        contextlib.ExitStack() as stack,
    ):
        first = stack.enter_context(worlds.connect(worlds.inner.host))
        socks = [stack.enter_context(hvsock.socket(partition=worlds.inner.host.folder)) for _ in range(5)]
        for sock in socks:
            begin(sock)
        host = worlds.inner.host.id
        wait_until(lambda: uplink._by_partition[host] == 6 and uplink._connecting[host] == 2)
        worlds.connect(worlds.container, SILENT, passthru=True).close()
        *gone, last = socks
        for sock in gone:
            sock.close()
        wait_until(lambda: uplink._by_partition[host] == 2)
        full.settimeout(0.05)
        accepted = 0
        while not (accepted > 1 and select.select([], [last], [], 0)[1]):
            with contextlib.suppress(TimeoutError):  # some that were given up may be in the queue before it
                stack.enter_context(full.accept()[0])
                accepted += 1
        assert last.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        first.close()


def test_connects_that_nobody_answers_hold_no_thread(worlds: Worlds) -> None:
    """However many partitions have theirs under way, one more has its turn."""
    silent = [worlds.inner.create_partition(f"silent{number}", "container") for number in range(6)]
    many = len(silent) * uplink_module.MAX_CONNECTS_OF_ONE
    assert many > uplink_module.MAX_BEGUN_AT_ONCE
    with (
        worlds.uplink() as uplink,
        hvsock.create_server(("children", str(ECHO)), backlog=0, partition=worlds.outer.host.folder),
        worlds.listen(worlds.outer, SILENT),
        contextlib.ExitStack() as stack,
        worlds.connect(worlds.inner.host),  # it fills the backlog
    ):
        for partition in silent:
            for _ in range(uplink_module.MAX_CONNECTS_OF_ONE):
                sock = stack.enter_context(hvsock.socket(partition=partition.folder))
                sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONTAINER_PASSTHRU, 1)
                begin(sock)
        wait_until(lambda: uplink._connecting.total() == many)
        worlds.connect(worlds.container, SILENT, passthru=True).close()


def test_a_connect_has_its_time(worlds: Worlds) -> None:
    """And no more, where nobody answers it."""
    with (
        worlds.uplink() as uplink,
        hvsock.create_server(("children", str(ECHO)), backlog=0, partition=worlds.outer.host.folder),
        worlds.connect(worlds.inner.host),
        hvsock.socket(partition=worlds.inner.host.folder) as sock,
    ):
        sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, 100)
        with pytest.raises(TimeoutError):
            sock.connect((HV_GUID_PARENT, ECHO))
        wait_until(lambda: not uplink._connecting)


@pytest.fixture
def hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the broker of the host above is, as its guest sees it: one that takes calls and never answers."""
    path = str(tmp_path / "above")
    monkeypatch.setattr(socket, "AF_VSOCK", socket.AF_UNIX)
    monkeypatch.setattr(vsocklink, "connect", lambda link: link.connect(path))
    monkeypatch.setattr(ports, "LEARN_SECONDS", 0.2)
    monkeypatch.setattr(ports, "_silent_until", 0.0)
    return path


def test_a_host_that_never_answers_is_not_waited_for(worlds: Worlds, hung: str) -> None:
    """Its port aliases are asked for once, and all connects that need one fail."""
    worlds.way = "vsock"
    with socket.socket(socket.AF_UNIX) as broker:
        broker.bind(hung)
        broker.listen()
        with worlds.uplink() as uplink:
            with pytest.raises(OSError, match=r"the host did not answer in 0\.2 s") as failed:
                worlds.connect(worlds.inner.host)
            assert failed.value.errno == errno.ENETUNREACH
            for partition in (worlds.inner.host, worlds.container):
                with pytest.raises(OSError, match="the host did not answer just now"):
                    worlds.connect(partition, passthru=partition is worlds.container)
            wait_until(lambda: not uplink._connecting)
        link, _ = broker.accept()
        link.close()
        broker.setblocking(False)
        with pytest.raises(BlockingIOError):
            broker.accept()


def test_its_end_waits_for_no_connect(worlds: Worlds) -> None:
    with hvsock.create_server(("children", str(ECHO)), backlog=0, partition=worlds.outer.host.folder):
        with worlds.uplink() as uplink, worlds.connect(worlds.inner.host):
            sock = hvsock.socket(partition=worlds.inner.host.folder)
            begin(sock)
            wait_until(lambda: uplink._connecting)
        with sock, pytest.raises(ConnectionRefusedError):
            sock.connect((HV_GUID_PARENT, ECHO))


def test_there_may_be_more_connects_than_threads(worlds: Worlds) -> None:
    with (
        worlds.uplink(),
        hvsock.create_server(("children", str(ECHO)), backlog=100, partition=worlds.outer.host.folder),
    ):
        socks = [
            hvsock.socket(partition=worlds.inner.host.folder) for _ in range(8 * uplink_module.MAX_BEGUN_AT_ONCE)
        ]
        try:
            for sock in socks:
                begin(sock)
            for sock in socks:
                select.select([], [sock], [], 20)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                assert sock.getpeername() == (HV_GUID_PARENT, ECHO)
        finally:
            for sock in socks:
                sock.close()


@pytest.mark.parametrize("text", ["", "tcp:1.2.3.4", "unix", "unix:", "unix:relative", "/a/folder"])
def test_what_is_no_way_up(text: str) -> None:
    with pytest.raises(UsageError, match="no way up"):
        way_of(text)


def test_a_way_that_is_not_there(worlds: Worlds, tmp_path: Path) -> None:
    worlds.way = f"unix:{tmp_path / 'nowhere'}"
    with worlds.uplink(), pytest.raises(OSError, match="no broker answers") as failed:
        worlds.connect(worlds.inner.host)
    assert failed.value.errno == errno.ENETUNREACH
