"""connect and connect_ex in all their ways: waiting or not, refused, again, timed out, given up."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
import types
import warnings
from collections import Counter
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import (
    HV_GUID_LOOPBACK,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    SOCK_SEQPACKET,
    SOCK_STREAM,
    ServiceId,
)
from hvsock.fabric import client
from hvsock.sockets import connecting as connecting_module
from hvsock.sockets import socket as socket_module
from tests.sockets.support import (
    QUIET_SECONDS,
    WAIT_SECONDS,
    FakeBroker,
    Job,
    World,
    fails,
    pending,
    readable,
    receive_all,
    so_error,
    writable,
)
from tests.waiting import wait_until

TYPES = [SOCK_STREAM, SOCK_SEQPACKET]
NOWHERE = (HV_GUID_LOOPBACK, ServiceId("12345678-1234-1234-1234-123456789abc"))
NOBODY = 65534  # the user that has no files, on every Linux
"""An address; nothing listens there."""


def connecting(world: World) -> int:
    """How many connects the broker has under way."""
    found: int = client.call(world.host.folder, "status")["connecting"]
    return found


class TestBlocking:
    @pytest.mark.parametrize("type_", TYPES)
    @pytest.mark.parametrize("timeout", [None, WAIT_SECONDS])
    def test_connects(self, world: World, type_: int, timeout: float | None) -> None:
        listener, service_id = world.loopback(type=type_)
        with listener, world.fresh(type=type_) as sock:
            sock.settimeout(timeout)
            sock.connect((HV_GUID_LOOPBACK, service_id))
            assert sock.gettimeout() == timeout
            sock.sendall(b"data")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(10) == b"data"

    def test_it_is_connected_before_accept(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as sock:
            sock.connect((HV_GUID_LOOPBACK, service_id))
            sock.sendall(b"early")
            sock.shutdown(socket.SHUT_WR)
            sock.close()
            accepted, _ = listener.accept()
            with accepted:
                assert receive_all(accepted) == b"early"

    @pytest.mark.parametrize("type_", TYPES)
    def test_refusals_have_their_reason(self, fake: FakeBroker, type_: int) -> None:
        with fake.connector(type=type_, blocking=True) as sock:
            job = Job(lambda: sock.connect(NOWHERE))
            fake.refuse(errno.EHOSTUNREACH, "not there", type_)
            with pytest.raises(OSError, match="not there") as caught:
                job.result()
            assert caught.value.errno == errno.EHOSTUNREACH

    @pytest.mark.parametrize("type_", TYPES)
    def test_a_broker_that_ends_is_a_refusal(self, fake: FakeBroker, type_: int) -> None:
        with fake.connector(type=type_, blocking=True) as sock:
            job = Job(lambda: sock.connect(NOWHERE))
            fake.take(type_)[0].close()
            with pytest.raises(ConnectionRefusedError, match="the broker or the VM's device ended"):
                job.result()

    def test_a_broker_that_answers_rubbish_is_a_refusal(self, fake: FakeBroker) -> None:
        with fake.connector(blocking=True) as sock:
            job = Job(lambda: sock.connect(NOWHERE))
            connection, _ = fake.take()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            with pytest.raises(ConnectionRefusedError):
                job.result()

    def test_no_broker(self, tmp_path: Path) -> None:
        with hvsock.socket(partition=str(tmp_path)) as sock:
            for _ in range(2):
                with pytest.raises(OSError, match="hvsock up") as caught:
                    sock.connect(NOWHERE)
                assert caught.value.errno == errno.ENETUNREACH

    def test_no_folder(self) -> None:
        with hvsock.socket(partition="/nonexistent/folder") as sock:
            assert sock.connect_ex(NOWHERE) == errno.ENETUNREACH

    def test_a_folder_that_others_own(self, fake: FakeBroker) -> None:
        """Root may enter every folder, so root is somebody else for this."""
        user = os.geteuid()
        os.chmod(fake.folder, 0)
        os.seteuid(user or NOBODY)
        try:
            with fake.connector() as sock, pytest.raises(PermissionError):
                sock.connect(NOWHERE)
        finally:
            os.seteuid(user)
            os.chmod(fake.folder, 0o700)

    def test_folders_of_any_depth(self, world: World, tmp_path: Path) -> None:
        """A Unix address holds 107 bytes of path; here are three times as many."""
        deep = f"{tmp_path}" + "/a-folder-with-a-rather-long-name-of-its-own" * 7
        os.makedirs(os.path.dirname(deep))
        os.symlink(world.host.folder, deep)
        listener, service_id = world.loopback()
        with listener, hvsock.socket(partition=deep) as sock:
            sock.connect((HV_GUID_LOOPBACK, service_id))


class TestTwice:
    def test_connected_is_eisconn(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as sock:
            sock.connect((HV_GUID_LOOPBACK, service_id))
            for _ in range(2):
                with fails(errno.EISCONN):
                    sock.connect((HV_GUID_LOOPBACK, service_id))
            sock.sendall(b"unharmed")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(10) == b"unharmed"
                assert accepted.connect_ex((HV_GUID_LOOPBACK, service_id)) == errno.EISCONN

    def test_still_eisconn_when_the_peer_is_gone(self, world: World) -> None:
        near, far = world.pair()
        with near:
            far.close()
            assert near.connect_ex(NOWHERE) == errno.EISCONN

    @pytest.mark.parametrize("timeout", [0, 5])
    def test_pending_is_ealready(self, world: World, timeout: float) -> None:
        """As with every socket that has a time-out, which are non-blocking underneath."""
        with pending(world) as (sock, _, _):
            sock.settimeout(timeout)
            with pytest.raises(BlockingIOError) as caught:
                sock.connect(NOWHERE)
            assert caught.value.errno == errno.EALREADY
            assert sock.connect_ex(NOWHERE) == errno.EALREADY

    def test_a_blocking_socket_waits_for_the_pending_connect(self, world: World) -> None:
        with pending(world) as (sock, listener, _):
            sock.settimeout(None)
            job = Job(lambda: sock.connect(NOWHERE))
            assert job.is_blocked()
            listener.accept()[0].close()
            job.result()
            assert sock.getpeername() != NOWHERE

    def test_a_settled_one_tells_its_outcome_once(self, fake: FakeBroker) -> None:
        with fake.connector() as sock:
            assert sock.connect_ex(NOWHERE) == errno.EINPROGRESS
            with fake.establish():
                assert writable(sock)
                assert sock.connect_ex(NOWHERE) == 0
                assert sock.connect_ex(NOWHERE) == errno.EISCONN
        with fake.connector() as sock:
            assert sock.connect_ex(NOWHERE) == errno.EINPROGRESS
            fake.refuse(errno.EACCES, "no")
            assert writable(sock)
            assert sock.connect_ex(NOWHERE) == errno.EACCES
            assert sock.connect_ex(NOWHERE) == errno.EINPROGRESS


class TestAgain:
    """After a refusal the same object, with the same descriptor, can connect again."""

    @pytest.mark.parametrize("type_", TYPES)
    @pytest.mark.parametrize("blocking", [True, False])
    def test_after_refusals(self, world: World, type_: int, blocking: bool) -> None:
        service_id = ServiceId.new()
        with world.fresh(type=type_, blocking=blocking) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000)
            number = sock.fileno()
            for _ in range(3):
                code = sock.connect_ex((HV_GUID_LOOPBACK, service_id))
                if not blocking:
                    assert code == errno.EINPROGRESS
                    assert writable(sock)
                    code = so_error(sock)
                assert code == errno.ECONNREFUSED
            with world.listener(world.host, HV_GUID_LOOPBACK, service_id, type=type_) as listener:
                code = sock.connect_ex((HV_GUID_LOOPBACK, service_id))
                assert writable(sock)
                assert so_error(sock) == 0
                assert code == (0 if blocking else errno.EINPROGRESS)
                assert sock.fileno() == number
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 60_000
                assert os.get_blocking(number) is False
                sock.send(b"data")
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.recv(10) == b"data"

    def test_an_event_loop_registers_it_anew(self, world: World) -> None:
        """The kernel's socket is another one, which epoll knows nothing of; selectors cope."""
        import selectors

        listener, service_id = world.loopback()
        with listener, world.fresh(blocking=False) as sock, selectors.EpollSelector() as selector:
            for target, code in ((ServiceId.new(), errno.ECONNREFUSED), (service_id, 0)):
                sock.connect_ex((HV_GUID_LOOPBACK, target))
                selector.register(sock, selectors.EVENT_WRITE)
                assert selector.select(WAIT_SECONDS)
                selector.unregister(sock)
                assert so_error(sock) == code

    def test_a_failure_that_nobody_read_is_told_first(self, fake: FakeBroker) -> None:
        with fake.connector() as sock:
            sock.connect_ex(NOWHERE)
            fake.refuse(errno.EACCES, "no")
            assert writable(sock)
            repr(sock)  # looks, and must not take it
            with fails(errno.ENOTCONN):
                sock.getpeername()
            with pytest.raises(PermissionError):
                sock.connect(NOWHERE)
            assert sock.connect_ex(NOWHERE) == errno.EINPROGRESS

    def test_to_another_broker_when_the_first_was_not_there(self, fake: FakeBroker) -> None:
        with hvsock.socket(partition=f"{fake.folder}/later") as sock:
            sock.settimeout(0)
            assert sock.connect_ex(NOWHERE) == errno.ENETUNREACH
            os.symlink(fake.folder, f"{fake.folder}/later")
            assert sock.connect_ex(NOWHERE) == errno.EINPROGRESS

    def test_no_descriptors_are_lost_over_it(self, world: World) -> None:
        with world.fresh() as sock:
            before = set(os.listdir("/proc/self/fd"))
            for _ in range(5):
                assert sock.connect_ex(NOWHERE) == errno.ECONNREFUSED
            with fails(errno.ENOTCONN):
                sock.recv(1)
            # the embedded broker's own come and go meanwhile
            deadline = time.monotonic() + WAIT_SECONDS
            while set(os.listdir("/proc/self/fd")) - before and time.monotonic() < deadline:
                time.sleep(0.001)
            assert set(os.listdir("/proc/self/fd")) <= before


