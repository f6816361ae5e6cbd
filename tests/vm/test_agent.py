"""The agent survives pauses, resets, its own end, its supervisor's and the broker's; services answer again."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

assert sys.platform == "linux"

from hvsock.errors import HvsockError, LostError
from hvsock.fabric import paths
from hvsock.services.agent import GuestAgent
from hvsock.services.agent import Question as AgentQuestion
from hvsock.services.connecting import connect
from hvsock.services.powershell.brokering import host_credentials, open_session
from hvsock.services.predefined.direct.connecting import logged_in
from hvsock.services.predefined.direct.hostkeys import HostKeys
from hvsock.services.predefined.filecopy.copying import copy_to
from hvsock.services.predefined.heartbeat.monitor import Monitor
from hvsock.services.predefined.heartbeat.status import Status
from hvsock.services.predefined.kvp.host import exchange as data_exchange
from hvsock.services.predefined.kvp.pools import Pool
from hvsock.services.predefined.shutdown.interface import Question, ShutdownService
from hvsock.services.predefined.timesync.host import exchange as clock_exchange
from hvsock.services.predefined.timesync.protocol import Kind as ClockKind
from hvsock.services.predefined.timesync.protocol import TimeSynchronization
from hvsock.services.predefined.vss.interface import Check, Vss
from hvsock.vm import control
from tests.cli.helpers import hvsock as command
from tests.support import SOAK, sample
from tests.vm import backup, brokers, powershell
from tests.vm.by_command import Operator
from tests.vm.clocks import watched_and_set
from tests.vm.support import PATIENCE, needs_qemu
from tests.vm.traffic.world import Guest, Kind, World

EVENTS: Final = sample(5, 100)
pytestmark = [needs_qemu, pytest.mark.timeout(PATIENCE * (2 + EVENTS))]

KINDS: Final = ("pause", "reset", "broker", "agent", "supervisor")
SEED: Final = 1
TRY_SECONDS: Final = 30.0
"""How long one question may take: an emulated guest loads much for its first login."""
LOOK_SECONDS: Final = 0.05
"""Pause before a question that failed is asked again, by those that promise no such thing themselves."""

WRONG_CLOCK: Final = ("-rtc", "base=2020-01-01T00:00:00")
"""The machine's own clock, from which a guest has its time when it boots."""

Ask = Callable[[], Awaitable[object]]


