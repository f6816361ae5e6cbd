"""Connections of a VM: an end of stream that its device did not mark is a reset."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, HV_GUID_PARENT, ServiceId
from hvsock.fabric import client
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import Established
from hvsock.sockets import accepting
from hvsock.sockets.socket import socket as hv_socket
from tests.fabric.fake_device import DeviceEnd, FakeDevice, begin_connect, connected
from tests.fabric.peers import fails_with
from tests.sockets.support import ROOT, WAIT_SECONDS, World, fails
from tests.waiting import wait_until

TYPES = [pytest.param(socket.SOCK_STREAM, id="stream"), pytest.param(socket.SOCK_SEQPACKET, id="seqpacket")]
SETTLE_SECONDS = 0.05
"""Time for the broker to close what it is done with."""
_ports = itertools.count(100_000)


@pytest.fixture
def service_id(world: World) -> ServiceId:
    """A fresh service that guests know by a port."""
    found = ServiceId.from_port(next(_ports))
    world.fabric.register(f"service {found}", found)
    return found


@pytest.fixture
def device(world: World) -> Iterator[FakeDevice]:
    """The device of the world's VM."""
    with FakeDevice(world.vm.folder) as made:
        yield made


@dataclass
class Ends:
    """A connection between a program of the host and a guest: the program's socket, the device's end."""

    sock: hv_socket
    far: DeviceEnd


def connect_to_guest(
    world: World, device: FakeDevice, service_id: ServiceId, type_: int = socket.SOCK_STREAM
) -> Ends:
    """The host connects."""
    sock = world.fresh(type=type_, blocking=False)
    assert sock.connect_ex((world.vm.id, service_id)) == errno.EINPROGRESS
    far = device.take_end()
    far.establish()
    wait_until(lambda: sock.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR) == 0 and sock._connected)
    sock.settimeout(WAIT_SECONDS)
    return Ends(sock, far)


def connect_from_guest(
    world: World, device: FakeDevice, service_id: ServiceId, type_: int = socket.SOCK_STREAM
) -> Ends:
    """The guest connects."""
    with world.listener(world.host, HV_GUID_CHILDREN, service_id, type=type_) as listener:
        far = begin_connect(world.vm.folder, (HV_GUID_PARENT, service_id), type_=type_)
        assert connected(far) == Established(service_id=service_id)
        sock, _ = listener.accept()
    sock.settimeout(WAIT_SECONDS)
    return Ends(sock, far)


Connect = Callable[[World, FakeDevice, ServiceId, int], Ends]