class TestNonBlocking:
    def test_einprogress(self, fake: FakeBroker) -> None:
        with fake.connector() as sock:
            with pytest.raises(BlockingIOError) as caught:
                sock.connect(NOWHERE)
            assert caught.value.errno == errno.EINPROGRESS
            assert so_error(sock) == 0

    @pytest.mark.parametrize("type_", TYPES)
    def test_it_is_never_connected_early(self, world: World, type_: int) -> None:
        with pending(world, type=type_) as (sock, listener, _):
            assert not writable(sock, QUIET_SECONDS)
            assert so_error(sock) == 0
            with fails(errno.ENOTCONN):
                sock.getpeername()
            for act in (lambda: sock.send(b"data"), lambda: sock.recv(1), lambda: sock.sendall(b"data")):
                with pytest.raises(BlockingIOError) as blocked:
                    act()
                assert blocked.value.errno == errno.EAGAIN
            listener.accept()[0].close()
            assert writable(sock)
            assert so_error(sock) == 0
            assert sock.send(b"payload") == 7
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(100) == b"payload"

    def test_its_own_name_is_known(self, world: World) -> None:
        with pending(world) as (sock, listener, _):
            own = sock.getsockname()
            listener.accept()[0].close()
            assert writable(sock)
            assert sock.getsockname() == own
            accepted, peer = listener.accept()
            accepted.close()
            assert peer.service_id == own.service_id

    @pytest.mark.parametrize("type_", TYPES)
    @pytest.mark.parametrize(
        "code", [errno.ECONNREFUSED, errno.EACCES, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH, errno.ETIMEDOUT]
    )
    def test_so_error_has_the_reason_once(self, fake: FakeBroker, code: int, type_: int) -> None:
        with fake.connector(type=type_) as sock:
            sock.connect_ex(NOWHERE)
            fake.refuse(code, "text", type_)
            assert writable(sock)
            assert so_error(sock) == code
            assert so_error(sock) == 0

    def test_so_error_as_bytes(self, fake: FakeBroker) -> None:
        with fake.connector() as sock:
            sock.connect_ex(NOWHERE)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR, 4) == bytes(4)
            fake.refuse(errno.EACCES, "no")
            assert writable(sock)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR, 4) == errno.EACCES.to_bytes(4, "little")

    @pytest.mark.parametrize("method", ["recv", "send", "sendall", "recv_into", "sendmsg", "recvmsg", "recvfrom"])
    def test_data_calls_tell_the_reason_then_enotconn(self, fake: FakeBroker, method: str) -> None:
        argument = {"recv": 10, "recvmsg": 10, "recvfrom": 10, "recv_into": bytearray(10), "sendmsg": [b"data"]}
        with fake.connector() as sock:
            sock.connect_ex(NOWHERE)
            fake.refuse(errno.EACCES, "no")
            assert writable(sock)
            call = getattr(sock, method)
            with pytest.raises(PermissionError):
                call(argument.get(method, b"data"))
            with fails(errno.ENOTCONN):
                call(argument.get(method, b"data"))

    def test_shutdown_while_pending_and_after_a_refusal(self, fake: FakeBroker) -> None:
        with fake.connector() as sock:
            sock.connect_ex(NOWHERE)
            for turn in range(2):
                with fails(errno.ENOTCONN):
                    sock.shutdown(socket.SHUT_WR)
                if turn == 0:
                    fake.refuse(errno.EACCES, "no")
                    assert writable(sock)
            assert so_error(sock) == errno.EACCES

    def test_enobufs_when_the_brokers_queue_is_full(self, tmp_path: Path) -> None:
        """Never EAGAIN, which asyncio takes for a connect that is under way."""
        fake = FakeBroker(tmp_path, backlog=0)
        with fake.connector() as first, fake.connector() as second:
            assert first.connect_ex(NOWHERE) == errno.EINPROGRESS
            with pytest.raises(OSError, match="full") as caught:
                second.connect(NOWHERE)
            assert caught.value.errno == errno.ENOBUFS
            assert not isinstance(caught.value, BlockingIOError)
            fake.take()[0].close()
            assert second.connect_ex(NOWHERE) == errno.EINPROGRESS
        fake.close()

    def test_established_although_the_peer_closed_at_once(self, fake: FakeBroker) -> None:
        with fake.connector() as sock:
            sock.connect_ex(NOWHERE)
            fake.establish().close()
            assert writable(sock)
            assert so_error(sock) == 0
            assert sock.recv(1) == b""
            assert sock.getpeername() == NOWHERE


