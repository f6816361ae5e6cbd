"""Shutdown over a fabric: one order at a time, the answer before the act, and guests that lie.

No machine is switched off here: where a guest has one of its own, a recorder stands for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.errors import (
    BusyError,
    HvsockError,
    NotFoundError,
    NotReadyError,
    RefusedError,
    RemoteError,
    StateError,
    UsageError,
)
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.connecting import connect
from hvsock.services.predefined.shutdown import Action, Pending, Phase, cancel, pending, processes, shut_down
from hvsock.services.predefined.shutdown import guest as guest_half
from hvsock.services.predefined.shutdown import machine as machine_module
from hvsock.services.predefined.shutdown.guest import GuestShutdown
from hvsock.services.predefined.shutdown.interface import Order, Question, ShutdownService
from hvsock.services.predefined.shutdown.machine import REBOOT_COMMANDS, Init, Linux, Machine
from hvsock.services.service import call, download
from hvsock.services.serving import serve
from hvsock.testing.fabric import fabric

PATIENCE = 30.0
SYSTEMCTL = ("systemctl", "--message=why", "--no-block")
SLEEP = "print('up', flush=True); import time; time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


class Recorder:
    """Stands for a machine: says what would be done to it."""

    def __init__(self, init: Init = Init.BUSYBOX, states: Sequence[str] = (), *, root: bool = True) -> None:
        self.done: list[tuple[str, Any]] = []
        self._init, self._states, self._root = init, states, root
        self.acted = threading.Event()
        self.fails: Exception | None = None
        self.has = "/sbin/poweroff"
        self.swapped_to = ["/dev/zram0", "/dev/vda2"]

    def is_root(self) -> bool:
        return self._root

    def init(self) -> Init:
        return self._init

    def power_states(self) -> list[str]:
        return list(self._states)

    def swaps(self) -> list[str]:
        return self.swapped_to

    def find(self, command: str) -> str | None:
        return self.has

    def sync(self) -> None:
        self.done.append(("sync", None))

    def _did(self, what: str, how: Any) -> None:
        if self.fails is not None:
            raise self.fails
        self.done.append((what, how))
        self.acted.set()

    def run(self, command: Sequence[str]) -> None:
        self._did("run", list(command))

    def signal_init(self, number: signal.Signals) -> None:
        self._did("signal", number)

    def reboot(self, command: int) -> None:
        self._did("reboot", command)

    def sleep(self, state: str) -> None:
        self._did("sleep", state)


@pytest.mark.parametrize(
    ("init", "action", "force", "act"),
    [
        (Init.BUSYBOX, Action.SHUTDOWN, False, ("signal", signal.SIGUSR2)),
        (Init.BUSYBOX, Action.REBOOT, False, ("signal", signal.SIGTERM)),
        (Init.BUSYBOX, Action.HIBERNATE, False, ("sleep", "disk")),
        (Init.SYSTEMD, Action.SHUTDOWN, False, ("run", [*SYSTEMCTL, "poweroff"])),
        (Init.SYSTEMD, Action.REBOOT, False, ("run", [*SYSTEMCTL, "reboot"])),
        (
            Init.SYSTEMD,
            Action.HIBERNATE,
            False,
            ("run", [*SYSTEMCTL, "hibernate"]),
        ),
        (Init.OTHER, Action.SHUTDOWN, False, ("run", ["/sbin/poweroff"])),
        (Init.SYSTEMD, Action.SHUTDOWN, True, ("reboot", 0x4321FEDC)),
        (Init.BUSYBOX, Action.REBOOT, True, ("reboot", 0x01234567)),
        (Init.SYSTEMD, Action.HIBERNATE, True, ("sleep", "disk")),
    ],
)
def test_what_is_done_to_a_machine(init: Init, action: Action, force: bool, act: tuple[str, Any]) -> None:
    recorder = Recorder(init, ["freeze", "disk"])
    machine = Machine(recorder)
    machine.check(action)
    machine.act(action, "why", force)
    assert recorder.done == [("sync", None), act]


def test_what_a_machine_cannot() -> None:
    with pytest.raises(RefusedError, match="no 'disk'"):
        Machine(Recorder(states=["freeze", "mem"])).check(Action.HIBERNATE)
    for swaps in ([], ["/dev/zram0"]):
        recorder = Recorder(states=["disk"])
        recorder.swapped_to = swaps
        with pytest.raises(RefusedError, match="no swap on a disk"):
            Machine(recorder).check(Action.HIBERNATE)
    with pytest.raises(RefusedError, match="needs root"):
        Machine(Recorder(root=False)).check(Action.SHUTDOWN)
    recorder = Recorder(Init.OTHER)
    recorder.has = ""
    recorder.find = lambda command: None  # type: ignore[method-assign]
    with pytest.raises(StateError, match="use force"):
        Machine(recorder).act(Action.SHUTDOWN, "", False)
    assert set(REBOOT_COMMANDS) == {Action.SHUTDOWN, Action.REBOOT}


def test_the_swaps_of_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "swaps"
    monkeypatch.setattr(machine_module, "SWAPS", str(listing))
    assert Linux().swaps() == []
    listing.write_text(
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/vda                                partition\t614396\t\t0\t\t-2\n"
        "/swap\\040file                           file\t\t1024\t\t0\t\t-3\n"
    )
    assert Linux().swaps() == ["/dev/vda", "/swap\\040file"]


class World:
    """A host and a guest that serves shutdown."""

    def __init__(self, host: str, folder: str, recorder: Recorder, surroundings: Surroundings) -> None:
        self.host, self.folder, self.recorder, self.surroundings = host, folder, recorder, surroundings
        self.ended = asyncio.Event()

    async def shut_down(self, *arguments: Any, **keywords: Any) -> Pending:
        return await shut_down("web01", *arguments, partition=self.host, **keywords)

    async def acted(self) -> None:
        assert await asyncio.to_thread(self.recorder.acted.wait, PATIENCE)


@contextlib.asynccontextmanager
async def world(tmp_path: Path, *, own_machine: bool, recorder: Recorder | None = None) -> AsyncIterator[World]:
    recorder = recorder or Recorder()
    with fabric() as made:
        partition = made.create_partition("web01")
        ended = asyncio.Event()
        surroundings = Surroundings(own_machine, str(tmp_path), end=ended.set)
        half = GuestShutdown(surroundings, Machine(recorder), partition.folder)
        async with (
            asyncio.timeout(PATIENCE),
            serve(half, bind="parent", partition=partition.folder) as (serving,),
        ):
            found = World(made.host.folder, partition.folder, recorder, surroundings)
            found.ended = ended

            async def end() -> None:
                await ended.wait()
                await serving.close()

            ending = asyncio.create_task(end())
            try:
                yield found
            finally:
                ending.cancel()
                if half._task is not None:
                    half._task.cancel()
                    await asyncio.wait([half._task])


def test_the_answer_comes_before_the_act(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, own_machine=True) as made:
            seen = []
            answer = await made.shut_down(
                reason="maintenance", told=lambda _: seen.append(list(made.recorder.done))
            )
            assert (answer.phase, answer.action, answer.reason) == (Phase.WAITING, Action.SHUTDOWN, "maintenance")
            assert seen == [[]]
            await made.acted()
            assert made.recorder.done == [("sync", None), ("signal", signal.SIGUSR2)]

    asyncio.run(run())


def test_one_at_a_time_and_calling_off(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, own_machine=True) as made:
            with pytest.raises(NotFoundError, match="nothing waits"):
                await cancel("web01", partition=made.host)
            await made.shut_down(Action.REBOOT, reason="a new kernel", timeout=600)
            with pytest.raises(BusyError, match=r"a reboot is under way already, asked for by .*'a new kernel'"):
                await made.shut_down()
            now = await pending("web01", partition=made.host)
            assert (now.phase, now.action) == (Phase.WAITING, Action.REBOOT)
            assert 500 < now.seconds <= 600
            assert (await cancel("web01", partition=made.host)).phase is Phase.IDLE
            assert (await pending("web01", partition=made.host)).phase is Phase.IDLE
            assert made.recorder.done == []
            await made.shut_down()
            await made.acted()
            with pytest.raises(BusyError, match="cannot be called off any more"):
                await cancel("web01", partition=made.host)
            with pytest.raises(BusyError, match="a shutdown is under way"):
                await made.shut_down()

    asyncio.run(run())


def test_whoever_waits_learns_that_it_was_called_off_or_failed(tmp_path: Path) -> None:
    async def run() -> None:
        recorder = Recorder()
        recorder.fails = HvsockError("init does not heed")
        async with world(tmp_path, own_machine=True, recorder=recorder) as made:
            told: list[Pending] = []
            waiting = asyncio.create_task(made.shut_down(timeout=600, wait=60, told=told.append))
            while not told:
                await asyncio.sleep(0)
            await cancel("web01", partition=made.host)
            with pytest.raises(RemoteError, match="called off"):
                await waiting
            with pytest.raises(RemoteError, match="the shutdown failed: init does not heed"):
                await made.shut_down(wait=60)
            assert (await pending("web01", partition=made.host)).phase is Phase.FAILED
            recorder.fails = None
            await made.shut_down()
            await made.acted()

    asyncio.run(run())


def test_hibernation_is_over_when_the_guest_is_awake(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, own_machine=True, recorder=Recorder(states=["disk"])) as made:
            await made.shut_down(Action.HIBERNATE, wait=60)
            assert made.recorder.done == [("sync", None), ("sleep", "disk")]
            assert (await pending("web01", partition=made.host)).phase is Phase.IDLE

    asyncio.run(run())


def test_not_while_something_holds_the_machine(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, own_machine=True) as made:
            frozen = made.surroundings.holds.hold("file systems are frozen for a backup")
            with frozen, pytest.raises(NotReadyError, match="frozen for a backup"):
                await made.shut_down()
            await made.shut_down()
            with made.surroundings.holds.hold("file systems are frozen for a backup"):
                await asyncio.sleep(2 * guest_half.ANSWER_SECONDS)
                assert made.recorder.done == []
                assert (await pending("web01", partition=made.host)).phase is Phase.WAITING
            await made.acted()

    asyncio.run(run())


def test_what_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with world(tmp_path, own_machine=True) as made:
            with pytest.raises(RefusedError, match="cannot hibernate"):
                await made.shut_down(Action.HIBERNATE)
            for keywords in ({"timeout": -1}, {"timeout": 10**6}, {"reason": "x" * 3000}):
                with pytest.raises(UsageError):
                    await made.shut_down(**keywords)
            async with connect(ShutdownService, "web01", partition=made.host) as service:
                with pytest.raises(UsageError, match="the most"):
                    await service.order(Order(timeout=10**6))
            half = GuestShutdown(made.surroundings, Machine(made.recorder))
            with pytest.raises(RefusedError, match="the host alone"):
                await GuestShutdown.OPERATIONS["order"].handler(half, Caller(half.ID), Order())  # type: ignore[arg-type]
        async with world(tmp_path, own_machine=False) as made:
            with pytest.raises(RefusedError, match="nothing would start its processes again"):
                await made.shut_down(Action.REBOOT)
            with pytest.raises(RefusedError, match="hibernation is refused here"):
                await made.shut_down(Action.HIBERNATE)
            assert made.recorder.done == []

    asyncio.run(run())


# -- a partition that is a folder


@contextlib.contextmanager
def process(code: str, folder: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is up, of a partition or of none."""
    environment = {key: value for key, value in os.environ.items() if key != "HVSOCK_PARTITION"}
    if folder is not None:
        environment["HVSOCK_PARTITION"] = folder
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) as started:
        try:
            assert started.stdout is not None
            assert started.stdout.readline() == b"up\n"
            yield started
        finally:
            started.kill()