@pytest.fixture(params=[connect_to_guest, connect_from_guest])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Either way round."""
    found: Connect = request.param
    return found


@pytest.fixture
def ends(world: World, device: FakeDevice, service_id: ServiceId, connect: Connect) -> Iterator[Ends]:
    """A connection of streams, either way round."""
    made = connect(world, device, service_id, socket.SOCK_STREAM)
    yield made
    made.sock.close()
    made.far.close()


RECEIVE: dict[str, Callable[[hv_socket], object]] = {
    "recv": lambda sock: sock.recv(10),
    "recv_into": lambda sock: sock.recv_into(bytearray(10)),
    "recvmsg": lambda sock: sock.recvmsg(10)[0],
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(10)])[0],
    "recvfrom": lambda sock: sock.recvfrom(10)[0],
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(10))[0],
    "peek": lambda sock: sock.recv(10, socket.MSG_PEEK),
}


class TestEnds:
    @pytest.mark.parametrize("type_", TYPES)
    def test_a_marked_end_is_one(
        self, world: World, device: FakeDevice, service_id: ServiceId, connect: Connect, type_: int
    ) -> None:
        ends = connect(world, device, service_id, type_)
        with ends.sock as sock, ends.far as far:
            far.sock.sendall(b"last words")
            far.end()
            assert sock.recv(100) == b"last words"
            for receive in RECEIVE.values():
                assert not receive(sock)

    @pytest.mark.parametrize("type_", TYPES)
    def test_an_end_without_a_mark_is_a_reset(
        self, world: World, device: FakeDevice, service_id: ServiceId, connect: Connect, type_: int
    ) -> None:
        ends = connect(world, device, service_id, type_)
        with ends.sock as sock, ends.far as far:
            far.sock.sendall(b"last words")
            far.close()
            assert sock.recv(100) == b"last words"
            for receive in RECEIVE.values():
                with fails(errno.ECONNRESET):
                    receive(sock)

    def test_half_closed_by_the_guest(self, ends: Ends) -> None:
        ends.far.mark.set()
        ends.far.sock.shutdown(socket.SHUT_WR)
        assert ends.sock.recv(10) == b""
        ends.sock.sendall(b"still there")
        assert ends.far.sock.recv(100) == b"still there"

    def test_half_closed_by_the_host(self, ends: Ends) -> None:
        ends.sock.shutdown(socket.SHUT_WR)
        assert ends.far.sock.recv(10) == b""
        ends.far.sock.sendall(b"still there")
        assert ends.sock.recv(100) == b"still there"
        ends.far.close()
        with fails(errno.ECONNRESET):
            ends.sock.recv(10)

    @pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
    def test_the_own_end_of_reading_is_no_reset(self, ends: Ends, how: int) -> None:
        ends.sock.shutdown(how)
        for receive in RECEIVE.values():
            assert not receive(ends.sock)

    def test_asking_for_nothing_is_no_end(self, ends: Ends) -> None:
        assert ends.sock.recv(0) == b""
        assert ends.sock.recv_into(bytearray()) == 0
        ends.far.sock.sendall(b"data")
        assert ends.sock.recv(0) == b""
        assert ends.sock.recv(10) == b"data"

    def test_who_waits_is_told(self, ends: Ends) -> None:
        timer = threading.Timer(0.05, ends.far.close)
        timer.start()
        with fails(errno.ECONNRESET):
            ends.sock.recv(10)
        timer.join()

    def test_without_waiting(self, ends: Ends) -> None:
        ends.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            ends.sock.recv(10)
        assert ends.sock.recv(0) == b""
        ends.far.close()
        with fails(errno.ECONNRESET):
            ends.sock.recv(10)

    def test_files(self, ends: Ends) -> None:
        with ends.sock.makefile("rb") as file:
            ends.sock.close()
            ends.far.sock.sendall(b"one line\nand half of ano")
            assert file.readline() == b"one line\n"
            ends.far.close()
            with fails(errno.ECONNRESET):
                file.readline()

    def test_a_closed_socket(self, ends: Ends) -> None:
        receive = ends.sock.recv
        ends.sock.close()
        ends.sock.close()
        with fails(errno.EBADF):
            receive(10)

    def test_a_dropped_socket(self, ends: Ends) -> None:
        receive = ends.sock.recv
        with pytest.warns(ResourceWarning, match="unclosed"):
            ends.sock = hvsock.socket()
        with fails(errno.EBADF):
            receive(10)


class TestCopies:
    def test_dup(self, ends: Ends) -> None:
        with ends.sock.dup() as twin:
            ends.sock.close()
            assert not twin.recv(0)
            ends.far.close()
            with fails(errno.ECONNRESET):
                twin.recv(10)

    def test_dup_of_a_marked_one(self, ends: Ends) -> None:
        ends.far.end()
        with ends.sock.dup() as twin:
            assert twin.recv(10) == ends.sock.recv(10) == b""

    @pytest.mark.parametrize("graceful", [False, True])
    def test_detached(self, ends: Ends, graceful: bool) -> None:
        """A bare descriptor shows an end of stream in any case."""
        with socket.socket(fileno=ends.sock.detach()) as plain:
            ends.far.end() if graceful else ends.far.close()
            assert plain.recv(10) == b""

    def test_fork(self, ends: Ends) -> None:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                ends.far.sock.close()
                try:
                    ends.sock.recv(10)
                except ConnectionResetError:
                    os._exit(7)
            os._exit(1)
        ends.far.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

    @pytest.mark.parametrize(
        "method",
        ["forkserver", *(pytest.param(one, marks=pytest.mark.soak) for one in ("spawn", "fork"))],
    )
    def test_multiprocessing(self, world: World, service_id: ServiceId, method: str) -> None:
        """The mark goes along to other processes, however they are started."""
        program = "tests.sockets.programs.ends"
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", program, method, world.vm.folder, world.vm.id, service_id],
            env={**os.environ, "HVSOCK_DIR": world.fabric.folder},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("graceful", [False, True])
    def test_the_mark_outlives_a_device_that_is_killed(
        self, world: World, device: FakeDevice, service_id: ServiceId, graceful: bool
    ) -> None:
        ends = connect_to_guest(world, device, service_id)
        pid = os.fork()
        if pid == 0:
            ends.sock.close()
            ends.far.sock.sendall(b"last words")
            if graceful:
                ends.far.mark.set()
            os.kill(os.getpid(), signal.SIGKILL)
        ends.far.close()
        os.waitpid(pid, 0)
        with ends.sock as sock:
            assert sock.recv(100) == b"last words"
            if graceful:
                assert sock.recv(10) == b""
            else:
                with fails(errno.ECONNRESET):
                    sock.recv(10)


class TestConnecting:
    """What is ahead of the payload is taken off, and nothing else is."""

    def test_blocking_with_payload_right_behind(
        self, world: World, device: FakeDevice, service_id: ServiceId
    ) -> None:
        def handle(far: DeviceEnd) -> None:
            with far:
                far.establish()
                far.sock.sendall(b"banner of the guest")
                assert far.sock.recv(100) == b"hello"

        with device.serving(handle), world.fresh() as sock:
            sock.connect((world.vm.id, service_id))
            assert sock.recv(100) == b"banner of the guest"
            sock.sendall(b"hello")
            with fails(errno.ECONNRESET):
                sock.recv(100)

    def test_a_guest_refuses(self, world: World, device: FakeDevice, service_id: ServiceId) -> None:
        with device.serving(DeviceEnd.refuse), world.fresh() as sock:
            for _ in range(2):
                with fails_with(errno.ECONNREFUSED, "the guest refused it"):
                    sock.connect((world.vm.id, service_id))

    @pytest.mark.parametrize("told", [False, True])
    def test_a_device_dies_before_it_has_decided(
        self, world: World, device: FakeDevice, service_id: ServiceId, told: bool
    ) -> None:
        def handle(far: DeviceEnd) -> None:
            with far:
                if told:
                    socket.send_fds(far.sock, [Established().pack()], [far.mark.fileno()])

        with device.serving(handle), world.fresh() as sock, fails_with(errno.ECONNREFUSED, "device ended"):
            sock.connect((world.vm.id, service_id))

    @pytest.mark.parametrize("partition", ["member", "host"])
    def test_a_connection_to_a_listener_beside_the_vm_has_no_mark(
        self, world: World, service_id: ServiceId, partition: str
    ) -> None:
        source = getattr(world, partition)
        with (
            world.listener(world.vm, hvsock.HV_GUID_WILDCARD, service_id) as listener,
            world.fresh(source) as sock,
        ):
            sock.connect((world.vm.id, service_id))
            accepted, _ = listener.accept()
            assert "recv" not in vars(sock)
            assert "recv" not in vars(accepted)
            accepted.close()
            assert sock.recv(1) == b""

    def test_payload_that_looks_like_it_stays_payload(self, world: World, service_id: ServiceId) -> None:
        """Without a descriptor, or with one that is no eventfd, or with another text."""
        text = Established().pack()
        reading, writing = os.pipe()
        mark = EndMark.new()
        cases = [(text + b"!", []), (text, [writing]), (b"other text", [mark.fileno()])]
        with world.listener(world.vm, hvsock.HV_GUID_WILDCARD, service_id) as listener:
            for data, descriptors in cases:
                with world.fresh(blocking=False) as sock:
                    assert sock.connect_ex((world.vm.id, service_id)) == errno.EINPROGRESS
                    listener.settimeout(WAIT_SECONDS)
                    accepted, _ = listener.accept()
                    passed = array.array("i", descriptors)
                    accepted.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else [])
                    accepted.close()
                    sock.settimeout(WAIT_SECONDS)
                    wait_until(sock._look)
                    found, ancillary, _, _ = sock.recvmsg(100, socket.CMSG_LEN(4))
                    assert found == data
                    for _, _, raw in ancillary:
                        os.close(array.array("i", raw)[0])
                    assert len(ancillary) == len(descriptors)
                    assert sock.recv(1) == b""
        mark.close()
        os.close(writing)
        assert os.read(reading, 1) == b"", "nobody kept the other end"
        os.close(reading)

    def test_on_loopback_there_is_no_device(self, world: World) -> None:
        listener, service_id = world.loopback()
        mark = EndMark.new()
        with listener, world.fresh(blocking=False) as sock:
            assert sock.connect_ex((HV_GUID_LOOPBACK, service_id)) == errno.EINPROGRESS
            listener.settimeout(WAIT_SECONDS)
            with listener.accept()[0] as accepted:
                socket.send_fds(accepted, [Established().pack()], [mark.fileno()])
            wait_until(sock._look)
            assert sock.recv(100) == Established().pack()
        mark.close()


class TestShortOfDescriptors:
    def test_at_a_connect(self, world: World, device: FakeDevice, service_id: ServiceId) -> None:
        """The connect fails, and nobody has half a connection."""
        with world.fresh(blocking=False) as sock:
            assert sock.connect_ex((world.vm.id, service_id)) == errno.EINPROGRESS
            with device.take_end() as far:
                far.establish()
                with exhausted():
                    assert sock.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR) == errno.EMFILE
                assert far.sock.recv(10) == b""
            with fails(errno.ENOTCONN):
                sock.recv(10)

    @pytest.mark.parametrize("free", [1, 2])
    def test_at_an_accept(
        self, world: World, service_id: ServiceId, free: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Besides the spare descriptor, it takes one for the courier and one for the connection or its mark."""
        with (
            world.listener(world.host, HV_GUID_CHILDREN, service_id) as listener,
            begin_connect(world.vm.folder, (HV_GUID_PARENT, service_id)) as far,
        ):
            assert connected(far) == Established(service_id=service_id)
            # the broker is a thread of this process, and has to be done with its descriptors
            assert client.call(world.host.folder, "status")["undelivered"] == 1
            accepting.spare.keep()
            monkeypatch.setattr(accepting, "COURIER_SECONDS", 0.0)  # it does not wait for what others may close
            with contextlib.ExitStack() as stack:
                stack.enter_context(exhausted(but=free))
                if free == 1:
                    with fails(errno.EMFILE):
                        listener.accept()
                else:
                    stack.callback(listener.accept()[0].close)
            with contextlib.suppress(ConnectionResetError):
                assert far.sock.recv(1) == b""