class TestTimeouts:
    def test_the_sockets_own(self, world: World) -> None:
        """The connect goes on, as TCP's does, and can be waited for again."""
        with pending(world) as (_, listener, first), world.fresh() as sock:
            sock.settimeout(0.05)
            began = time.monotonic()
            with pytest.raises(TimeoutError, match="timed out") as caught:
                sock.connect(first.getpeername())
            assert 0.04 < time.monotonic() - began < WAIT_SECONDS
            assert caught.value.errno is None
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    sock.recv(1)
            listener.accept()[0].close()
            listener.accept()[0].close()
            sock.settimeout(WAIT_SECONDS)
            sock.sendall(b"data")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(10) == b"data"

    def test_connect_ex_is_eagain(self, world: World) -> None:
        with pending(world) as (_, _, first), world.fresh() as sock:
            sock.settimeout(0.01)
            assert sock.connect_ex(first.getpeername()) == errno.EAGAIN

    @pytest.mark.parametrize("blocking", [True, False])
    def test_a_backlog_that_stays_full(self, world: World, blocking: bool) -> None:
        with pending(world) as (_, _, first), world.fresh(blocking=blocking) as sock:
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 50)
            began = time.monotonic()
            code = sock.connect_ex(first.getpeername())
            if not blocking:
                assert code == errno.EINPROGRESS
                assert writable(sock)
                code = so_error(sock)
            assert code == errno.ETIMEDOUT
            assert 0.045 < time.monotonic() - began < WAIT_SECONDS

    def test_a_broker_that_never_answers(self, fake: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
        """A blocking connect gives up by itself, and whatever the broker does later, nobody is half connected."""
        monkeypatch.setattr(socket_module, "ANSWER_GRACE_SECONDS", 0.03)
        with fake.connector() as sock:
            sock.settimeout(None)
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 10)
            with pytest.raises(TimeoutError, match="did not answer") as caught:
                sock.connect(NOWHERE)
            assert caught.value.errno == errno.ETIMEDOUT
            with fake.establish() as late:
                assert late.recv(1) == b""
            with fails(errno.ENOTCONN):
                sock.send(b"data")
            sock.settimeout(0)
            assert sock.connect_ex(NOWHERE) == errno.EINPROGRESS
            with fake.establish() as again:
                sock.settimeout(WAIT_SECONDS)
                sock.sendall(b"data")
                assert again.recv(10) == b"data"

    @pytest.mark.parametrize(("timeout", "code"), [(0.03, None), (None, errno.ETIMEDOUT)])
    def test_a_queue_that_stays_full(self, tmp_path: Path, timeout: float | None, code: int | None) -> None:
        fake = FakeBroker(tmp_path, backlog=0)
        with fake.connector() as first, fake.connector() as second:
            first.connect_ex(NOWHERE)
            second.settimeout(timeout)
            if timeout is None:
                second.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 30)
            with pytest.raises(TimeoutError) as caught:
                second.connect(NOWHERE)
            assert caught.value.errno == code
            assert second.gettimeout() == timeout
            second.settimeout(WAIT_SECONDS)
            second.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, int(WAIT_SECONDS * 1000))
            job = Job(lambda: second.connect(NOWHERE))
            fake.take()[0].close()
            with fake.establish():
                job.result()
        fake.close()

    def test_settimeout_while_pending(self, world: World) -> None:
        with pending(world) as (sock, listener, _):
            sock.settimeout(0.01)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(0)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            sock.settimeout(None)
            job = Job(lambda: sock.recv(10))
            assert job.is_blocked()
            listener.accept()[0].close()
            accepted, _ = listener.accept()
            with accepted:
                assert job.is_blocked()
                accepted.sendall(b"data")
                assert job.result() == b"data"