class Services:
    """Every service of a guest, asked by objects of the host that stay the same whatever happens.

    Args:
        asks: what asks each, by its name, and raises where it is not answered.
        monitor: the heartbeats.
        shutdown: tells one start of the agent from another.
        agent: tells its process.
    """

    def __init__(
        self, asks: dict[str, Ask], monitor: Monitor, vm: str, shutdown: ShutdownService, agent: GuestAgent
    ) -> None:
        self._asks = asks
        self._monitor = monitor
        self._vm = vm
        self._shutdown = shutdown
        self._agent = agent

    async def instance(self) -> str:
        """The agent's own, another one after each start."""
        return (await self._shutdown.pending(Question(), timeout=TRY_SECONDS)).instance

    async def pid(self) -> int:
        """The agent's process."""
        return (await self._agent.report(AgentQuestion(), timeout=TRY_SECONDS)).pid

    async def another(self, than: str) -> None:
        """Wait until an agent serves that is another."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with contextlib.suppress(OSError, HvsockError):
                    if await self.instance() != than:
                        return
                await asyncio.sleep(LOOK_SECONDS)

    async def recovered(self) -> dict[str, float]:
        """Wait until each has answered a question that was asked from now on; the seconds that each took."""
        since = time.monotonic()
        times: dict[str, float] = {}

        async def wait(name: str, ask: Ask) -> None:
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        await ask()
                        break
                    except (OSError, HvsockError):
                        await asyncio.sleep(LOOK_SECONDS)
            times[name] = round(time.monotonic() - since, 2)

        def beats() -> bool:
            health = self._monitor.health(self._vm)
            fresh = health.answered is not None and time.monotonic() - health.answered > since
            return fresh and health.primary is Status.OK

        async with asyncio.TaskGroup() as group:
            for name, ask in self._asks.items():
                group.create_task(wait(name, ask))
            group.create_task(wait("heartbeat", lambda: self._monitor.wait(beats)))
        return times


@contextlib.asynccontextmanager
async def services_of(guest: Guest, keys: HostKeys, folder: Path) -> AsyncIterator[Services]:
    """All services of a guest, once it serves them."""
    vm = guest.name
    numbers = itertools.count()
    source = folder / "file"
    source.write_bytes(os.urandom(1 << 16))
    async with contextlib.AsyncExitStack() as stack:
        monitor = await stack.enter_async_context(Monitor([vm]))
        values = await stack.enter_async_context(data_exchange(vm, wait=True, timeout=PATIENCE))
        clock = await stack.enter_async_context(connect(TimeSynchronization, vm, wait=True, timeout=PATIENCE))
        shutdown = await stack.enter_async_context(connect(ShutdownService, vm, wait=True, timeout=PATIENCE))
        vss = await stack.enter_async_context(connect(Vss, vm, wait=True, timeout=PATIENCE))
        agent = await stack.enter_async_context(connect(GuestAgent, vm, wait=True, timeout=PATIENCE))

        async def exchange() -> None:
            value = str(next(numbers)).encode()
            await values.set({"recovery": value})
            assert (await values.get("recovery", Pool.EXTERNAL)).value == value

        async def copy() -> None:
            outcome = await copy_to(vm, source, Path(f"/tmp/recovery{next(numbers)}"))
            assert not outcome.failures, outcome

        async def execute() -> None:
            word = f"word{next(numbers)}"
            async with logged_in(guest.vm_id, keys) as connection:
                assert (await connection.run(f"echo {word}")).stdout == f"{word}\n"

        async def open_powershell() -> None:
            """Up to where its program would begin, which no guest here has."""
            credentials = await host_credentials(vm)
            with await open_session(vm, credentials, timeout=TRY_SECONDS) as sock:
                loop, said = asyncio.get_running_loop(), b""
                while not said.endswith(b"\n"):
                    said += (data := await loop.sock_recv(sock, 1024))
                    if not data:
                        raise LostError("the session ended")
            assert said.startswith(b"__HyperVSocketError__:pwsh is not installed in this guest"), said

        yield Services(
            {
                "time synchronisation": lambda: clock_exchange(clock, lambda best: ClockKind.PROBE),
                "data exchange": exchange,
                "shutdown": lambda: shutdown.pending(Question(), timeout=TRY_SECONDS),
                "backup": lambda: vss.check(Check(), timeout=TRY_SECONDS),
                "file copy": copy,
                "Direct": execute,
                **({"PowerShell Direct": open_powershell} if SOAK else {}),  # powershell.py asks it too
                "agent": lambda: agent.report(AgentQuestion(), timeout=TRY_SECONDS),
            },
            monitor,
            vm,
            shutdown,
            agent,
        )


class Events:
    """What happens to a guest, its agent and its broker; each returns once they are there again."""

    def __init__(self, world: World, guest: Guest, services: Services) -> None:
        self._world = world
        self._guest = guest
        self._services = services

    async def pause(self) -> None:
        """A pause of the VM."""
        await asyncio.to_thread(control.ask, self._guest.run, "pause")
        await asyncio.to_thread(control.ask, self._guest.run, "resume")

    async def reset(self) -> None:
        """A reset of the VM, whose agent comes with it."""
        before = await self._services.instance()
        await asyncio.to_thread(control.ask, self._guest.run, "reset")
        self._guest.forget()
        await self._services.another(before)

    async def broker(self) -> None:
        """A broker that is killed, and another."""
        await asyncio.to_thread(self._world.broker.kill)
        await asyncio.to_thread(self._world.broker.start)

    async def agent(self) -> None:
        """An agent that is killed, and which its supervisor starts again."""
        await self._killed("kill -9 $0")

    async def supervisor(self) -> None:
        """An agent whose supervisor is killed, and which init starts again."""
        await self._killed("kill -9 $(sed -n 's/PPid:.//p' /proc/$0/status)")

    async def _killed(self, how: str) -> None:
        before, pid = await self._services.instance(), await self._services.pid()
        code, said = await asyncio.to_thread(self._guest.output, "sh", "-c", how, str(pid))
        assert code == 0, said
        await self._services.another(before)


def chosen(count: int) -> list[str]:
    """So many events at random, each kind once before any comes again."""
    generator = random.Random(SEED)
    rounds = (generator.sample(KINDS, len(KINDS)) for _ in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(rounds), count))


@pytest.fixture
def disks(tmp_path: Path) -> list[str]:
    """The guest's one, for backups; none where there is nothing to look at it, of which test_vss.py tells."""
    return [] if backup.MISSING else [backup.made_disk(tmp_path)]


@pytest.fixture
def world(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    disks: list[str],
) -> Iterator[World]:
    """A fabric that keeps clocks right, with one guest that has its agent, and whose machine has a wrong clock."""
    kind = Kind("6.12", 2, data_disks=tuple(disks), options=WRONG_CLOCK, agent=True)
    brought = tmp_path_factory.mktemp("brought")
    powershell.bring(brought)
    made = World(tmp_path_factory.mktemp("agents"), {"web01": kind}, brought, timesync=True)
    monkeypatch.setenv(paths.FOLDER_VARIABLE, made.folder)
    monkeypatch.delenv(paths.PARTITION_VARIABLE, raising=False)
    failed = request.session.testsfailed
    yield made
    if request.session.testsfailed > failed:
        print(made.describe())
    made.close()


def test_every_service_is_served_and_recovers_by_itself(
    world: World, disks: list[str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    watched_and_set(world)
    guest = world.guest("web01")
    brokers.killed_under_traffic(world, guest)
    command("integration", "enable", "web01", "Guest Service Interface", env=world.environment)
    keys = HostKeys(os.path.join(world.folder, "keys"), guest.vm_id, guest.name)

    async def run() -> None:
        async with services_of(guest, keys, tmp_path) as services:
            events = Events(world, guest, services)
            for event in ("nothing", *chosen(EVENTS)):
                begun = time.monotonic()
                if event != "nothing":
                    await getattr(events, event)()
                there = round(time.monotonic() - begun, 2)
                times = await services.recovered()
                print(f"{event}: there again after {there} s; {json.dumps(times)}", flush=True)
                record_property(event, {"there again": there, **times})

    asyncio.run(run())
    powershell.spoken_to(world)
    for disk in disks:
        backup.working(guest)
        backup.copied_while_frozen(guest, disk, tmp_path)
        backup.thawed_without_its_host(guest, world.environment)
    Operator(world, tmp_path).does_everything()
    for disk in disks:
        backup.is_clean(disk)
