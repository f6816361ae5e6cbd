"""Streams between real guests and their host: all bytes, in all sizes, in both directions, many at once."""

from __future__ import annotations

import sys

import pytest

import hvsock

assert sys.platform == "linux"

from tests.support import SOAK, sample
from tests.vm.guest_scripts.traffic import payload
from tests.vm.support import needs_qemu
from tests.vm.traffic.conftest import KINDS
from tests.vm.traffic.world import Guest, RemoteSocket, World, beside

pytestmark = [needs_qemu, pytest.mark.timeout(sample(180, 3600))]

EVERYWHERE = [(name, by_guest) for name in KINDS for by_guest in (True, False)]
BOTH = EVERYWHERE if SOAK else [("web01", True), ("web02", False)]
"""Guests, and whether they connect or the host does; in `make test` each kernel and each direction occurs."""
ONE = EVERYWHERE if SOAK else [("web02", True)]
MIB = 1 << 20
MANY = 200
EACH_BYTES = sample(MIB // 8, MIB)
IN_A_ROW = sample(250, 2_000)
STALLED_BYTES = 4 * MIB
"""More than all the buffers on the way hold."""


@pytest.mark.parametrize(("name", "by_guest"), BOTH)
def test_many_at_once(world: World, name: str, by_guest: bool) -> None:
    """200 connections, over each of which as much goes either way at the same time."""
    guest = world.guest(name)
    assert world.between(guest, by_guest, "many", count=MANY, size=EACH_BYTES, write_bytes=64 * 1024) == []
    guest.wait_until_quiet()


@pytest.mark.parametrize(("name", "by_guest"), ONE)
def test_one_after_another(world: World, name: str, by_guest: bool) -> None:
    guest = world.guest(name)
    assert world.between(guest, by_guest, "in_a_row", count=IN_A_ROW) == []
    guest.wait_until_quiet()


@pytest.mark.parametrize("by_guest", [True, False] if SOAK else [False])
def test_sizes(world: World, guest: Guest, by_guest: bool) -> None:
    """Small writes and large ones, and sizes about the limits of packets and buffers."""
    assert world.between(guest, by_guest, "sizes") == []


def test_a_host_that_does_not_read_stalls_only_itself(world: World, guest: Guest) -> None:
    near, far = world.pair(guest, by_guest=True)
    with near, far:
        _stalls_only_itself(world, guest, far, near)


@pytest.mark.soak
def test_a_guest_that_does_not_read_stalls_only_itself(world: World, guest: Guest) -> None:
    near, far = world.pair(guest, by_guest=False)
    with near, far:
        _stalls_only_itself(world, guest, near, far)


def _stalls_only_itself(
    world: World, guest: Guest, sender: hvsock.socket | RemoteSocket, receiver: hvsock.socket | RemoteSocket
) -> None:
    """All that is sent arrives once the receiver reads; others do not wait for that."""
    data = payload(0, STALLED_BYTES)
    with beside(lambda: sender.sendall(data)) as sending:
        for by_guest in (True, False):
            assert world.between(guest, by_guest, "many", count=5, size=MIB, write_bytes=64 * 1024) == []
        assert not sending.done()
        received = 0
        while received < STALLED_BYTES:
            piece = receiver.recv(256 * 1024)
            assert piece
            assert piece == data[received : received + len(piece)]
            received += len(piece)
    sending.result()
