"""Graceful disconnect: everything sent arrives, whatever becomes of the sender, and a loss is a reset."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import subprocess
import sys

import pytest

assert sys.platform == "linux"

from hvsock import HV_GUID_CHILDREN, HV_GUID_PARENT
from hvsock.fabric.embedded import EmbeddedFabric
from tests.sockets.support import (
    ROOT,
    WAIT_SECONDS,
    Job,
    Pair,
    World,
    fails,
    readable,
    receive_all,
)

DATA = bytes(range(256)) * 100
"""What a connection holds: a send with a time-out waits for poll, which wants most of the buffer free."""


@pytest.fixture(params=["connector sends", "accepted end sends"])
def ends(world: World, request: pytest.FixtureRequest) -> Pair:
    """(who sends, who receives), both ways round; the test closes them."""
    connector, accepted = world.pair()
    return (connector, accepted) if request.param == "connector sends" else (accepted, connector)


class TestShutdown:
    def test_sending(self, ends: Pair) -> None:
        near, far = ends
        with near, far:
            near.sendall(DATA)
            near.shutdown(socket.SHUT_WR)
            with pytest.raises(BrokenPipeError):
                near.send(b"late")
            assert receive_all(far) == DATA
            assert far.recv(1) == b""
            far.sendall(b"the other way")
            assert near.recv(100) == b"the other way"

    def test_receiving(self, ends: Pair) -> None:
        """The own recv ends; what the peer sends on is a BrokenPipeError on Linux, not silently lost."""
        near, far = ends
        with near, far:
            near.shutdown(socket.SHUT_RD)
            assert near.recv(1) == b""
            with pytest.raises(BrokenPipeError):
                far.send(b"in vain")
            near.sendall(b"the other way")
            assert far.recv(100) == b"the other way"

    def test_receiving_keeps_what_has_arrived(self, ends: Pair) -> None:
        near, far = ends
        with near, far:
            far.sendall(b"arrived")
            near.shutdown(socket.SHUT_RD)
            assert near.recv(100) == b"arrived"
            assert near.recv(100) == b""

    def test_both(self, ends: Pair) -> None:
        near, far = ends
        with near, far:
            near.sendall(b"before")
            near.shutdown(socket.SHUT_RDWR)
            assert near.recv(1) == b""
            assert receive_all(far) == b"before"

    @pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
    def test_twice(self, ends: Pair, how: int) -> None:
        near, far = ends
        with near, far:
            near.shutdown(how)
            near.shutdown(how)

    def test_in_no_way(self, ends: Pair) -> None:
        near, far = ends
        with near, far, fails(errno.EINVAL):
            near.shutdown(77)

    def test_while_the_peer_waits(self, ends: Pair) -> None:
        near, far = ends
        with near, far:
            job = Job(lambda: receive_all(far))
            near.sendall(DATA)
            near.shutdown(socket.SHUT_WR)
            assert job.result() == DATA

    def test_of_a_twin(self, ends: Pair) -> None:
        """shutdown counts for the connection, close for one descriptor."""
        near, far = ends
        with near, far, near.dup() as twin:
            near.close()
            twin.sendall(b"still there")
            assert far.recv(100) == b"still there"
            twin.shutdown(socket.SHUT_WR)
            assert far.recv(100) == b""


class TestClose:
    def test_everything_sent_arrives(self, ends: Pair) -> None:
        near, far = ends
        with far:
            near.sendall(DATA)
            near.close()
            assert receive_all(far) == DATA

    def test_more_than_the_buffers(self, ends: Pair) -> None:
        near, far = ends
        with far:

            def send() -> None:
                with near:
                    near.sendall(DATA * 200)

            job = Job(send)
            assert hashlib.sha256(receive_all(far)).digest() == hashlib.sha256(DATA * 200).digest()
            job.result()

    def test_unread_data_is_a_reset_at_the_peer(self, ends: Pair) -> None:
        near, far = ends
        with near:
            near.sendall(b"read, unread")
            assert far.recv(4) == b"read"
            far.sendall(b"sent before")
            far.close()
            assert near.recv(100) == b"sent before"
            with pytest.raises(ConnectionResetError):
                near.recv(100)
            with pytest.raises(BrokenPipeError):
                near.send(b"data")

    def test_a_reset_shows_in_so_error(self, ends: Pair) -> None:
        near, far = ends
        with near:
            near.sendall(b"unread")
            far.close()
            assert readable(near)
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET

    def test_everything_read_is_no_reset(self, ends: Pair) -> None:
        near, far = ends
        with near:
            near.sendall(DATA)
            read = 0
            while read < len(DATA):
                read += len(far.recv(1 << 20))
            far.close()
            assert near.recv(1) == b""

    def test_before_accept(self, world: World) -> None:
        """Data, and the end, wait in the backlog."""
        service_id = world.service()
        with world.listener(world.host, HV_GUID_CHILDREN, service_id) as listener:
            for number in range(5):
                with world.fresh(world.vm) as sock:
                    sock.connect((HV_GUID_PARENT, service_id))
                    sock.sendall(DATA + bytes([number]))
            for number in range(5):
                accepted, _ = listener.accept()
                with accepted:
                    assert receive_all(accepted) == DATA + bytes([number])

    def test_the_fabric_may_end_meanwhile(self) -> None:
        with EmbeddedFabric() as fabric:
            near, far = World.make(fabric).pair()
            near.sendall(DATA)
        with near, far:
            near.shutdown(socket.SHUT_WR)
            assert receive_all(far) == DATA
            far.sendall(b"answer")
            assert near.recv(100) == b"answer"


SENDER = """
import hashlib, os, sys
import hvsock
sock = hvsock.create_connection(("parent", sys.argv[1]), 20)
sent = hashlib.sha256()
for number in range(6):
    piece = os.urandom(4_000)
    sock.sendall(piece)
    sent.update(piece)
