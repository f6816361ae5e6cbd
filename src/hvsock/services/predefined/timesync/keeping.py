"""Keeps the clocks of any number of VMs right, from one event loop.

Each guest has one connection, whose end tells that the guest was reset, paused or restored: such a guest is
connected to again as soon as it lets itself, and its clock is set. All others are measured once in a while.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Self

from hvsock.errors import HvsockError
from hvsock.services.connecting import Connector, standing_for

from .arithmetic import milliseconds
from .deciding import HostClock, decide
from .host import Outcome, exchange
from .protocol import MAX_SLEW, Act, TimeSynchronization

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

PERIOD_SECONDS: Final = 30.0
"""Pause between two measurements of a guest: a clock of 100 ppm is 3 ms off by then."""
CONNECT_SECONDS: Final = 10.0
"""How long a guest may take to connect and to negotiate, before the next try."""
FIRST_PAUSE_SECONDS: Final = 0.25
"""Pause before a guest is tried again; it doubles up to LONGEST_PAUSE_SECONDS."""
LONGEST_PAUSE_SECONDS: Final = 2.0
"""So the clock of a guest that has booted is right two seconds after its agent serves, at most."""
MAX_TRIES: Final = 5
"""How often in a row a guest is asked over the same connection where it refuses a sample as stale: a pause in the
midst of a measurement is rare, and a guest that always says so is wrong."""


@dataclass(frozen=True, slots=True)
class News:
    """What was done about the clock of one VM, or why nothing was.

    Attributes:
        vm: its name or VmId.
        outcome: of the synchronisation; None where there is none.
        problem: why there is none, or why the clock was left although it is wrong; empty else.
    """

    vm: str
    outcome: Outcome | None
    problem: str = ""


def _now() -> HostClock:
    return HostClock(time.time_ns(), time.monotonic_ns())


class Timekeeper:
    """Keeps the clocks of the VMs that it follows, for as long as its context lasts.

    Args:
        told: is called with what there is to tell: each act, and each problem once.
        partition: the partition's folder to connect from; by default that of the process.
        period: seconds between two measurements.
        clock: the host's clocks; another for tests.
    """

    def __init__(
        self,
        told: Callable[[News], object] = lambda news: None,
        *,
        partition: str | None = None,
        period: float = PERIOD_SECONDS,
        clock: Callable[[], HostClock] = _now,
    ) -> None:
        self._told = told
        self._partition = partition
        self._period = period
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.follow(())

    async def follow(self, vms: Collection[str]) -> None:
        """Keep the clocks of these from now on, and of no others.

        Args:
            vms: names or VmIds.
        """
        gone = [self._tasks.pop(vm) for vm in list(self._tasks) if vm not in vms]
        for task in gone:
            task.cancel()
        if gone:
            await asyncio.wait(gone)
        for vm in vms:
            if vm not in self._tasks:
                self._tasks[vm] = asyncio.create_task(
                    _Keeper(vm, self._told, self._period, self._clock).run(
                        Connector(TimeSynchronization, vm, self._partition)
                    )
                )


class _Keeper:
    """Keeps one clock."""

    def __init__(
        self, vm: str, told: Callable[[News], object], period: float, clock: Callable[[], HostClock]
    ) -> None:
        self._vm = vm
        self._told = told
        self._period = period
        self._clock = clock
        self._problem = ""

    async def run(self, connector: Connector) -> None:
        """Until cancelled."""
        pause = FIRST_PAUSE_SECONDS
        try:
            while True:
                try:
                    connection = await connector.connect(CONNECT_SECONDS, wait=False)
                    pause = FIRST_PAUSE_SECONDS
                    ended = asyncio.create_task(connection.wait_ended())
                    try:
                        await self._keep(standing_for(TimeSynchronization, connector), ended)
                    finally:
                        ended.cancel()
                        await asyncio.wait({ended})
                except (OSError, HvsockError) as error:
                    self._tell(None, str(error))
                await connector.close()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        finally:
            await connector.close()

    async def _keep(self, guest: TimeSynchronization, ended: asyncio.Task[None]) -> None:
        """Measure again and again, until the connection has ended.

        Raises:
            OSError, HvsockError: it ended in the midst, or the guest refuses or lies.
        """
        right: HostClock | None = None
        tries = 0
        while not ended.done():
            now = self._clock()
            known, leapt = right is not None, right is not None and now.leapt_since(right)
            outcome = await exchange(guest, lambda best: decide(best, known=known, leapt=leapt))  # noqa: B023
            tries += 1
            pause = self._period
            if outcome.act is Act.REFUSED:
                self._tell(outcome, outcome.reason)
                if tries < MAX_TRIES:
                    pause = FIRST_PAUSE_SECONDS
            elif outcome.act is Act.NONE and abs(outcome.offset) > MAX_SLEW + outcome.round_trip:
                off = milliseconds(outcome.offset)
                self._tell(outcome, f"the clock is {off} off, which somebody in the guest has set; it is left")
            else:
                right, tries = now, 0
                self._tell(outcome, "")
            await asyncio.wait({ended}, timeout=pause)

    def _tell(self, outcome: Outcome | None, problem: str) -> None:
        if problem != self._problem or (outcome is not None and outcome.act in (Act.SET, Act.SLEWED)):
            self._told(News(self._vm, outcome, problem))
        self._problem = problem
