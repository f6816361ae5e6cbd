"""Traffic of all kinds while the VM is paused, resumed and reset at random."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import hvsock
from hvsock.addresses import ServiceId

assert sys.platform == "linux"

from hvsock.vm import control
from tests.support import sample
from tests.vm.guest_scripts import traffic
from tests.vm.guest_scripts.traffic import BEFORE_NUMBER
from tests.vm.support import needs_qemu, wait_until
from tests.vm.traffic.world import Guest, World, connected_for_good

pytestmark = [needs_qemu, pytest.mark.timeout(sample(240, 2400))]

SECONDS = sample(20, 600)
WARM_SECONDS = 2.0
"""Traffic ahead of the first look at the device's memory."""
SECONDS_PER_RESET = sample(12, 40)
"""Traffic ahead of a reset; an emulated guest needs some seconds to start."""
SETTLE_SECONDS = 3.0
"""A connection may wait so long to be accepted after it was reset."""
CONNECTORS = 3
GROWTH_BYTES = 12 << 20
"""How much the device's memory may grow: what an allocator keeps, and not what a leak takes in so much traffic."""


class Disturbances:
    """When the VM was paused and reset, and what went wrong that these do not explain."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.resets: list[float] = []
        self.unexplained: list[str] = []
        self.explained = 0
        self.passed = 0
        self._failures: list[tuple[float, str, bool]] = []

    def note(self, since: float, failure: str, *, survives_pause: bool) -> None:
        """Something went wrong over a connection that there was since then."""
        self._failures.append((since, failure, survives_pause))

    def explain(self) -> None:
        """Tell what was to be expected, once all is over: until then the end of a pause may not be known."""
        for since, failure, survives_pause in self._failures:
            is_reset = failure.startswith(("ConnectionResetError", "BrokenPipeError", "ConnectionRefusedError"))
            times = self.resets if survives_pause else self.pauses + self.resets
            if is_reset and any(one >= since for one in times):
                self.explained += 1
            else:
                distances = [round(one - since, 3) for one in times]
                self.unexplained.append(f"{failure} ({survives_pause=}, disturbed after {distances} s)")


@contextlib.contextmanager
def running(*works: Callable[[], object]) -> Iterator[None]:
    """Run each in a thread beside the body, to their ends."""
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()
    assert not failures, failures


class Mixture:
    """Connections of both sides, that survive pauses and that do not, for some time.

    Args:
        world: the fabric.
        guest: the VM.
        seconds: how long.
        seed: of all that is random.
    """

    def __init__(self, world: World, guest: Guest, seconds: float, seed: int) -> None:
        self.seen = Disturbances()
        self._guest = guest
        self._chance = random.Random(seed)
        self._begun = time.monotonic()
        self._end = self._begun + seconds
        self._service = ServiceId.from_port(world.port())
        self._ports = {True: world.port(), False: world.port()}
        """The host's listeners: whether connections to it survive pauses."""

    def run(self, *, disturbed: bool) -> None:
        """Go through it."""
        works: list[Callable[[], object]] = [
            functools.partial(self._connect, number) for number in range(CONNECTORS)
        ]
        works += [functools.partial(self._accept, survives) for survives in self._ports]
        self._begin_in_the_guest()
        with running(*works):
            while disturbed and (self._left > 0 or not self.seen.resets):  # a slow machine comes to one late
                self._disturb()
        self.seen.explain()

    @property
    def _left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def _begin_in_the_guest(self) -> None:
        """The guest's side; what it sees is no more than what the host sees, since Linux shows it no resets."""
        seconds = self._left
        self._guest.ask(
            "accept", beside=True, work="accept_churn", port=self._service.port, type=hvsock.SOCK_STREAM,
            arguments={"seconds": seconds + SETTLE_SECONDS},
        )  # fmt: skip
        for port in self._ports.values():
            arguments = {"seconds": seconds, "seed": self._chance.randrange(1 << 20)}
            target = ("parent", str(port))
            self._guest.ask("connect", beside=True, work="connect_churn", target=target, arguments=arguments)

    def _accept(self, survives_pause: bool) -> None:
        with hvsock.socket() as listener:
            listener.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECTED_SUSPEND, int(survives_pause))
            listener.bind((hvsock.HV_GUID_CHILDREN, ServiceId.from_port(self._ports[survives_pause])))
            listener.listen(256)

            def failed(begun: float, text: str) -> None:
                early = text.startswith(BEFORE_NUMBER)  # a pause ends what the guest is about to open in any case
                text = text.removeprefix(BEFORE_NUMBER)
                self.seen.note(begun - SETTLE_SECONDS, text, survives_pause=survives_pause and not early)

            traffic.serve_churn(listener, lambda: time.monotonic() < self._end + SETTLE_SECONDS, failed)

    def _connect(self, seed: int) -> None:
        chance = random.Random(seed)
        target = (self._guest.vm_id, self._service)
        while self._left:
            survives_pause = chance.random() < 0.5
            since, number = time.monotonic(), chance.randrange(1 << 20)
            try:
                if survives_pause:
                    sock = connected_for_good(target)
                else:
                    sock = hvsock.create_connection(target, traffic.WAIT_SECONDS, retry=True)
            except OSError as error:
                self.seen.unexplained.append(f"connect: {error!r}")
                continue
            try:
                sock.sendall(traffic.NUMBER.pack(number))
            except OSError as error:
                sock.close()
                self.seen.note(since, f"{error!r}", survives_pause=survives_pause)
                continue
            failures = traffic.run([traffic.churning(number, sock, accepted=False)])
            for failure in failures:
                self.seen.note(since, failure, survives_pause=survives_pause)
            self.seen.passed += not failures

    def _disturb(self) -> None:
        time.sleep(min(self._left, self._chance.uniform(0.1, 1.5)))
        run = self._guest.run
        last = max(self.seen.resets, default=self._begun)
        late = self._left <= SETTLE_SECONDS and self.seen.resets
        if time.monotonic() - last > SECONDS_PER_RESET and not late:
            self.seen.resets.append(time.monotonic())
            control.ask(run, "reset")
            self.seen.resets.append(time.monotonic())
            self._guest.forget()
            self._guest.ask("facts")
            self._end = max(self._end, time.monotonic() + SETTLE_SECONDS)
            self._begin_in_the_guest()
        else:
            self.seen.pauses.append(time.monotonic())
            control.ask(run, "pause")
            time.sleep(self._chance.uniform(0, 0.4))
            control.ask(run, "resume")
            self.seen.pauses.append(time.monotonic())


