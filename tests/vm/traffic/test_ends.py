"""What becomes of connections when a VM is paused, reset or killed, its device is, or the broker."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable

import pytest

import hvsock
from hvsock.addresses import ServiceId

assert sys.platform == "linux"

from hvsock.vm import control
from hvsock.vm.runs import State
from hvsock.vm.supervisor import MAX_DEVICE_RESTARTS
from tests.support import SOAK, sample
from tests.vm.guest_scripts import traffic
from tests.vm.guest_scripts.traffic import MAX_BYTES, RECEIVE_BYTES, WAIT_SECONDS, Talk, payload
from tests.vm.support import needs_qemu, wait_until
from tests.vm.traffic.world import Guest, World, beside, reset_after

pytestmark = [needs_qemu, pytest.mark.timeout(sample(180, 3600))]

Record = Callable[[str, object], None]
RESET_SECONDS = 5.0
"""How long a reset may take here; it has to come in one, on a machine that does nothing else."""
BOTH = pytest.mark.parametrize("by_guest", [True, False], ids=["guest connects", "host connects"])
TALKS = 8
KILLS_IN_A_ROW = sample(2, MAX_DEVICE_RESTARTS)


@BOTH
def test_pause(world: World, guest: Guest, by_guest: bool) -> None:
    """Connections that did not ask to live on are reset, and what comes to a paused guest waits."""
    near, far = world.pair(guest, by_guest)
    kept, there = world.pair(guest, by_guest, survives_pause=True)
    service = ServiceId.from_port(world.port())
    with near, far, kept, there, guest.socket() as listener:
        listener.bind((hvsock.HV_GUID_WILDCARD, service))
        listener.listen()
        guest.forget()
        assert control.ask(guest.run, "pause")["state"] == "paused"
        near.settimeout(RESET_SECONDS)
        print(f"reset after {reset_after(near):.3f} s")
        kept.sendall(b"are you there?")
        with hvsock.socket() as late:
            late.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, int(WAIT_SECONDS * 1000))
            late.settimeout(0.3)
            with pytest.raises(TimeoutError):
                late.connect((guest.vm_id, service))
        with hvsock.socket() as waiting:
            waiting.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, int(WAIT_SECONDS * 1000))
            with beside(lambda: waiting.connect((guest.vm_id, service))) as connecting:
                assert not connecting.done()
                assert control.ask(guest.run, "resume")["state"] == "running"
            connecting.result()
        assert there.recv(100) == b"are you there?"
        there.sendall(b"yes")
        assert kept.recv(100) == b"yes"
        assert far.recv(100) == b""


@pytest.mark.soak  # in `make test` test_mixed.py resets a guest
@pytest.mark.parametrize("how", ["reboot -f", "hvsock vm reset"])
def test_a_guest_that_starts_anew(world: World, victim: Guest, how: str) -> None:
    """Its connections are reset, listeners of the host stay, and new connections work."""
    port = world.port()
    before = victim.ask("facts")["boot"]
    with world.listen(port) as listener:
        ends = [world.pair(victim, by_guest)[0] for by_guest in (True, False)]
        if how == "reboot -f":
            victim.ask("reboot")
        else:
            control.ask(victim.run, "reset")
        for near in ends:
            with near:
                near.settimeout(WAIT_SECONDS)  # the guest goes when it likes
                print(f"reset after {reset_after(near):.3f} s")
        victim.forget()
        after = victim.ask("facts")["boot"]
        assert after != before
        arguments = {"count": 3, "size": 100_000, "write_bytes": 10_000}
        finish = victim.begin("connect", work="connect_many", target=("parent", str(port)), arguments=arguments)
        assert traffic.accept_many(listener, **arguments) == []
        assert finish() == []
    assert world.between(victim, False, "many", **arguments) == []
    victim.wait_until_quiet()


def test_a_device_that_is_killed_under_traffic(world: World, guest: Guest) -> None:
    """Both sides of a connection get a reset; the guest, which goes on, has sockets again by another device."""
    chance = random.Random(7)
    for _ in range(sample(1, 10)):
        guest.ensure()
        before = guest.ask("facts")["boot"]
        for _ in range(KILLS_IN_A_ROW):
            _kill_its_device(world, guest, chance.uniform(0, 0.3))
            assert world.between(guest, True, "many", count=3, size=100_000, write_bytes=10_000) == []
        assert guest.ask("facts")["boot"] == before
        if SOAK:
            guest.end()  # with more in a row it would get no more devices
    guest.ensure()


def _kill_its_device(world: World, guest: Guest, seconds: float) -> None:
    """Kill the device of a guest so many seconds after traffic began."""
    near, far = world.pair(guest, by_guest=True)
    before = guest.run.record()
    port = world.port()
    arguments = {"count": TALKS, "size": MAX_BYTES, "write_bytes": 64 * 1024}
    guest.begin("accept", work="accept_many", port=port, type=hvsock.SOCK_STREAM, arguments=arguments)
    target = (guest.vm_id, str(port))
    talks = [
        Talk(
            traffic.connect(target, number),
            payload(number, MAX_BYTES),
            payload(number, MAX_BYTES, answer=True),
            64 * 1024,
        )
        for number in range(TALKS)
    ]
    guest.forget()
    with beside(lambda: traffic.run(talks)) as failures:
        time.sleep(seconds)
        os.kill(before.device_pid, signal.SIGKILL)
        near.settimeout(RESET_SECONDS)
        with near:
            print(f"reset after {reset_after(near):.3f} s")
    assert failures.result(), "all was over before the device was killed"
    assert [
        one for one in failures.result() if "ConnectionResetError" not in one and "BrokenPipe" not in one
    ] == []
    wait_until(lambda: guest.run.record().device_restarts == before.device_restarts + 1)
    with far:
        with pytest.raises(OSError, match="not connected"):  # Linux keeps the reset for those who ask for it
            far.recv(RECEIVE_BYTES)
        assert far.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR) == errno.ECONNRESET


def test_a_device_that_is_killed_while_its_guest_cannot_let_go_of_it(world: World, victim: Guest) -> None:
    """While it is paused, and in the soak while it has hardly started: it has another device once it goes on."""
    arguments = {"count": 3, "size": 100_000, "write_bytes": 10_000}
    before = victim.run.record()
    victim.forget()
    control.ask(victim.run, "pause")
    os.kill(before.device_pid, signal.SIGKILL)
    wait_until(lambda: victim.run.record().device_pid == 0)
    assert control.ask(victim.run, "resume")["state"] == "running"
    wait_until(lambda: victim.run.record().device_restarts == before.device_restarts + 1)
    after = victim.run.record()
    assert (after.qemu_pid, after.reason) == (before.qemu_pid, "")
    assert after.device_pid not in (0, before.device_pid)
    boot = victim.ask("facts")["boot"]
    assert world.between(victim, False, "many", **arguments) == []
    if not SOAK:
        return  # a reset takes its time
    victim.forget()
    control.ask(victim.run, "reset")
    os.kill(victim.run.record().device_pid, signal.SIGKILL)
    assert victim.ask("facts")["boot"] != boot
    assert world.between(victim, True, "many", **arguments) == []
    wait_until(lambda: victim.run.record().device_restarts == before.device_restarts + 2)
    assert (victim.run.record().state, victim.run.record().reason) == (State.RUNNING, "")
