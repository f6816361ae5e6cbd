"""Guests that are killed; the last tests here, so that nobody needs them again."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

assert sys.platform == "linux"

from hvsock.vm.runs import State
from tests.support import SOAK, sample
from tests.vm.guest_scripts.traffic import MAX_BYTES, payload
from tests.vm.support import needs_qemu, wait_until
from tests.vm.traffic.test_ends import RESET_SECONDS, Record
from tests.vm.traffic.world import Guest, World, beside, processes_in, reset_after
from tests.waiting import is_alive

pytestmark = [needs_qemu, pytest.mark.timeout(sample(180, 3600))]

KILLS = {
    "QEMU": lambda guest: guest.run.record().qemu_pid,
    "its supervisor": lambda guest: guest.run.record().pid,
}


@pytest.mark.parametrize("who", KILLS if SOAK else ["QEMU"])
def test_a_guest_that_is_killed(world: World, victim: Guest, who: str, record_property: Record) -> None:
    """The host sees resets within a second, never a clean end; nothing is left of the VM."""
    ends = [world.pair(victim, by_guest) for by_guest in (True, False)]
    with beside(lambda: ends[0][0].sendall(payload(0, MAX_BYTES))) as sending:  # nobody reads it
        time.sleep(0.1)
        assert not sending.done()
        victim.forget()
        os.kill(KILLS[who](victim), signal.SIGKILL)
        for near, _ in ends:
            near.settimeout(RESET_SECONDS)
            seconds = reset_after(near)
            record_property("seconds", seconds)
            print(f"reset after {seconds:.3f} s")
        assert isinstance(sending.exception(), OSError)
    for near, _ in ends:
        near.close()
    victim.run.wait_for_end()
    wait_until(lambda: not [pid for pid in processes_in(victim.run.folder) if is_alive(pid)])
    record = victim.run.record()
    assert (record.state, record.pid, record.qemu_pid, record.device_pid) == (State.STOPPED, 0, 0, 0)
    with pytest.raises(ConnectionRefusedError):
        world.connect(victim, world.port())
