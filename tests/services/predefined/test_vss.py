"""Freezes with everything but the kernel's part: between local partitions, by a keeper that takes notes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

assert sys.platform == "linux"

from hvsock.errors import BusyError, HvsockError, NotReadyError, ProtocolError, RefusedError, UsageError
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.connecting import connect
from hvsock.services.predefined.vss import host
from hvsock.services.predefined.vss.guest import GuestVss
from hvsock.services.predefined.vss.host import Freeze, ThawedError, frozen
from hvsock.services.predefined.vss.interface import (
    MAX_FREEZE_SECONDS,
    Check,
    FileSystem,
    Report,
    Request,
    State,
    Vss,
    Why,
)
from hvsock.services.predefined.vss.keeping import Setting
from hvsock.services.service import exchange
from hvsock.services.serving import serve
from hvsock.testing.fabric import fabric
from tests.cli.helpers import PROGRAM, environment, invoke, invoke_json
from tests.services.predefined.vss_keeper import FolderKernel

PATIENCE: Final = 30.0
"""Seconds that anything may take here."""
LONG: Final = 60.0
"""A time-out of a freeze that no test reaches."""
SHORT: Final = 0.2
"""One that is reached."""
NAMES: Final = ("root", "home", "data")


class Machine:
    """A made-up machine with three file systems, mounted in the order of NAMES.

    Args:
        folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hooks = folder / "hooks"
        self.hooks.mkdir(mode=0o755)
        self.log_file = folder / "log"
        lines = []
        for number, name in enumerate(NAMES):
            (folder / name).mkdir()
            lines.append(self.line(name, number))
        (folder / "mountinfo").write_text("".join(lines))
        keeper = Path(__file__).with_name("vss_keeper.py")
        self.setting = Setting(
            mountinfo=str(folder / "mountinfo"),
            hooks=str(self.hooks),
            hook_seconds=PATIENCE,
            keeper=(sys.executable, str(keeper), str(folder)),
            kernel=FolderKernel(str(folder)),
        )

    def line(self, name: str, number: int, kind: str = "ext4") -> str:
        """A line of mountinfo."""
        descriptor = os.open(self.folder / name, os.O_RDONLY)
        try:
            with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
                mount = dict(line.split(":", 1) for line in file)["mnt_id"].strip()
        finally:
            os.close(descriptor)
        return f"{mount} 1 9:{number} / {self.folder / name} rw - {kind} /dev/{name} rw\n"

    def log(self) -> list[str]:
        """What was frozen and thawed, and which hooks ran."""
        found = self.log_file.read_text().splitlines() if self.log_file.exists() else []
        return [line for line in found if not line.startswith("freezing")]

    def hook(self, name: str, more: str = "", mode: int = 0o755) -> None:
        """Make a hook that notes that it ran."""
        path = self.hooks / name
        path.write_text(f"#!/bin/sh\necho hook {name} $1 >> {self.log_file}\n{more}\n")
        path.chmod(mode)


