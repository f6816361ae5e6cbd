"""The host's side: ask a guest to go down, and wait until it is."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from collections.abc import Callable
from typing import Final

from hvsock.errors import HvsockError, LostError, NoFabricError, RemoteError, UsageError
from hvsock.services.connecting import connect

from .interface import (
    MAX_REASON_BYTES,
    MAX_WINDOW_SECONDS,
    Action,
    Order,
    Pending,
    Phase,
    Question,
    ShutdownService,
)

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

LOOK_SECONDS: Final = 0.25
"""Pause between two looks whether a guest is there."""
PROBE_SECONDS: Final = 5.0
"""How long a guest that goes down may take to answer, before it counts as gone."""


async def shut_down(
    vm: str,
    action: Action = Action.SHUTDOWN,
    *,
    reason: str = "",
    timeout: int = 0,
    force: bool = False,
    wait: float | None = None,
    told: Callable[[Pending], object] = lambda pending: None,
    partition: str | None = None,
) -> Pending:
    """Ask a guest to shut down, to start again or to hibernate.

    Args:
        vm: its name or VmId.
        action: what.
        reason: why, for its log.
        timeout: seconds until it does, within which :func:`cancel` calls it off.
        force: do not ask its programs to end first.
        wait: seconds, after `timeout`, to wait until it is gone, or, of a reboot, there again; None not to.
        told: is called with what the guest says of its progress.
        partition: the folder of the host's partition; by default that of the process.

    Returns:
        What the guest answered before it began.

    Raises:
        BusyError: another is under way.
        NotReadyError: the guest cannot be switched off just now.
        RefusedError: it cannot do that at all.
        RemoteError: it tried and failed, or it was called off, while this waited.
        TimeoutError: it was not over in time.
        OSError, HvsockError: the guest does not answer.
    """
    if len(reason.encode("utf-8", "replace")) > MAX_REASON_BYTES:
        raise UsageError(f"a reason of {len(reason)} characters; {MAX_REASON_BYTES} bytes are the most")
    if not 0 <= timeout <= MAX_WINDOW_SECONDS:
        raise UsageError(f"a time-out of {timeout} s; between 0 and {MAX_WINDOW_SECONDS} can be")
    async with connect(ShutdownService, vm, partition=partition) as service:
        answer = await service.order(Order(action, reason, timeout, force))
        if answer.phase is not Phase.WAITING or answer.action is not action:
            raise RemoteError(f"{vm} was asked for a {action.word} and answered with something else")
        told(answer)
        if wait is None:
            return answer
        try:
            async with asyncio.timeout(timeout + wait):
                if not await _follow(service, answer.instance, told):
                    await _gone(vm, answer.instance, partition, back=action is Action.REBOOT)
        except TimeoutError:
            raise TimeoutError(
                errno.ETIMEDOUT, f"the {action.word} of {vm} was not over within {timeout + wait:g} s"
            ) from None
    return answer


async def cancel(vm: str, *, partition: str | None = None) -> Pending:
    """Call off what a guest was asked for, within its time-out.

    Raises:
        NotFoundError: nothing waits.
        BusyError: it is being done already.
        OSError, HvsockError: the guest does not answer.
    """
    async with connect(ShutdownService, vm, partition=partition) as service:
        return await service.cancel(Question())


async def pending(vm: str, *, partition: str | None = None) -> Pending:
    """How far a guest is with what it was asked for.

    Raises:
        OSError, HvsockError: the guest does not answer.
    """
    async with connect(ShutdownService, vm, partition=partition) as service:
        return await service.pending(Question())


async def _follow(service: ShutdownService, instance: str, told: Callable[[Pending], object]) -> bool:
    """Follow a guest until it is gone; returns whether it is back already, from hibernation.

    Raises:
        RemoteError: it failed, or it was called off.
    """
    before = Phase.WAITING
    with contextlib.suppress(LostError, NoFabricError, ConnectionError):
        async with contextlib.aclosing(service.follow(Question())) as answers:
            async for now in answers:
                if now.instance != instance:
                    break
                told(now)
                if now.phase is Phase.FAILED:
                    raise RemoteError(f"the {now.action.word} failed: {now.error or 'no reason was given'}")
                if now.phase is Phase.IDLE and before is Phase.WAITING:
                    raise RemoteError(f"the {now.action.word} was called off")
                if now.phase is Phase.IDLE:
                    return True
                before = now.phase
    return False


async def _gone(vm: str, instance: str, partition: str | None, *, back: bool) -> None:
    """Wait until the agent of an instance does not answer, and, with `back`, another does."""
    while True:
        there = ""
        with contextlib.suppress(OSError, HvsockError):
            async with connect(ShutdownService, vm, partition=partition, timeout=PROBE_SECONDS) as service:
                there = (await service.pending(Question(), timeout=PROBE_SECONDS)).instance
        if there != instance and bool(there) is back:
            return
        await asyncio.sleep(LOOK_SECONDS)