@contextlib.contextmanager
def exhausted(but: int = 0) -> Iterator[None]:
    """This process may have no more descriptors than it has, but for so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # the listing's own descriptor is one of those that it lists, and may be the highest
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1 + but, hard))
    hoard: list[int] = []
    try:
        settled = False
        while not settled:  # the broker, a thread of this process, may still have some to close
            before = len(hoard)
            with contextlib.suppress(OSError):
                while True:
                    hoard.append(os.open("/dev/null", os.O_RDONLY))
            settled = len(hoard) == before
            time.sleep(SETTLE_SECONDS)
        for _ in range(but):
            os.close(hoard.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in hoard:
            os.close(descriptor)


class TestEventLoops:
    def test_asyncio(self, world: World, device: FakeDevice, service_id: ServiceId) -> None:
        graceful = iter((True, False))

        def handle(far: DeviceEnd) -> None:
            far.establish()
            far.sock.sendall(b"data")
            far.end() if next(graceful) else far.close()

        async def run() -> None:
            address = world.vm.id, service_id
            for is_graceful in (True, False):
                reader, writer = await hvsock.open_connection(address, partition=world.host.folder)
                assert await reader.readexactly(4) == b"data"
                if is_graceful:
                    assert await reader.read() == b""
                else:
                    with fails(errno.ECONNRESET):
                        await reader.read()
                writer.close()
                with contextlib.suppress(ConnectionResetError):
                    await writer.wait_closed()

        with device.serving(handle):
            asyncio.run(run())

    def test_asyncio_server(self, world: World, service_id: ServiceId) -> None:
        outcomes: list[object] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                outcomes.append(await reader.read())
            except ConnectionResetError as error:
                outcomes.append(error.errno)
            writer.close()
            with contextlib.suppress(ConnectionResetError):
                await writer.wait_closed()

        async def run() -> None:
            address = HV_GUID_CHILDREN, service_id
            async with await hvsock.start_server(serve, address, partition=world.host.folder):
                for graceful in (True, False):
                    far = await asyncio.to_thread(begin_connect, world.vm.folder, (HV_GUID_PARENT, service_id))
                    await asyncio.to_thread(connected, far)
                    far.sock.sendall(b"data")
                    far.end() if graceful else far.close()
                    while len(outcomes) < 2 - graceful:
                        await asyncio.sleep(0.001)

        asyncio.run(run())
        assert outcomes == [b"data", errno.ECONNRESET]