FROZEN: Final = ["freeze data", "freeze home", "freeze root"]
THAWED: Final = ["thaw root", "thaw home", "thaw data"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine."""
    return Machine(tmp_path)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedFabric]:
    """A fabric with a guest, which commands are in, too."""
    with fabric() as found:
        found.create_partition("web01")
        monkeypatch.setenv("HVSOCK_DIR", found.folder)
        monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
        yield found


def folder_of(made: EmbeddedFabric) -> str:
    """The guest's folder."""
    (one,) = (name for name in os.listdir(f"{made.folder}/partitions") if name != "host")
    return f"{made.folder}/partitions/{one}"


@contextlib.asynccontextmanager
async def served(
    made: EmbeddedFabric, machine: Machine, *, own_machine: bool = True, service: Vss | None = None
) -> AsyncIterator[None]:
    """The guest half, or something in its place."""
    if service is None:
        service = GuestVss(Surroundings(own_machine, str(machine.folder)), machine.setting)
    try:
        async with serve(service, bind="parent", partition=folder_of(made)):
            yield
    finally:
        if isinstance(service, GuestVss) and service._task is not None:
            await asyncio.wait({service._task})


async def until(reached: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not reached():
            await asyncio.sleep(0.01)


async def within(work: Callable[[Freeze], Awaitable[None]], timeout: float = LONG) -> None:
    """Do something while the guest is frozen."""
    async with frozen("web01", timeout=timeout) as freeze:
        await work(freeze)


def test_all_is_frozen_within_and_thawed_after(made: EmbeddedFabric, machine: Machine) -> None:
    machine.hook("10-first")
    machine.hook("20-second")
    machine.hook("README", mode=0o644)
    machine.hook("old~")

    surroundings = Surroundings(True, str(machine.folder))

    async def work() -> None:
        async with served(made, machine, service=GuestVss(surroundings, machine.setting)):
            async with frozen("web01", timeout=LONG) as freeze:
                with pytest.raises(NotReadyError, match="frozen for a backup"):
                    surroundings.holds.check()
                assert [one.path for one in freeze.file_systems] == [
                    str(machine.folder / name) for name in reversed(NAMES)
                ]
                assert machine.log() == ["hook 10-first freeze", "hook 20-second freeze", *FROZEN]
            assert machine.log()[5:] == [*THAWED, "hook 20-second thaw", "hook 10-first thaw"]
            surroundings.holds.check()
            assert freeze.warnings == []
            assert freeze.frozen_seconds > 0
            async with frozen("web01", timeout=LONG):
                pass  # and again

    asyncio.run(work())


def test_a_body_that_fails_thaws(made: EmbeddedFabric, machine: Machine) -> None:
    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(ZeroDivisionError):
                async with frozen("web01", timeout=LONG):
                    raise ZeroDivisionError
            await until(lambda: machine.log() == [*FROZEN, *THAWED])

    asyncio.run(work())


def test_the_time_out_thaws_and_the_backup_is_not_good(made: EmbeddedFabric, machine: Machine) -> None:
    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(ThawedError, match=r"is not good: it thawed after .* the time-out was over"):
                await within(lambda freeze: freeze.wait_thawed(), SHORT)
            assert machine.log() == [*FROZEN, *THAWED]

    asyncio.run(work())


def test_one_freeze_at_a_time(made: EmbeddedFabric, machine: Machine) -> None:
    async def work() -> None:
        async with served(made, machine), frozen("web01", timeout=LONG):
            with pytest.raises(BusyError, match="under way"):
                async with frozen("web01"):
                    pass
            async with connect(Vss, "web01") as vss:
                assert (await vss.check(Check())).frozen
            assert machine.log() == FROZEN

    asyncio.run(work())


def test_one_that_fails_thaws_the_others(made: EmbeddedFabric, machine: Machine) -> None:
    machine.hook("10-first")
    (machine.folder / "root.errno").write_text(str(errno.EBUSY))

    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(NotReadyError, match="/root cannot be frozen: somebody else has frozen it"):
                async with frozen("web01", timeout=LONG):
                    pass
        assert machine.log() == [
            *("hook 10-first freeze", "freeze data", "freeze home"),
            *("thaw home", "thaw data", "hook 10-first thaw"),
        ]

    asyncio.run(work())


def test_a_disk_that_takes_too_long_holds_no_other_frozen(made: EmbeddedFabric, machine: Machine) -> None:
    """Those that are frozen thaw in time; the slow one, which nobody can interrupt, once it is frozen."""
    slow = machine.folder / "root.slow"
    slow.touch()

    async def work() -> None:
        async with served(made, machine):
            freezing = asyncio.create_task(frozen("web01", timeout=SHORT).__aenter__())
            await until(lambda: machine.log() == ["freeze data", "freeze home", "thaw home", "thaw data"])
            slow.unlink()
            with pytest.raises(NotReadyError, match="timed out after"):
                await freezing
            assert machine.log()[4:] == ["freeze root", "thaw root"]

    asyncio.run(work())


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo the database is away; exit 3", "hook 20-second failed at freeze with 3: the database is away"),
        ("exec sleep 1000", "hook 20-second took more than 0.3 s at freeze, and was killed"),
        ("yes | head -c 1000000; exit 1", "hook 20-second failed at freeze with 1: y y y"),
        ("sleep 1000 & exit 1", "hook 20-second failed at freeze with 1: it said nothing"),
    ],
)
def test_a_hook_that_fails_prevents_the_freeze(
    script: str, reason: str, made: EmbeddedFabric, machine: Machine
) -> None:
    machine.hook("10-first")
    machine.hook("20-second", f"[ $1 = thaw ] || {{ {script}; }}")
    machine.hook("30-third")
    if "sleep 1000" in script and "&" not in script:
        machine.setting = Setting(
            machine.setting.mountinfo, machine.setting.hooks, 0.3, machine.setting.keeper, machine.setting.kernel
        )

    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(NotReadyError, match=reason):
                async with frozen("web01", timeout=LONG):
                    pass
        assert machine.log() == [
            *("hook 10-first freeze", "hook 20-second freeze"),
            *("hook 20-second thaw", "hook 10-first thaw"),
        ]

    asyncio.run(work())


