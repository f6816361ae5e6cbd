"""Duplicates, descriptors given away and inherited, files made of sockets, and sockets sent to processes."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import HV_GUID_LOOPBACK, HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, SOCK_SEQPACKET
from hvsock.sockets.socket import socket as hv_socket
from tests.sockets.support import ROOT, WAIT_SECONDS, Job, Pair, World, fails, receive_all


@pytest.fixture
def pair(world: World) -> Iterator[Pair]:
    near, far = world.pair()
    with near, far:
        yield near, far


class TestDup:
    def test_a_connection(self, pair: Pair) -> None:
        near, far = pair
        near.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 1)
        near.settimeout(3)
        with near.dup() as twin:
            assert type(twin) is hvsock.socket
            assert twin.getsockname() == near.getsockname()
            assert twin.getpeername() == near.getpeername()
            assert twin.gettimeout() == 3
            assert twin.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND) == 1
            assert not twin.get_inheritable()
            twin.sendall(b"data")
            assert far.recv(10) == b"data"
            with fails(errno.EISCONN):
                twin.connect((HV_GUID_LOOPBACK, hvsock.ServiceId.new()))

    def test_a_listener(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, listener.dup() as twin, world.fresh() as sock:
            listener.close()
            assert twin.getsockname() == (HV_GUID_LOOPBACK, service_id)
            twin.listen(7)
            sock.connect((HV_GUID_LOOPBACK, service_id))
            twin.accept()[0].close()

    def test_a_bound_socket(self, world: World) -> None:
        with world.fresh() as sock, world.fresh() as connector:
            sock.bind((HV_GUID_LOOPBACK, hvsock.HV_GUID_ZERO))
            with sock.dup() as twin:
                twin.listen()
                connector.connect(sock.getsockname())
                with fails(errno.EINVAL):
                    twin.bind((HV_GUID_LOOPBACK, hvsock.HV_GUID_ZERO))

    def test_a_refused_one_can_connect(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as sock:
            assert sock.connect_ex((HV_GUID_LOOPBACK, hvsock.ServiceId.new())) == errno.ECONNREFUSED
            with sock.dup() as twin:
                twin.connect((HV_GUID_LOOPBACK, service_id))
                twin.sendall(b"data")


class TestDetach:
    def test_what_is_left(self, pair: Pair) -> None:
        near, far = pair
        with socket.socket(fileno=near.detach()) as plain:
            assert near.fileno() == -1
            plain.sendall(b"data")
            assert far.recv(10) == b"data"
            with fails(errno.EBADF):
                near.send(b"data")
            near.close()
            plain.sendall(b"more")
            assert far.recv(10) == b"more"

    def test_to_plain(self, pair: Pair) -> None:
        near, far = pair
        near.settimeout(2.5)
        with hvsock.to_plain(near) as plain:
            assert type(plain) is socket.socket
            assert plain.gettimeout() == 2.5
            assert plain.family == socket.AF_UNIX
            assert near.fileno() == -1
            plain.sendall(b"data")
            assert far.recv(10) == b"data"

    def test_to_plain_without_addresses(self, pair: Pair) -> None:
        near, far = pair
        with hvsock.to_plain(hv_socket(fileno=near.detach())) as plain:
            plain.sendall(b"data")
            assert far.recv(10) == b"data"

    def test_to_plain_of_a_message_socket(self) -> None:
        near, far = hvsock.socketpair(type=SOCK_SEQPACKET)
        with far, hvsock.to_plain(near) as plain:
            assert plain.type == SOCK_SEQPACKET

    def test_to_plain_of_what_is_not_connected(self, world: World) -> None:
        listener, _ = world.loopback()
        with listener, world.fresh() as sock:
            for one in (listener, sock):
                with fails(errno.ENOTCONN):
                    hvsock.to_plain(one)
                assert one.fileno() >= 0
            sock.close()
            with fails(errno.EBADF):
                hvsock.to_plain(sock)


class TestInheritance:
    def test_not_by_default(self, pair: Pair) -> None:
        near, far = pair
        for sock in (near, far):
            assert not sock.get_inheritable()
            done = subprocess.run(
                [sys.executable, "-c", "import os, sys; os.fstat(int(sys.argv[1]))", str(sock.fileno())],
                close_fds=False,
                capture_output=True,
                text=True,
                check=False,
                timeout=WAIT_SECONDS,
            )
            assert "Bad file descriptor" in done.stderr

    def test_on_purpose(self, pair: Pair) -> None:
        near, far = pair
        code = """
import hvsock, sys
with hvsock.socket(fileno=int(sys.argv[1])) as sock:
    sock.sendall(sock.recv(100).upper())
