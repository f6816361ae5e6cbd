"""What a broker's end means to the connections of a real guest."""

from __future__ import annotations

import sys

import pytest

import hvsock

assert sys.platform == "linux"

from tests.support import sample
from tests.vm.guest_scripts.traffic import MAX_BYTES
from tests.vm.support import wait_until
from tests.vm.traffic.world import Guest, World, beside

TALKS = 8


def killed_under_traffic(world: World, guest: Guest) -> None:
    """Require that connections of VMs go on, byte for byte, and new ones are made when there is a broker again."""
    near, far = world.pair(guest, by_guest=True)
    with near, far:
        for turn in range(sample(1, 30)):
            arguments = {"count": TALKS, "size": MAX_BYTES, "write_bytes": 64 * 1024}
            with beside(lambda: world.between(guest, bool(turn % 2), "many", **arguments)) as failures:  # noqa: B023
                wait_until(lambda: guest.report()["connections"] >= TALKS)
                world.broker.kill()
                near.sendall(b"still here")
                assert far.recv(100) == b"still here"
                with pytest.raises(OSError, match="no broker"):
                    hvsock.create_connection((guest.vm_id, "1"), 1)
                world.broker.start()
            assert failures.result() == []
            far.sendall(b"and now")
            assert near.recv(100) == b"and now"