def test_a_hook_that_fails_after_the_thaw_is_told(made: EmbeddedFabric, machine: Machine) -> None:
    machine.hook("10-first", '[ "$1" = freeze ] || exit 9')

    async def work() -> None:
        async with served(made, machine):
            async with frozen("web01", timeout=LONG) as freeze:
                pass
            assert freeze.warnings == ["hook 10-first failed at thaw with 9: it said nothing"]

    asyncio.run(work())


def test_a_hook_that_others_may_write_to_is_not_run(made: EmbeddedFabric, machine: Machine) -> None:
    machine.hook("10-first", mode=0o777)

    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(NotReadyError, match="hook 10-first: others than its owner may write to it"):
                async with frozen("web01", timeout=LONG):
                    pass
            machine.hook("10-first")
            machine.hooks.chmod(0o777)
            async with connect(Vss, "web01") as vss:
                (hook,) = (await vss.check(Check())).hooks
            assert hook.obstacle == "in its folder others than its owner may write to it"
        assert machine.log() == []

    asyncio.run(work())


def test_a_host_that_leaves_while_a_hook_runs(made: EmbeddedFabric, machine: Machine) -> None:
    machine.hook("10-first", "[ $1 = thaw ] || exec sleep 1000")

    async def work() -> None:
        async with served(made, machine):
            freezing = asyncio.create_task(frozen("web01", timeout=LONG).__aenter__())
            await until(lambda: machine.log() != [])
            freezing.cancel()
            await asyncio.wait({freezing})
            await until(lambda: machine.log() == ["hook 10-first freeze", "hook 10-first thaw"])

    asyncio.run(work())


def test_somebody_who_thaws_in_the_guest_is_noticed(made: EmbeddedFabric, machine: Machine) -> None:
    (machine.folder / "home.thawed").touch()

    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(ThawedError, match="somebody in the guest thawed"):
                async with frozen("web01", timeout=LONG):
                    pass
        assert machine.log() == [*FROZEN, *THAWED]

    asyncio.run(work())


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan, math.inf, MAX_FREEZE_SECONDS * 1.01])
def test_time_outs_that_are_none(timeout: float, made: EmbeddedFabric, machine: Machine) -> None:
    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(UsageError, match="can be asked for"):
                async with frozen("web01", timeout=timeout):
                    pass
        assert machine.log() == []

    asyncio.run(work())


def test_a_partition_of_this_machine_is_not_frozen(made: EmbeddedFabric, machine: Machine) -> None:
    async def work() -> None:
        async with served(made, machine, own_machine=False):
            with pytest.raises(RefusedError, match="freezing file systems is refused here"):
                async with frozen("web01"):
                    pass
            async with connect(Vss, "web01") as vss:
                found = await vss.check(Check())
        assert "refused here" in found.obstacle
        assert len(found.file_systems) == 3
        assert machine.log() == []

    asyncio.run(work())


def test_nothing_that_can_be_frozen(made: EmbeddedFabric, machine: Machine) -> None:
    (machine.folder / "mountinfo").write_text(machine.line("root", 1, "vfat"))

    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(NotReadyError, match="no file system here can be frozen"):
                async with frozen("web01"):
                    pass

    asyncio.run(work())


def test_a_mount_that_another_hides_is_left_out_and_said(made: EmbeddedFabric, machine: Machine) -> None:
    lines = machine.line("root", 1).split(" ", 1)
    with open(machine.folder / "mountinfo", "a", encoding="ascii") as file:
        file.write(f"999999999 {lines[1].replace('9:1', '9:7')}")

    async def work() -> None:
        async with served(made, machine), frozen("web01", timeout=LONG) as freeze:
            (left_out,) = freeze.left_out
            assert left_out.obstacle.endswith("another mount hides it")

    asyncio.run(work())