def test_a_local_partition_ends_its_own_processes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TERM_SECONDS", 0.5)

    async def run() -> None:
        async with world(tmp_path, own_machine=False) as made:
            with (
                process(SLEEP, made.folder) as own,
                process(DEAF, f"{made.folder}/.") as deaf,
                process(SLEEP, f"{made.folder}2") as others,
                process(SLEEP, None) as nobodys,
            ):
                answer = await made.shut_down(wait=20)
                assert answer.phase is Phase.WAITING
                assert made.ended.is_set()
                assert own.wait() == -signal.SIGTERM
                assert deaf.wait() == -signal.SIGKILL
                assert others.poll() is None
                assert nobodys.poll() is None
            assert made.recorder.done == []

    asyncio.run(run())


def test_force_does_not_ask_and_the_spared_stay(tmp_path: Path) -> None:
    with process(SLEEP, str(tmp_path)) as own, process(SLEEP, str(tmp_path)) as spared:
        assert processes.end_all(str(tmp_path), {spared.pid}, force=True) == 1
        assert own.wait() == -signal.SIGKILL
        assert spared.poll() is None
    assert processes.end_all(str(tmp_path), set()) == 0


# -- guests that lie


class Liar(ShutdownService):
    """A guest half under somebody else's command."""

    def __init__(self, answer: Pending) -> None:
        self._answer = answer

    @call
    async def order(self, caller: Caller, order: Order) -> Pending:
        return self._answer

    @call
    async def pending(self, caller: Caller, question: Question) -> Pending:
        return self._answer

    @download
    async def follow(self, caller: Caller, question: Question) -> AsyncIterator[Pending]:
        while True:
            yield self._answer


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (Pending("x", Phase.IDLE), RemoteError, "something else"),
        (Pending("x", Phase.WAITING, Action.REBOOT), RemoteError, "something else"),
        (Pending("x", Phase.WAITING, seconds=2**32 - 1), TimeoutError, "was not over within 0.3 s"),
    ],
)
def test_a_guest_that_does_not_do_what_it_says(answer: Pending, kind: type[Exception], says: str) -> None:
    async def run() -> None:
        with fabric() as made:
            partition = made.create_partition("web01")
            async with serve(Liar(answer), bind="parent", partition=partition.folder):
                with pytest.raises(kind, match=says):
                    await shut_down("web01", wait=0.3, partition=made.host.folder)

    asyncio.run(run())