"""
        far.sendall(b"shout")
        done = subprocess.run(
            [sys.executable, "-c", code, str(near.fileno())],
            pass_fds=[near.fileno()],
            cwd=ROOT,
            check=False,
            timeout=WAIT_SECONDS,
        )
        assert done.returncode == 0
        assert far.recv(100) == b"SHOUT"

    def test_by_fork(self, pair: Pair) -> None:
        near, far = pair
        pid = os.fork()
        if pid == 0:
            try:
                near.sendall(str(near.getpeername()).encode())
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert far.recv(200) == str(near.getpeername()).encode()


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.soak), "fork"])
def test_multiprocessing(world: World, method: str) -> None:
    """Processes take sockets as arguments, however they are started; uvicorn's workers rely on it."""
    program = Path(__file__).with_name("programs") / "processes.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), method],
        env={**os.environ, "HVSOCK_DIR": world.fabric.folder},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


class TestMakefile:
    def test_lines(self, pair: Pair) -> None:
        near, far = pair
        with near.makefile("rw", encoding="utf-8", newline="\n") as one, far.makefile("rwb") as other:
            one.write("grüße\n")
            one.flush()
            assert other.readline() == "grüße\n".encode()
            other.write(b"answer\n")
            other.flush()
            assert one.readline() == "answer\n"

    def test_it_holds_the_connection(self, pair: Pair) -> None:
        near, far = pair
        file = near.makefile("rb")
        near.close()
        far.sendall(b"line\n")
        assert file.readline() == b"line\n"
        file.close()
        assert far.recv(1) == b""


class TestSendfile:
    @pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
    def test_a_file(self, pair: Pair, size: int) -> None:
        near, far = pair
        data = os.urandom(size)
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.seek(0)
            job = Job(lambda: receive_all(far))
            assert near.sendfile(file) == size
            near.shutdown(socket.SHUT_WR)
            assert hashlib.sha256(job.result()).digest() == hashlib.sha256(data).digest()
            assert file.tell() == size

    def test_a_part_of_it(self, pair: Pair) -> None:
        near, far = pair
        with tempfile.TemporaryFile() as file:
            file.write(bytes(range(100)))
            file.flush()
            assert near.sendfile(file, 10, 20) == 20
            assert far.recv(100) == bytes(range(10, 30))

    def test_what_is_no_regular_file(self, pair: Pair) -> None:
        import io

        near, far = pair
        assert near.sendfile(io.BytesIO(b"in memory")) == 9
        assert far.recv(100) == b"in memory"


class TestAddressedCalls:
    """recvfrom and sendto, which on a stream have nothing to say about addresses."""

    def test_recvfrom(self, pair: Pair) -> None:
        near, far = pair
        far.sendall(b"data")
        assert near.recvfrom(2) == (b"da", near.getpeername())
        assert near.recvfrom(10, socket.MSG_DONTWAIT) == (b"ta", near.getpeername())

    def test_recvfrom_into(self, pair: Pair) -> None:
        near, far = pair
        far.sendall(b"data")
        buffer = bytearray(10)
        assert near.recvfrom_into(buffer, 2) == (2, near.getpeername())
        assert near.recvfrom_into(buffer, flags=socket.MSG_DONTWAIT) == (2, near.getpeername())
        assert buffer[:2] == b"ta"

    def test_sendto(self, pair: Pair) -> None:
        near, far = pair
        assert near.sendto(b"data", near.getpeername()) == 4
        assert near.sendto(b"more", socket.MSG_DONTWAIT, near.getpeername()) == 4
        assert far.recv(100) == b"datamore"
        with pytest.raises(TypeError, match=r"sendto\(\) takes 2 or 3 arguments \(1 given\)"):
            near.sendto(b"data")
        with pytest.raises(TypeError):
            near.sendto(b"data", 0, near.getpeername(), 7)


class TestNoOverhead:
    """recv and send of an established connection are the standard library's own functions."""

    METHODS = (
        *("recv", "recv_into", "recvmsg", "recvmsg_into"),
        *("send", "sendall", "sendmsg", "sendfile", "makefile", "fileno", "settimeout"),
    )

    def test_the_class(self) -> None:
        for name in self.METHODS:
            assert name not in vars(hvsock.socket)
            assert getattr(hvsock.socket, name) is getattr(socket.socket, name)

    def test_every_kind_of_connection(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as blocking, world.fresh(blocking=False) as late:
            blocking.connect((HV_GUID_LOOPBACK, service_id))
            late.connect_ex((HV_GUID_LOOPBACK, service_id))
            late.settimeout(WAIT_SECONDS)
            late.sendall(b"data")
            accepted, _ = listener.accept()
            one, other = hvsock.socketpair()
            with accepted, one, other, blocking.dup() as twin:
                for sock in (blocking, late, accepted, one, other, twin):
                    assert type(sock) is hvsock.socket
                    assert not set(self.METHODS) & set(vars(sock))