AGENT: Final = """
import asyncio, sys
from hvsock.services.agenthood import Surroundings
from hvsock.services.predefined.vss.guest import GuestVss
from hvsock.services.predefined.vss.keeping import Setting
from hvsock.services.serving import serve
from tests.services.predefined.vss_keeper import FolderKernel
async def main(partition, folder):
    setting = Setting(f"{folder}/mountinfo", f"{folder}/hooks", 9, KEEPER, FolderKernel(folder))
    async with serve(GuestVss(Surroundings(True, folder), setting), bind="parent", partition=partition):
        print("ready", flush=True)
        await asyncio.sleep(999)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_agent_that_ends_leaves_nothing_frozen(
    number: signal.Signals, made: EmbeddedFabric, machine: Machine
) -> None:
    machine.hook("10-first")
    program = AGENT.replace("KEEPER", repr(tuple(machine.setting.keeper)))
    words = [sys.executable, "-c", program, folder_of(made), str(machine.folder)]
    root = Path(__file__).parents[3]

    async def work(agent: subprocess.Popen[bytes]) -> None:
        async def end(freeze: Freeze) -> None:
            assert machine.log()[1:] == FROZEN
            agent.send_signal(number)
            await freeze.wait_thawed()

        with pytest.raises(ThawedError, match="is not good"):
            await within(end)
        await until(lambda: machine.log()[4:] == [*THAWED, "hook 10-first thaw"])

    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=root) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"ready\n"
        asyncio.run(work(agent))


def keeper_of(machine: Machine) -> int:
    """The process id of the machine's keeper."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if (
                name.isdecimal()
                and f"vss_keeper.py\0{machine.folder}\0".encode() in Path(f"/proc/{name}/cmdline").read_bytes()
            ):
                return int(name)
    raise AssertionError("there is no keeper")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_keeper_that_ends_leaves_nothing_frozen(
    number: signal.Signals, made: EmbeddedFabric, machine: Machine
) -> None:
    """The agent takes its place when it is killed; SIGINT, which a terminal may send to all, does nothing."""
    machine.hook("10-first")

    async def work() -> None:
        async with served(made, machine), frozen("web01", timeout=LONG) as freeze:
            os.kill(keeper_of(machine), number)
            if number != signal.SIGINT:
                await freeze.wait_thawed()
        await until(lambda: machine.log()[-1] == "hook 10-first thaw")

    if number == signal.SIGINT:
        asyncio.run(work())
    else:
        with pytest.raises(ThawedError, match="the process that freezes was ended or killed"):
            asyncio.run(work())
        asyncio.run(until(lambda: machine.log()[-1] == "hook 10-first thaw"))
    # one that was killed is thawed twice, before and after it is certainly gone
    assert machine.log()[4:7] == THAWED


