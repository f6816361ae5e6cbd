"""accept: couriers in every state, short descriptors, several threads and processes at one listener."""

from __future__ import annotations

import errno
import os
import socket
import sys

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import HV_GUID_LOOPBACK, HV_GUID_ZERO, SOCK_SEQPACKET, SOCK_STREAM
from hvsock.sockets import accepting
from tests.sockets.support import (
    QUIET_SECONDS,
    WAIT_SECONDS,
    CourierByHand,
    FakeBroker,
    Job,
    World,
    fails,
    readable,
    receive_all,
    run_python,
)

TYPES = [SOCK_STREAM, SOCK_SEQPACKET]


class TestWaiting:
    def test_non_blocking(self, world: World) -> None:
        listener, _ = world.loopback()
        listener.settimeout(0)
        with listener, fails(errno.EAGAIN):
            listener.accept()

    def test_time_out(self, world: World) -> None:
        listener, _ = world.loopback()
        listener.settimeout(0.02)
        with listener, pytest.raises(TimeoutError):
            listener.accept()

    def test_blocking(self, world: World) -> None:
        listener, service_id = world.loopback()
        listener.settimeout(None)
        with listener, world.fresh() as sock:
            job = Job(listener.accept)
            assert job.is_blocked()
            sock.connect((HV_GUID_LOOPBACK, service_id))
            accepted, peer = job.result()
            with accepted:
                assert peer == accepted.getpeername()

    @pytest.mark.parametrize("timeout", [None, 0, 5])
    def test_what_is_accepted_blocks(self, world: World, timeout: float | None) -> None:
        """As with every socket on Linux, whatever the listener does, and whatever its maker's process set."""
        listener, service_id = world.loopback()
        with listener, world.fresh() as sock:
            sock.connect((HV_GUID_LOOPBACK, service_id))
            assert readable(listener)
            listener.settimeout(timeout)
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.gettimeout() is None
                assert os.get_blocking(accepted.fileno())
                assert not accepted.get_inheritable()

    def test_default_time_out(self, world: World) -> None:
        """It is what sockets get; what goes on inside must not care."""
        listener, service_id = world.loopback()
        socket.setdefaulttimeout(3)
        try:
            with listener, world.fresh() as sock:
                sock.connect((HV_GUID_LOOPBACK, service_id))
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.gettimeout() == 3
                    assert not os.get_blocking(accepted.fileno())
        finally:
            socket.setdefaulttimeout(None)

    def test_default_time_out_and_a_slow_courier(self, fake: FakeBroker) -> None:
        """The time-out of the program's sockets is not that of a courier."""
        with fake.listener() as listener, CourierByHand(listener) as courier:
            socket.setdefaulttimeout(0.01)
            try:
                job = Job(listener.accept)
                assert job.is_blocked()
                courier.send()
                assert job.is_blocked()
                courier.done()
                job.result()[0].close()
            finally:
                socket.setdefaulttimeout(None)

    def test_a_connection_from_a_non_blocking_description(self, fake: FakeBroker) -> None:
        """O_NONBLOCK comes with a descriptor that is passed; recv must not be surprised by it."""
        with fake.listener() as listener, CourierByHand(listener) as courier:
            courier.far.setblocking(False)
            courier.send()
            courier.done()
            accepted, _ = listener.accept()
            with accepted:
                job = Job(lambda: accepted.recv(10))
                assert job.is_blocked()
                courier.near.sendall(b"data")
                assert job.result() == b"data"