def memory_of(pid: int) -> int:
    """Bytes of a process's own memory, without what it shares with its guest."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        found = re.search(r"RssAnon:\s+(\d+) kB", file.read())
    assert found is not None
    return int(found[1]) * 1024


def descriptors_of(pid: int) -> int | None:
    """How many descriptors a process has; None where that is not for this user to know."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except PermissionError:
        return None


def test_pause_resume_and_reset_at_random(world: World) -> None:
    """Nothing is lost over connections that were not reset, nothing hangs, and the device does not grow."""
    guest = world.guest("web02")
    Mixture(world, guest, WARM_SECONDS, 1).run(disturbed=False)
    guest.wait_until_quiet()
    pid = guest.run.record().device_pid
    memory, descriptors = memory_of(pid), descriptors_of(pid)
    mixture = Mixture(world, guest, SECONDS, 2)
    mixture.run(disturbed=True)
    guest.wait_until_quiet()
    seen = mixture.seen
    print(
        f"{seen.passed} connections of the host passed, {seen.explained} of both were reset, "
        f"{len(seen.pauses) // 2} pauses, {len(seen.resets) // 2} resets; "
        f"the device has {memory >> 10} KiB, then {memory_of(pid) >> 10} KiB; "
        f"{descriptors} descriptors, then {descriptors_of(pid)}"
    )
    assert seen.unexplained == []
    assert seen.passed
    assert seen.pauses
    assert seen.resets
    assert guest.run.record().device_pid == pid
    assert memory_of(pid) < memory + GROWTH_BYTES
    wait_until(lambda: descriptors_of(pid) == descriptors)  # a report's own goes a moment after it