@pytest.mark.soak
def test_a_keeper_that_hangs_is_killed_and_all_is_thawed(
    made: EmbeddedFabric, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hvsock.services.predefined.vss.keeping.GRACE_SECONDS", SHORT)

    async def stop(freeze: Freeze) -> None:
        os.kill(keeper_of(machine), signal.SIGSTOP)
        await freeze.wait_thawed()

    async def work() -> None:
        async with served(made, machine):
            with pytest.raises(ThawedError):
                await within(stop, 2.0)
        assert machine.log()[3:6] == THAWED

    asyncio.run(work())


class Liar(Vss):
    """A guest that means harm.

    Args:
        reports: what it answers; an exception is raised, and an Ellipsis goes on without end.
    """

    def __init__(self, *reports: Any) -> None:
        self._reports = reports

    @exchange
    async def freeze(self, caller: Caller, questions: AsyncIterator[Request]) -> AsyncIterator[Report]:
        """See the class."""
        for report in self._reports:
            while report is ...:
                yield Report(State.FROZEN, file_systems=[FileSystem("x" * 4000, "", "ext4")] * 200)
            if report is None:
                await asyncio.Event().wait()
            yield report


@pytest.mark.parametrize(
    ("reports", "kind", "text"),
    [
        ([], HvsockError, "does not say that it is frozen, but nothing|ended within"),
        ([Report(State.DONE)], ProtocolError, "does not say that it is frozen, but DONE"),
        ([None], TimeoutError, "was not frozen within"),
        ([Report(State.FROZEN)], HvsockError, "ended the freeze without a word|ended within"),
        ([Report(State.FROZEN), None], ThawedError, "did not thaw within"),
        ([Report(State.FROZEN), Report(State.THAWED)], ProtocolError, "but THAWED"),
        ([Report(State.FROZEN), ...], ProtocolError, "but FROZEN"),
        ([Report(State.FROZEN), Report(State.THAWED, Why.HOST_LOST)], ThawedError, "the connection was lost"),
        ([...], ProtocolError, "but FROZEN"),
    ],
)
def test_guests_that_lie(
    reports: list[Any],
    kind: type[Exception],
    text: str,
    made: EmbeddedFabric,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if reports[-1:] == [None]:  # only silence is ended by a time-out
        monkeypatch.setattr(host, "PREPARE_SECONDS" if len(reports) == 1 else "THAW_SECONDS", 0.5)

    async def work() -> None:
        async with served(made, machine, service=Liar(*reports)):
            with pytest.raises(kind, match=text):
                async with frozen("web01"):
                    pass

    asyncio.run(work())


@pytest.mark.parametrize("last", [[], [None], [...]])
def test_hooks_that_never_end_make_no_bad_backup(
    last: list[Any], made: EmbeddedFabric, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if last == [None]:
        monkeypatch.setattr(host, "CONCLUDE_SECONDS", 0.5)

    async def work() -> None:
        service = Liar(Report(State.FROZEN), Report(State.THAWED, Why.ASKED, 1.0), *last)
        async with served(made, machine, service=service), frozen("web01") as freeze:
            pass
        assert len(freeze.warnings) == (last != [...])

    asyncio.run(work())


def test_the_command_checks(made: EmbeddedFabric, machine: Machine) -> None:
    machine.hook("10-first", mode=0o777)
    with open(machine.folder / "mountinfo", "a", encoding="ascii") as file:
        file.write("1 1 9:9 / /boot rw - vfat /dev/sda1 rw\n")

    async def work() -> None:
        async with served(made, machine):
            found = await asyncio.to_thread(invoke_json, "vss", "check", "web01", code=1)
            assert [one["path"] for one in found["file_systems"]] == [
                "/boot",
                *(str(machine.folder / name) for name in reversed(NAMES)),
            ]
            assert found["file_systems"][0]["obstacle"] == "the kernel freezes no vfat"
            assert found["hooks"] == [{"name": "10-first", "obstacle": "others than its owner may write to it"}]
            assert not found["ready"]
            shown = (await asyncio.to_thread(invoke, "vss", "check", "web01", code=1)).stdout
            assert "/boot" in shown
            assert "hook 10-first: others" in shown

    asyncio.run(work())


def test_the_command_freezes(made: EmbeddedFabric, machine: Machine) -> None:
    """The exit code is the command's, and what it did was done while all was frozen."""
    copy = machine.folder / "copy"
    script = f"cp {machine.log_file} {copy}; echo copied; exit 7"

    async def work() -> None:
        async with served(made, machine):
            words = ["vss", "freeze", "web01", "--timeout", "60", "--json", "--", "sh", "-c", script]
            done = await asyncio.to_thread(run, words)
        assert done.returncode == 7, done.stderr
        said, _, report = done.stdout.partition(b"\n")
        assert said == b"copied"
        found = json.loads(report)
        assert (found["good"], found["exit_code"], found["trouble"]) == (True, 7, None)
        assert len(found["file_systems"]) == 3
        assert [line for line in copy.read_text().splitlines() if not line.startswith("freezing")] == FROZEN
        assert machine.log() == [*FROZEN, *THAWED]

    asyncio.run(work())


def test_the_command_says_that_a_backup_is_not_good(made: EmbeddedFabric, machine: Machine) -> None:
    thawed = f"until grep -q 'thaw data' {machine.log_file}; do sleep 0.05; done"

    async def work() -> None:
        async with served(made, machine):
            words = ["vss", "freeze", "web01", "--timeout", "0.2", "--json", "--", "sh", "-c", thawed]
            done = await asyncio.to_thread(run, words)
        assert done.returncode == 1
        assert b"the backup of web01 is not good" in done.stderr
        assert json.loads(done.stdout)["good"] is False

    asyncio.run(work())


@pytest.mark.parametrize("command", ["no such command", "/"])
def test_a_command_that_is_none_freezes_nothing(command: str, made: EmbeddedFabric, machine: Machine) -> None:
    invoke("vss", "freeze", "web01", "--", command, code=127)
    assert machine.log() == []


@pytest.mark.parametrize("words", [("check", "web01"), ("freeze", "web01", "--", "true")])
def test_a_guest_without_an_agent(words: tuple[str, ...], made: EmbeddedFabric) -> None:
    assert "run it there: hvsock agent" in invoke("vss", *words, code=1).stderr


def run(words: list[str]) -> subprocess.CompletedProcess[bytes]:
    """The installed program."""
    return subprocess.run([PROGRAM, *words], env=environment(), capture_output=True, timeout=PATIENCE, check=False)
