"""The host's side of VSS: a context within which a guest's file systems are frozen.

::

    async with frozen("web01", timeout=10) as freeze:
        copy("web01.img", "backup.img")

What the guest says is its own word: one that lies has a bad backup of itself, and nothing else of the host's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

from hvsock.errors import HvsockError, ProtocolError
from hvsock.services.connecting import CONNECT_SECONDS, connect

from .interface import (
    CONCLUDE_SECONDS,
    FREEZE_SECONDS,
    PREPARE_SECONDS,
    FileSystem,
    Report,
    Request,
    State,
    Step,
    Vss,
    Why,
)

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

THAW_SECONDS: Final = 10.0
"""How long a thaw may take once it was asked for; it takes milliseconds."""
_TEXTS: Final = {
    Why.TIMED_OUT: "the time-out was over",
    Why.HOST_LOST: "the connection was lost",
    Why.ENDED: "the process that freezes was ended or killed",
    Why.OTHERS: "somebody in the guest thawed a file system",
}


class ThawedError(HvsockError):
    """The guest was not frozen for as long as it had to be; what was copied meanwhile is no good backup."""


class Freeze:
    """A freeze that is under way.

    Use :func:`frozen`, which makes one.

    Attributes:
        vm: whose it is.
        file_systems: those that are frozen.
        left_out: those on disks of the guest that are not, each with its obstacle.
        freezing_seconds: how long it took to freeze them, by the guest's clock.
        frozen_seconds: how long they were frozen, by the guest's clock; 0 until they are thawed.
        warnings: what went wrong after the thaw, in hooks.
    """

    def __init__(self, vm: str, answers: AsyncGenerator[Report, None], first: Report, thaw: asyncio.Event) -> None:
        self.vm = vm
        self.file_systems = [one for one in first.file_systems if not one.obstacle]
        self.left_out: list[FileSystem] = [one for one in first.file_systems if one.obstacle]
        self.freezing_seconds = first.seconds
        self.frozen_seconds = 0.0
        self.warnings: list[str] = []
        self._answers = answers
        self._thaw = thaw
        self._next = asyncio.create_task(_next(answers))

    async def wait_thawed(self) -> None:
        """Wait until the guest has thawed without being asked, or the connection ended; may be cancelled."""
        await asyncio.wait({self._next})

    async def thaw(self) -> None:
        """Have it thawed, and wait until it is and its hooks have run.

        Raises:
            ThawedError: it was thawed before, or nobody knows.
            ProtocolError: the guest says what no guest of ours says.
        """
        self._thaw.set()
        bad = f"the backup of {self.vm} is not good"
        try:
            async with asyncio.timeout(THAW_SECONDS):
                report = await self._next
            if report is None:
                raise ThawedError(f"{bad}: the guest ended the freeze without a word")
            if report.state is not State.THAWED or report.why is Why.NOTHING:
                raise ProtocolError(f"{bad}: the guest does not say that it thawed, but {report.state.name}")
            self.frozen_seconds = report.seconds
            if report.why is not Why.ASKED:
                raise ThawedError(f"{bad}: it thawed after {report.seconds:.1f} s, since {_TEXTS[report.why]}")
        except TimeoutError:
            raise ThawedError(f"{bad}: the guest did not thaw within {THAW_SECONDS:g} s") from None
        except (ThawedError, ProtocolError):
            raise
        except (HvsockError, OSError) as error:
            raise ThawedError(f"{bad}: {error}") from None
        await self._conclude()

    async def _conclude(self) -> None:
        """The backup is good by now, whatever the hooks do."""
        try:
            async with asyncio.timeout(CONCLUDE_SECONDS):
                last = await _next(self._answers)
            self.warnings = ["the guest did not say how its hooks ended"] if last is None else last.warnings
        except (TimeoutError, HvsockError, OSError) as error:
            self.warnings = [f"the guest's hooks did not end: {error}"]

    async def close(self) -> None:
        """Listen no more, which thaws the guest. Calling this twice is fine."""
        self._next.cancel()
        await asyncio.wait({self._next})
        if not self._next.cancelled():
            self._next.exception()  # it is told already, or something worse is


@contextlib.asynccontextmanager
async def frozen(
    vm: str,
    *,
    timeout: float = FREEZE_SECONDS,
    partition: str | None = None,
    connect_timeout: float | None = CONNECT_SECONDS,
) -> AsyncIterator[Freeze]:
    """A guest whose file systems are frozen for as long as the context lasts.

    However it is left, the guest thaws: at the end, when this process ends in whatever way, and when the time is
    over. The end of the context waits for the guest's word that it was frozen all the while.

    Args:
        vm: the VM, by its name or VmId.
        timeout: how long the freeze may last, in seconds.
        partition: the partition's folder to connect from; by default that of the process.
        connect_timeout: seconds until the guest's agent has to answer.

    Raises:
        ThawedError: the guest thawed too early; what was copied is no good. Not raised where the body raised.
        NotReadyError: the guest cannot freeze now, and says why; a hook failed.
        BusyError: somebody else has it frozen.
        RefusedError: the partition's machine is not its own.
        UsageError: the guest takes no such time-out.
        TimeoutError: the guest was not frozen within PREPARE_SECONDS.
        ProtocolError: the guest says what no guest of ours says.
        OSError, HvsockError: there is no connection.
    """
    thaw = asyncio.Event()
    async with connect(Vss, vm, partition=partition, timeout=connect_timeout) as vss:
        answers = vss.freeze(_requests(timeout, thaw))
        assert isinstance(answers, AsyncGenerator)
        async with contextlib.aclosing(answers):
            try:
                async with asyncio.timeout(PREPARE_SECONDS):
                    first = await _next(answers)
            except TimeoutError:
                raise TimeoutError(f"{vm} was not frozen within {PREPARE_SECONDS:g} s, and is let go") from None
            if first is None or first.state is not State.FROZEN:
                said = "nothing" if first is None else first.state.name
                raise ProtocolError(f"{vm} does not say that it is frozen, but {said}")
            freeze = Freeze(vm, answers, first, thaw)
            try:
                yield freeze
                await freeze.thaw()
            finally:
                await freeze.close()


async def _requests(timeout: float, thaw: asyncio.Event) -> AsyncIterator[Request]:
    yield Request(Step.FREEZE, timeout)
    await thaw.wait()
    yield Request(Step.THAW)


async def _next(answers: AsyncIterator[Report]) -> Report | None:
    return await anext(answers, None)
