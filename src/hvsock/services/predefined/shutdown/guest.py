"""The guest half: takes one order at a time, answers, and does it then."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

from hvsock.errors import BusyError, HvsockError, NotFoundError, NotReadyError, RefusedError, UsageError
from hvsock.fabric import paths
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import MYSELF, Caller
from hvsock.services.service import call, download

from . import processes
from .interface import MAX_WINDOW_SECONDS, Action, Order, Pending, Phase, Question, ShutdownService
from .machine import Linux, Machine

if sys.platform != "linux":
    raise ImportError("guests run Linux")

log = logging.getLogger(__name__)

ANSWER_SECONDS: Final = 0.2
"""How long an act waits at least, for its answer to go out; that takes a millisecond."""
HELD_PAUSE_SECONDS: Final = 0.1
"""How often it is looked whether what holds the machine is over."""
ACT_SECONDS: Final = 300.0
"""How long a machine may take to go down; one that is up still did not heed, and can be asked again."""


class GuestShutdown(ShutdownService):
    """Shutdown in the guest.

    Args:
        surroundings: those of the agent.
        machine: the machine, where it is the partition's own.
        partition: the partition's folder, where the machine is not; by default that of the process.
    """

    def __init__(
        self, surroundings: Surroundings, machine: Machine | None = None, partition: str | None = None
    ) -> None:
        self._surroundings = surroundings
        self._machine = machine or Machine(Linux())
        self._partition = partition
        self._pending = Pending(uuid.uuid4().hex)
        self._due = 0.0
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()

    @call
    async def order(self, caller: Caller, order: Order) -> Pending:
        """See the interface."""
        _check(caller)
        now = self._pending
        if now.phase in (Phase.WAITING, Phase.ACTING):
            why = f", because of {now.reason!a}" if now.reason else ""
            raise BusyError(f"a {now.action.word} is under way already, asked for by {now.asked_by}{why}")
        if order.timeout > MAX_WINDOW_SECONDS:
            raise UsageError(f"a time-out of {order.timeout} s; {MAX_WINDOW_SECONDS} are the most")
        self._surroundings.holds.check()
        self._check_possible(order.action)
        log.warning(
            "%s in %d s, asked for by %s: %a",
            order.action.word,
            order.timeout,
            caller,
            order.reason or "no reason",
        )
        self._due = asyncio.get_running_loop().time() + max(ANSWER_SECONDS, order.timeout)
        answer = Pending(now.instance, Phase.WAITING, order.action, order.reason, str(caller), order.timeout)
        self._pending = answer
        self._task = asyncio.create_task(self._follow_up(order))
        await self._tell(answer)
        return answer

    @call(idempotent=True)
    async def cancel(self, caller: Caller, question: Question) -> Pending:
        """See the interface."""
        _check(caller)
        if self._pending.phase is Phase.ACTING:
            raise BusyError(f"the {self._pending.action.word} is being done, and cannot be called off any more")
        if self._pending.phase is not Phase.WAITING or self._task is None:
            raise NotFoundError("nothing waits that could be called off")
        log.warning("%s called off by %s", self._pending.action.word, caller)
        self._task.cancel()
        await self._tell(replace(self._pending, phase=Phase.IDLE, seconds=0))
        return self._pending

    @call(idempotent=True)
    async def pending(self, caller: Caller, question: Question) -> Pending:
        """See the interface."""
        _check(caller)
        return self._now()

    @download
    async def follow(self, caller: Caller, question: Question) -> AsyncIterator[Pending]:
        """See the interface."""
        _check(caller)
        while True:
            told = self._pending
            yield self._now()
            async with self._changed:
                while self._pending is told:
                    await self._changed.wait()

    def _now(self) -> Pending:
        if self._pending.phase is not Phase.WAITING:
            return self._pending
        left = self._due - asyncio.get_running_loop().time()
        return replace(self._pending, seconds=max(0, round(left)))

    def _check_possible(self, action: Action) -> None:
        """Refuse what can never be done here.

        Raises:
            RefusedError: it cannot.
        """
        if self._surroundings.own_machine:
            self._machine.check(action)
        elif action is Action.REBOOT:
            raise RefusedError(
                "reboot is refused here: this partition is a folder of a machine that is not its own, and nothing "
                "would start its processes again; shut it down, and start them"
            )
        elif action is Action.HIBERNATE:
            self._surroundings.check_own_machine("hibernation")

    async def _tell(self, pending: Pending) -> None:
        self._pending = pending
        async with self._changed:
            self._changed.notify_all()

    async def _follow_up(self, order: Order) -> None:
        """Do what was ordered, when it is due."""
        await asyncio.sleep(self._due - asyncio.get_running_loop().time())
        while self._is_held():  # noqa: ASYNC110 - whoever holds it may be a thread
            await asyncio.sleep(HELD_PAUSE_SECONDS)
        await self._tell(replace(self._pending, phase=Phase.ACTING, seconds=0))
        try:
            await self._act(order)
        except (OSError, HvsockError) as error:
            log.error("%s failed: %s", order.action.word, error)
            await self._tell(replace(self._pending, phase=Phase.FAILED, error=str(error)))

    def _is_held(self) -> bool:
        try:
            self._surroundings.holds.check()
        except NotReadyError:
            return True
        return False

    async def _act(self, order: Order) -> None:
        if not self._surroundings.own_machine:
            folder = self._partition or paths.partition_folder()
            spared = {os.getpid(), *self._surroundings.processes}
            await asyncio.to_thread(processes.end_all, folder, spared, force=order.force)
            self._surroundings.end()
            return
        await asyncio.to_thread(self._machine.act, order.action, order.reason, order.force)
        if order.action is Action.HIBERNATE:  # and here it is awake again
            await self._tell(replace(self._pending, phase=Phase.IDLE))
            return
        await asyncio.sleep(ACT_SECONDS)
        raise TimeoutError(f"the machine is up still after {ACT_SECONDS:g} s")


def _check(caller: Caller) -> None:
    """Refuse everybody but the guest's host.

    Raises:
        RefusedError: it is somebody else.
    """
    if not caller.is_parent and caller is not MYSELF:
        raise RefusedError(f"the host alone shuts this guest down, and not {caller}")
