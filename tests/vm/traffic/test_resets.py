"""How streams end that do not end well: what each side is shown, and why."""

from __future__ import annotations

import os
import signal
import sys

import pytest

import hvsock
from hvsock.addresses import ServiceId

assert sys.platform == "linux"

from tests.faults.processes import child
from tests.support import sample
from tests.vm.guest_scripts.traffic import MAX_BYTES, RECEIVE_BYTES, payload
from tests.vm.support import needs_qemu, wait_until
from tests.vm.traffic.world import Guest, RemoteSocket, World, beside

pytestmark = [needs_qemu, pytest.mark.timeout(sample(180, 600))]

BOTH = pytest.mark.parametrize("by_guest", [True, False], ids=["guest connects", "host connects"])
GONE = (BrokenPipeError, ConnectionResetError)


def sends_until_it_fails(sock: hvsock.socket | RemoteSocket) -> None:
    """Require that sends become errors: the news of a peer that is gone takes its time."""

    def fails() -> bool:
        try:
            sock.send(b"is anybody there?")
        except GONE:
            return True
        return False

    wait_until(fails)


def ended(guest: Guest, reason: str) -> int:
    """How many connections of a guest ended for that reason."""
    return int(guest.report()["total"]["ended"].get(reason, 0))


@BOTH
def test_the_host_closes_with_data_unread(world: World, guest: Guest, by_guest: bool) -> None:
    """A reset; but Linux shows the guest's program an end, after all that came before, and takes nothing more."""
    near, far = world.pair(guest, by_guest)
    before = ended(guest, "host_reset")
    with near, far:
        near.sendall(b"farewell")
        far.sendall(b"nobody reads this")
        assert near.recv(6) == b"nobody"
        near.close()
        assert far.recv(100) == b"farewell"
        assert far.recv(100) == b""
        sends_until_it_fails(far)
    wait_until(lambda: ended(guest, "host_reset") == before + 1)


@BOTH
def test_the_host_closes_while_the_guest_sends(world: World, guest: Guest, by_guest: bool) -> None:
    near, far = world.pair(guest, by_guest)
    with near, far, beside(lambda: far.sendall(payload(0, MAX_BYTES))) as sending:
        assert near.recv(100)
        near.close()
        assert isinstance(sending.exception(), GONE)


@BOTH
def test_the_guest_closes_with_data_unread(world: World, guest: Guest, by_guest: bool) -> None:
    """Linux says in the guest's name that it is done with both directions, and that is a clean end."""
    near, far = world.pair(guest, by_guest)
    with near, far:
        far.sendall(b"farewell")
        near.sendall(b"nobody reads this")
        assert far.recv(6) == b"nobody"
        far.close()
        assert near.recv(100) == b"farewell"
        assert near.recv(100) == b""
        sends_until_it_fails(near)


@BOTH
def test_the_guest_closes_while_the_host_sends(world: World, guest: Guest, by_guest: bool) -> None:
    near, far = world.pair(guest, by_guest)
    with near, far, beside(lambda: near.sendall(payload(0, MAX_BYTES))) as sending:
        assert far.recv(100)
        far.close()
        assert isinstance(sending.exception(), GONE)


@BOTH
def test_all_that_was_sent_ahead_of_a_close_arrives(world: World, guest: Guest, by_guest: bool) -> None:
    for sender in ("host", "guest"):
        near, far = world.pair(guest, by_guest)
        with near, far:
            one, other = (near, far) if sender == "host" else (far, near)
            data = payload(1, RECEIVE_BYTES)  # so much is in the buffers when the sender closes
            one.sendall(data)
            one.close()
            received = b""
            while piece := other.recv(10_000):
                received += piece
            assert received == data


FLOOD = """
import os, socket, sys
from tests.vm.guest_scripts.traffic import payload
sock = socket.socket(socket.AF_VSOCK)
sock.connect((2, int(sys.argv[1])))
while True:
    sock.sendall(payload(0, 1 << 20))
"""


def test_a_program_of_the_guest_is_killed(world: World, guest: Guest) -> None:
    """Its kernel closes the connection as if the program had: a clean end, at any byte."""
    port = world.port()
    with world.listen(port) as listener:
        pid = guest.ask("start", command=["python3", "-c", FLOOD, str(port)])
        near, _ = listener.accept()
        with near:
            received = bytearray()
            while len(received) < 2 << 20:
                received += near.recv(RECEIVE_BYTES)
            assert guest.ask("kill", pid=pid) == -signal.SIGKILL
            while piece := near.recv(RECEIVE_BYTES):
                received += piece
            for start in range(0, len(received), 1 << 20):
                due = payload(0, min(1 << 20, len(received) - start))
                assert received[start : start + (1 << 20)] == due
            sends_until_it_fails(near)


def test_a_program_of_the_host_is_killed(world: World, guest: Guest) -> None:
    """Likewise."""
    service = ServiceId.from_port(world.port())
    with guest.socket() as listener:
        listener.bind((hvsock.HV_GUID_WILDCARD, service))
        listener.listen()

        def flood() -> None:
            with hvsock.create_connection((guest.vm_id, service)) as sock:
                sock.sendall(payload(0, MAX_BYTES))

        with child(flood) as pid:
            far, _ = listener.accept()
            with far:
                received = bytearray(far.recv(RECEIVE_BYTES))
                os.kill(pid, signal.SIGKILL)
                while piece := far.recv(RECEIVE_BYTES):
                    received += piece
                assert len(received) < MAX_BYTES
                assert received == payload(0, len(received))
                sends_until_it_fails(far)