class TestEndWhilePending:
    def test_close_cancels(self, world: World) -> None:
        with pending(world) as (sock, listener, _):
            sock.close()
            deadline = time.monotonic() + WAIT_SECONDS
            while connecting(world) and time.monotonic() < deadline:
                time.sleep(0.001)
            listener.accept()[0].close()
            listener.settimeout(0)
            assert not readable(listener, QUIET_SECONDS)
            for act in (sock.getpeername, sock.dup, lambda: so_error(sock), lambda: sock.recv(1)):
                with fails(errno.EBADF):
                    act()
            assert sock.detach() == -1
            assert sock.connect_ex(NOWHERE) == errno.EBADF
            repr(sock)

    def test_detach_and_dup_need_an_outcome(self, world: World) -> None:
        with pending(world) as (sock, listener, _):
            for act in (sock.detach, sock.dup, lambda: hvsock.to_plain(sock)):
                with fails(errno.EINPROGRESS):
                    act()
            listener.accept()[0].close()
            assert writable(sock)
            with sock.dup() as twin:
                assert twin.getpeername() == sock.getpeername()
            with socket.socket(fileno=sock.detach()) as plain:
                assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 100_000

    def test_dropping_it_closes_it_at_once(self, fake: FakeBroker) -> None:
        sock = fake.connector()
        sock.connect_ex(NOWHERE)
        descriptor = sock.fileno()
        gc.collect()
        gc.disable()  # there must be no cycle that only the collector finds
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del sock
        finally:
            gc.enable()
        assert [warning.category for warning in caught] == [ResourceWarning]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        connection, _ = fake.take()
        with connection:
            connection.recv(4096)
            assert connection.recv(1) == b""

    def test_a_method_outlives_its_socket(self, fake: FakeBroker) -> None:
        sock = fake.connector()
        sock.connect_ex(NOWHERE)
        method = sock.recv
        sock.close()
        del sock
        with fails(errno.EBADF):
            method(1)

    def test_an_interrupted_connect_stays_pending(self, world: World) -> None:
        """A signal handler that raises ends the wait; the socket is as after a time-out."""

        class InterruptError(Exception):
            pass

        def interrupt(number: int, frame: types.FrameType | None) -> None:
            if frame is not None and frame.f_code is connecting_module.settled.__code__:  # it waits
                raise InterruptError

        main, over = threading.get_ident(), threading.Event()

        def signal_until_over() -> None:
            while not over.wait(0.01):
                signal.pthread_kill(main, signal.SIGUSR1)

        with pending(world) as (_, listener, first), world.fresh() as sock:
            previous = signal.signal(signal.SIGUSR1, interrupt)
            thread = threading.Thread(target=signal_until_over)
            thread.start()
            try:
                with pytest.raises(InterruptError):
                    sock.connect(first.getpeername())
            finally:
                over.set()
                thread.join()
                signal.signal(signal.SIGUSR1, previous)
            sock.settimeout(0)
            with pytest.raises(BlockingIOError):
                sock.send(b"data")
            assert sock.gettimeout() == 0
            for _ in range(2):
                listener.accept()[0].close()
            assert writable(sock)
            sock.send(b"data")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(10) == b"data"

    def test_a_signal_that_is_handled_goes_unnoticed(self, world: World) -> None:
        seen = []
        with pending(world) as (_, listener, first), world.fresh() as sock:
            previous = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
            try:
                main = threading.get_ident()

                def disturb() -> None:
                    signal.pthread_kill(main, signal.SIGUSR1)
                    for _ in range(2):
                        listener.accept()[0].close()

                timer = threading.Timer(0.02, disturb)
                timer.start()
                sock.connect(first.getpeername())
                timer.join()
            finally:
                signal.signal(signal.SIGUSR1, previous)
            assert seen