class TestEnd:
    @pytest.mark.parametrize("timeout", [None, 2 * WAIT_SECONDS])
    def test_shutdown_ends_an_accept_that_waits(self, world: World, timeout: float | None) -> None:
        listener, _ = world.loopback()
        listener.settimeout(timeout)
        with listener:
            job = Job(listener.accept)
            assert job.is_blocked()
            listener.shutdown(socket.SHUT_RDWR)
            with fails(errno.EINVAL):
                job.result()

    @pytest.mark.parametrize("timeout", [None, 0, 2 * WAIT_SECONDS])
    def test_accept_after_shutdown(self, world: World, timeout: float | None) -> None:
        """What is in the backlog is still accepted, then there is an error, and no waiting for nothing."""
        listener, service_id = world.loopback()
        with listener, world.fresh() as sock:
            sock.connect((HV_GUID_LOOPBACK, service_id))
            assert readable(listener)
            listener.settimeout(timeout)
            listener.shutdown(socket.SHUT_RDWR)
            listener.accept()[0].close()
            for _ in range(2):
                with fails(errno.EINVAL):
                    Job(listener.accept).result()
            assert listener.gettimeout() == timeout

    def test_connects_after_shutdown_are_refused(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as sock:
            listener.shutdown(socket.SHUT_RD)
            assert sock.connect_ex((HV_GUID_LOOPBACK, service_id)) == errno.ECONNREFUSED

    def test_close_by_another_thread(self, world: World) -> None:
        """Linux lets the accept that waits go on, with its time-out; nothing is left open after it."""
        listener, _ = world.loopback()
        listener.settimeout(0.1)
        with listener:
            job = Job(listener.accept)
            job.is_blocked()  # or else this machine is slow, and it has timed out
            listener.close()
            with pytest.raises(OSError):  # noqa: PT011 (TimeoutError, or EBADF from the next try)
                job.result()

    def test_close_while_others_connect(self, world: World) -> None:
        """Each accept gives a connection or an OSError; the leak check sees the rest."""
        for _ in range(20):
            listener, service_id = world.loopback()

            def accept_all(listener: hvsock.socket = listener) -> None:
                try:
                    while True:
                        listener.accept()[0].close()
                except OSError:
                    return

            listener.settimeout(0.05)
            jobs = [Job(accept_all) for _ in range(2)]
            for _ in range(3):
                with world.fresh() as sock:
                    sock.connect((HV_GUID_LOOPBACK, service_id))
            listener.close()
            for job in jobs:
                job.result()

    def test_connections_in_the_backlog_end_with_their_listener(self, world: World) -> None:
        listener, service_id = world.loopback()
        with world.fresh() as sock:
            sock.connect((HV_GUID_LOOPBACK, service_id))
            sock.sendall(b"nobody reads this")
            listener.close()
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


class TestCouriers:
    """A broker may die at any step."""

    @pytest.mark.parametrize("type_", TYPES)
    def test_all_steps(self, fake: FakeBroker, type_: int) -> None:
        with fake.listener(type=type_) as listener, CourierByHand(listener) as courier:
            courier.send()
            courier.done()
            accepted, peer = listener.accept()
            with accepted:
                assert peer == courier.courier.peer
                assert accepted.getsockname() == courier.courier.own
                courier.near.sendall(b"data")
                assert accepted.recv(10) == b"data"

    @pytest.mark.parametrize("type_", TYPES)
    def test_it_ends_before_the_descriptor(self, fake: FakeBroker, type_: int) -> None:
        """It brought nothing; the next one does."""
        with (
            fake.listener(type=type_) as listener,
            CourierByHand(listener) as dead,
            CourierByHand(listener) as good,
        ):
            dead.link.close()
            good.send()
            good.done()
            accepted, _ = listener.accept()
            with accepted:
                good.near.sendall(b"data")
                assert accepted.recv(10) == b"data"

    @pytest.mark.parametrize("type_", TYPES)
    @pytest.mark.parametrize("drained", [True, False])
    def test_it_ends_before_the_last_byte(self, fake: FakeBroker, type_: int, drained: bool) -> None:
        """accept drains the request where the broker could not; it never takes payload for it."""
        with fake.listener(type=type_) as listener, CourierByHand(listener) as courier:
            if not drained:
                courier.put_request()
            courier.send()
            courier.link.close()
            if drained:
                courier.near.sendall(bytes(2048))  # payload of the same length
            accepted, _ = listener.accept()
            with accepted:
                if drained:
                    assert accepted.recv(4096) == bytes(2048)
                courier.near.sendall(b"payload")
                assert accepted.recv(4096) == b"payload"

    def test_another_request_is_payload(self, fake: FakeBroker) -> None:
        """A connector may send what looks like a request; only the token of this connection counts."""
        with fake.listener() as listener, CourierByHand(listener) as courier:
            token, courier.token = courier.token, os.urandom(16)
            courier.put_request()
            courier.token = token
            courier.send()
            courier.link.close()
            accepted, _ = listener.accept()
            with accepted:
                assert len(accepted.recv(4096)) == 2048

    def test_it_is_stuck_before_the_descriptor(self, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(accepting, "COURIER_SECONDS", 0.05)
        with fake.listener() as listener, CourierByHand(listener):
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listener.accept()

    def test_it_is_stuck_before_the_last_byte(self, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        """The broker might drain payload later, so the connection is given up, and the connector knows."""
        monkeypatch.setattr(accepting, "COURIER_SECONDS", 0.05)
        with fake.listener() as listener, CourierByHand(listener) as courier:
            courier.send()
            listener.settimeout(0.1)
            with pytest.raises(TimeoutError):
                listener.accept()
            assert courier.near.recv(1) == b""

    def test_a_slow_one_in_a_non_blocking_accept(self, fake: FakeBroker) -> None:
        """It has reached the backlog; what follows takes microseconds, and accept waits for that."""
        with fake.listener() as listener, CourierByHand(listener) as courier:
            listener.settimeout(0)
            job = Job(listener.accept)
            assert job.is_blocked()
            courier.send()
            courier.done()
            job.result()[0].close()

    @pytest.mark.parametrize("what", [b"", b"x", bytes(88), bytes(200)])
    def test_rubbish_is_skipped(self, fake: FakeBroker, what: bytes) -> None:
        with fake.listener() as listener:
            with socket.socket(socket.AF_UNIX) as link, CourierByHand(listener) as good:
                link.connect(socket.socket.getsockname(listener))
                good.send()
                good.done()
                accepted, _ = listener.accept()
                accepted.close()
                link.sendall(what)
            listener.settimeout(QUIET_SECONDS)
            with pytest.raises(TimeoutError):
                listener.accept()

    def test_descriptors_with_rubbish_are_closed(self, fake: FakeBroker) -> None:
        with fake.listener() as listener:
            listener.settimeout(QUIET_SECONDS)
            for message, count in ((b"rubbish", 1), (bytes(88), 1)):
                near, far = socket.socketpair()
                with near, far, socket.socket(socket.AF_UNIX) as link:
                    link.connect(socket.socket.getsockname(listener))
                    socket.send_fds(link, [message], [far.fileno()] * count)
                    far.close()
                    with pytest.raises(TimeoutError):
                        listener.accept()
                    near.settimeout(WAIT_SECONDS)
                    assert near.recv(1) == b""

    def test_more_descriptors_than_one(self, fake: FakeBroker) -> None:
        with fake.listener() as listener, CourierByHand(listener) as courier:
            near, far = socket.socketpair()
            with near:
                socket.send_fds(courier.link, [courier.courier.pack()], [courier.far.fileno(), far.fileno()])
                far.close()
                courier.far.close()
                courier.done()
                accepted, _ = listener.accept()
                with accepted:
                    courier.near.sendall(b"data")
                    assert accepted.recv(10) == b"data"
                    near.settimeout(WAIT_SECONDS)
                    assert near.recv(1) == b""


EXHAUSTED = """
import errno, os, resource, select, socket, sys
import hvsock
listener = hvsock.create_server(("loopback", sys.argv[1]), backlog=16)
listener.settimeout(5)
connectors = []
free = int(sys.argv[2])
count = 6
for number in range(count):
    connector = hvsock.socket()
    connector.connect((hvsock.HV_GUID_LOOPBACK, sys.argv[1]))
    connector.sendall(b"number %d" % number)
    connectors.append(connector)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
hoard = []
try:
    while True:
        hoard.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
for _ in range(free):
    os.close(hoard.pop())
accepted, failures = [], 0
while len(accepted) < count:
    assert select.select([listener], [], [], 5)[0]
    try:
        accepted.append(listener.accept()[0])
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        failures += 1
        assert failures < 50
        os.close(hoard.pop())
for number, sock in enumerate(accepted):
    assert sock.recv(100) == b"number %d" % number, number
    sock.sendall(b"thanks")
for connector in connectors:
    assert connector.recv(100) == b"thanks"
for sock in (*connectors, *accepted, listener):
    sock.close()
for descriptor in hoard:
    os.close(descriptor)
print(failures)
"""


class TestShortOfDescriptors:
    @pytest.mark.parametrize("free", [0, 1, 2, 3, 10])
    def test_nothing_is_lost(self, world: World, free: int) -> None:
        """accept says EMFILE, and every connection arrives with its data once there is room."""
        service_id = world.service()
        printed = run_python(EXHAUSTED, service_id, str(free), HVSOCK_DIR=world.fabric.folder)
        failures = int(printed)
        assert (failures > 0) == (free < 10)

    def test_bind_and_socket(self, world: World) -> None:
        code = """
import errno, os, resource, sys
import hvsock
sock = hvsock.socket()
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
hoard = []
try:
    while True:
        hoard.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for _ in range(3):
    for call in (lambda: sock.bind((hvsock.HV_GUID_LOOPBACK, hvsock.HV_GUID_ZERO)), sock.dup):
        try:
            made = call()
        except OSError as error:
            print(errno.errorcode[error.errno])
        else:
            print("made", getattr(made, "close", str)() or "closed" if made else sock.getsockname()[0])
            if made is None:
                sock.close()
                sock = hvsock.socket()
    os.close(hoard.pop())
for descriptor in hoard:
    os.close(descriptor)
sock.close()
"""
        printed = run_python(code, HVSOCK_DIR=world.fabric.folder).split("\n")
        assert printed[:2] == ["EMFILE", "EMFILE"]
        assert printed[2] == "EMFILE", "one descriptor is not enough to ask, and to be given a socket"
        assert printed[3] == "made closed"
        assert printed[4] == f"made {HV_GUID_LOOPBACK}"

    def test_the_spare_descriptor_is_not_somebody_elses(self, world: World) -> None:
        """A program that closes all its descriptors, as daemons do, gets its numbers back."""
        code = """
import os, sys
import hvsock
from hvsock.sockets import accepting
accepting.spare.keep()
os.closerange(3, 100)
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
accepting.spare._give_up()
for file in files:
    os.fstat(file)
    os.close(file)
accepting.spare.keep()
"""
        run_python(code, HVSOCK_DIR=world.fabric.folder)


class TestManyAccepters:
    def test_threads(self, world: World) -> None:
        """Each connection is accepted once."""
        listener, service_id = world.loopback()
        count, threads = 60, 4

        def accept() -> list[bytes]:
            got: list[bytes] = []
            while True:
                accepted, _ = listener.accept()
                with accepted:
                    data = receive_all(accepted)
                if data == b"stop":
                    return got
                got.append(data)

        with listener:
            jobs = [Job(accept) for _ in range(threads)]
            for data in [*(str(number).encode() for number in range(count)), *([b"stop"] * threads)]:
                with world.fresh() as sock:
                    sock.connect((HV_GUID_LOOPBACK, service_id))
                    sock.sendall(data)
            got = [data for job in jobs for data in job.result()]
        assert sorted(map(int, got)) == list(range(count))

    def test_forked_workers(self, world: World) -> None:
        """Workers that were forked accept on one listener; each connection gets one of them, and its answer."""
        service_id = world.service()
        code = """
import os, signal, sys
import hvsock
listener = hvsock.create_server(("loopback", sys.argv[1]), backlog=64)
workers = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                sock, _ = listener.accept()
                with sock:
                    data = sock.recv(100)
                    sock.sendall(data + b" " + str(os.getpid()).encode())
                if data == b"stop":
                    break
            code = 0
        except BaseException as error:
            print(error, file=sys.stderr)
            code = 1
        finally:
            listener.close()
            os._exit(code)
    workers.append(pid)
seen = set()
for number in range(60):
    with hvsock.create_connection(("loopback", sys.argv[1]), 10) as sock:
        sock.sendall(b"hello %d" % number)
        sock.shutdown(hvsock.SHUT_WR)
        data = b"".join(iter(lambda: sock.recv(100), b""))
        head, _, pid = data.rpartition(b" ")
        assert head == b"hello %d" % number, data
        seen.add(int(pid))
for _ in workers:
    with hvsock.create_connection(("loopback", sys.argv[1]), 10) as sock:
        sock.sendall(b"stop")
        seen.add(int(sock.recv(100).split()[1]))
assert all(os.waitpid(pid, 0)[1] == 0 for pid in workers)
assert seen == set(workers), (seen, workers)
listener.close()
"""
        run_python(code, service_id, HVSOCK_DIR=world.fabric.folder)

    def test_fork_beside_an_embedded_fabric(self, world: World) -> None:
        """A child of the broker's own process harms neither the broker nor the listener."""
        listener, service_id = world.loopback()
        with listener:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            with world.fresh() as sock:
                sock.connect((HV_GUID_LOOPBACK, service_id))
                listener.accept()[0].close()


def test_listening_on_a_fresh_id(world: World) -> None:
    with world.fresh() as listener, world.fresh() as sock:
        listener.bind((HV_GUID_LOOPBACK, HV_GUID_ZERO))
        listener.listen()
        sock.connect(listener.getsockname())
        listener.accept()[0].close()
