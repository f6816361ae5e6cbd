"""Watches the heartbeats of any number of VMs, from one event loop.

Each guest has one connection with one exchange that never ends. All beats are sent at the same instants, so that
a hundred guests wake this process as often as one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, Self

from hvsock.errors import HvsockError, LostError, ProtocolError, UsageError
from hvsock.services.connecting import Connector, standing_for

from .protocol import Beat, Heartbeat
from .status import BEAT_SECONDS, Health, Heart

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

SILENT_SECONDS: Final = 10.0
"""A connection on which a beat waits so long for its answer is dropped, and another made: a restored guest
may not know it any more. That of a VM that was paused for less is kept."""
CONNECT_SECONDS: Final = 4.0
"""How long a guest may take to connect and to negotiate, before the next try."""


class Monitor:
    """Watches heartbeats for as long as its context lasts.

    Args:
        vms: the VMs' names or VmIds.
        partition: the partition's folder to connect from; by default that of the process.
        paused: tells whether a VM is known to be paused; asked of one that does not answer.
        period: seconds between two beats.
        service: the service's class; another than Heartbeat to speak other versions.
    """

    def __init__(
        self,
        vms: Iterable[str],
        *,
        partition: str | None = None,
        paused: Callable[[str], bool] = lambda vm: False,
        period: float = BEAT_SECONDS,
        service: type[Heartbeat] = Heartbeat,
    ) -> None:
        self._hearts = {vm: Heart(service.VERSIONS[-1]) for vm in vms}
        self._partition = partition
        self._paused = paused
        self._period = period
        self._service = service
        self._tried = dict.fromkeys(self._hearts, False)
        self._changed = asyncio.Event()
        self._tick = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._watch(vm, heart)) for vm, heart in self._hearts.items()]
        self._tasks.append(asyncio.create_task(self._pace()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def health(self, vm: str) -> Health:
        """What is known of a VM now."""
        now = time.monotonic()
        found = self._hearts[vm].health(now)
        if found.answered is not None and found.answered < self._period and not found.reason:
            return found
        return self._hearts[vm].health(now, paused=self._paused(vm))

    def all(self) -> dict[str, Health]:
        """What is known of all of them now, in their order."""
        return {vm: self.health(vm) for vm in self._hearts}

    def connections(self, vm: str) -> int:
        """How many connections to a VM there were."""
        return self._hearts[vm].connections

    async def wait(self, until: Callable[[], bool]) -> None:
        """Wait until `until`, which is asked whenever something has changed."""
        while not until():
            await self._changed.wait()

    async def wait_tried(self) -> None:
        """Wait until each VM has answered, or a first try has failed."""
        await self.wait(lambda: all(self._tried.values()))

    async def _pace(self) -> None:
        while True:
            await asyncio.sleep(self._period)
            tick, self._tick = self._tick, asyncio.Event()
            tick.set()

    async def _watch(self, vm: str, heart: Heart) -> None:
        """Keep one guest's exchange going."""
        connector = Connector(self._service, vm, self._partition)
        try:
            while True:
                try:
                    await connector.connect(CONNECT_SECONDS, wait=False)
                    heart.connected(connector.accepted.version)
                    await self._converse(vm, heart, standing_for(self._service, connector))
                except ProtocolError as error:
                    heart.broke(str(error))
                except (OSError, HvsockError) as error:
                    heart.lost(_why(error))
                await connector.close()
                self._tell(vm)
                await self._tick.wait()
        finally:
            await connector.close()

    async def _converse(self, vm: str, heart: Heart, guest: Heartbeat) -> None:
        """Ask until the connection ends.

        Raises:
            OSError, HvsockError: why it ended.
        """
        answered = asyncio.Event()

        async def beats() -> AsyncIterator[Beat]:
            while True:
                answered.clear()
                yield heart.beat(time.monotonic())
                while not answered.is_set():
                    await self._tick.wait()
                    if heart.silent(time.monotonic()) > SILENT_SECONDS:
                        raise LostError(f"no answer for {SILENT_SECONDS:g} s")

        try:
            async with contextlib.aclosing(guest.beat(beats())) as pulses:
                async for pulse in pulses:
                    heart.answer(pulse, time.monotonic())
                    answered.set()
                    self._tell(vm)
        except UsageError as error:  # it does not know the question
            raise ProtocolError(str(error)) from None
        raise LostError("the guest ended the heartbeat")

    def _tell(self, vm: str) -> None:
        """Wake those who wait for news of a VM."""
        self._tried[vm] = True
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _why(error: OSError | HvsockError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody serves the heartbeat there; run in the guest: hvsock agent"
    return str(error) if isinstance(error, HvsockError) else error.strerror or str(error)