class TestThreads:
    def test_several_wait_for_one_connect(self, world: World) -> None:
        with pending(world) as (sock, listener, _):
            sock.settimeout(WAIT_SECONDS)
            jobs = [Job(lambda: sock.send(b"x")) for _ in range(5)]
            assert all(job.is_blocked() for job in jobs)
            listener.accept()[0].close()
            assert [job.result() for job in jobs] == [1] * 5
            sock.close()
            accepted, _ = listener.accept()
            with accepted:
                assert receive_all(accepted) == b"xxxxx"

    def test_several_learn_of_one_refusal(self, fake: FakeBroker) -> None:
        """One gets the reason, the others that there is no connection."""
        with fake.connector() as sock:
            sock.connect_ex(NOWHERE)
            sock.settimeout(WAIT_SECONDS)
            jobs = [Job(lambda: sock.recv(1)) for _ in range(5)]
            assert all(job.is_blocked() for job in jobs)
            fake.refuse(errno.EACCES, "no")
            codes = []
            for job in jobs:
                try:
                    job.result()
                except OSError as error:
                    codes.append(error.errno)
            assert Counter(codes) == {errno.EACCES: 1, errno.ENOTCONN: 4}

    def test_sending_during_a_blocking_connect(self, fake: FakeBroker) -> None:
        with fake.connector(blocking=True) as sock:
            connecting = Job(lambda: sock.connect(NOWHERE))
            connection, _ = fake.take()
            with connection:
                wait_until(lambda: "sendall" in vars(sock))  # the request is there a moment before the guards are
                sending = Job(lambda: sock.sendall(b"payload"))
                assert sending.is_blocked()
                connection.recv(2048)
                connecting.result()
                sending.result()
                assert connection.recv(100) == b"payload"

    def test_close_by_another_thread(self, fake: FakeBroker) -> None:
        """The wait goes on until the broker has decided, as with every descriptor on Linux; then it is EBADF."""
        with fake.connector(blocking=True) as sock:
            job = Job(lambda: sock.connect(NOWHERE))
            connection, _ = fake.take()
            with connection:
                sock.close()
                connection.recv(2048)
                connection.shutdown(socket.SHUT_RDWR)
            with fails(errno.EBADF):
                job.result()