print(sent.hexdigest(), flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
elif sys.argv[2] == "abort":
    os.abort()
os._exit(0)
"""


class TestSenderIsGone:
    """Its data were taken by send before; they arrive, and then the stream ends."""

    @pytest.mark.parametrize("how", ["exit", "abort", "kill"])
    @pytest.mark.parametrize("accept", ["before", "after"])
    def test_its_data_arrive(self, world: World, how: str, accept: str) -> None:
        service_id = world.service()
        environ = {**os.environ, "HVSOCK_DIR": world.fabric.folder, "HVSOCK_PARTITION": world.vm.folder}
        with (
            world.listener(world.host, HV_GUID_CHILDREN, service_id) as listener,
            subprocess.Popen(
                [sys.executable, "-c", SENDER, service_id, "wait" if how == "kill" else how],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as sender,
        ):
            listener.settimeout(WAIT_SECONDS)
            early = listener.accept()[0] if accept == "before" else None
            assert sender.stdout is not None
            digest = sender.stdout.readline().strip()
            if how == "kill":
                sender.send_signal(signal.SIGKILL)
            sender.wait(WAIT_SECONDS)
            with early or listener.accept()[0] as accepted:
                accepted.settimeout(WAIT_SECONDS)
                assert hashlib.sha256(receive_all(accepted)).hexdigest() == digest

    def test_killed_with_data_unread_is_a_reset(self, world: World) -> None:
        service_id = world.service()
        code = "import hvsock, sys; s = hvsock.create_connection(('parent', sys.argv[1]), 20); s.recv(1); input()"
        environ = {**os.environ, "HVSOCK_DIR": world.fabric.folder, "HVSOCK_PARTITION": world.vm.folder}
        with (
            world.listener(world.host, HV_GUID_CHILDREN, service_id) as listener,
            subprocess.Popen(
                [sys.executable, "-c", code, service_id], cwd=ROOT, env=environ, stdin=subprocess.PIPE
            ) as peer,
        ):
            listener.settimeout(WAIT_SECONDS)
            accepted, _ = listener.accept()
            with accepted:
                accepted.settimeout(WAIT_SECONDS)
                accepted.sendall(DATA)
                peer.send_signal(signal.SIGKILL)
                peer.wait(WAIT_SECONDS)
                with pytest.raises(ConnectionResetError):
                    accepted.recv(1)