class TestMakefile:
    def test_of_a_pending_connect(self, world: World) -> None:
        with pending(world) as (sock, listener, _):
            sock.settimeout(WAIT_SECONDS)
            with sock.makefile("rwb") as file:
                file.write(b"line\n")
                job = Job(file.flush)
                assert job.is_blocked()
                listener.accept()[0].close()
                job.result()
                accepted, _ = listener.accept()
                with accepted:
                    assert accepted.recv(10) == b"line\n"
                    accepted.sendall(b"answer\n")
                    assert file.readline() == b"answer\n"

    def test_of_a_connect_that_is_refused(self, fake: FakeBroker) -> None:
        with fake.connector() as sock:
            sock.connect_ex(NOWHERE)
            sock.settimeout(WAIT_SECONDS)
            with sock.makefile("rb") as file:
                fake.refuse(errno.EACCES, "no")
                with pytest.raises(PermissionError):
                    file.read(1)

    def test_the_socket_is_closed_with_its_last_file(self, world: World) -> None:
        with pending(world) as (sock, _, _):
            file = sock.makefile("rb")
            sock.close()
            assert sock.fileno() >= 0
            file.close()
            assert sock.fileno() == -1


def test_poll_sees_nothing_of_the_request(fake: FakeBroker) -> None:
    """What was registered before the connect reports nothing until it is settled, and then all there is."""
    with fake.connector() as sock, select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        epoll.poll(0)  # a socket that is not connected hangs up
        sock.connect_ex(NOWHERE)
        connection, _ = fake.take()
        with connection:
            assert epoll.poll(QUIET_SECONDS) == []
            connection.recv(4096)
            assert epoll.poll(WAIT_SECONDS) == [(sock.fileno(), select.EPOLLOUT)]
