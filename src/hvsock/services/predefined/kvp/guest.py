"""The guest half: answers the host from the guest's store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, TypeVar

from hvsock.errors import BusyError, RefusedError, StateError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import MYSELF, Caller
from hvsock.services.service import call, download

from . import intrinsic
from .changes import Follower, item_of
from .interface import (
    ITEM_BYTES,
    SET_BYTES,
    AcknowledgeQuestion,
    Change,
    ChangeKind,
    DeleteQuestion,
    Done,
    Item,
    KeyQuestion,
    KeyValueExchange,
    OwnedQuestion,
    PoolQuestion,
    SetQuestion,
    WatchQuestion,
)
from .pools import Pool, Side
from .store import Store

if sys.platform != "linux":
    raise ImportError("guests run Linux")

T = TypeVar("T")

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.25
"""How often a watch looks for changes that another process made; what this one makes it learns at once."""
INTRINSIC_SECONDS: Final = 5.0
"""How old the intrinsic items may be when they are asked for."""
MAX_WATCHES: Final = 32
"""Most watches at once: each looks four times a second, for some 0.3 ms."""


class GuestExchange(KeyValueExchange):
    """Data exchange in the guest.

    Args:
        surroundings: those of the agent.
        intrinsics: what the guest says of itself.
    """

    def __init__(
        self, surroundings: Surroundings, intrinsics: Callable[[], dict[str, bytes]] = intrinsic.of_guest
    ) -> None:
        self._store = Store(surroundings.state_folder)
        self._intrinsics = intrinsics
        self._refreshed = -INTRINSIC_SECONDS
        self._watches: set[asyncio.Event] = set()
        try:
            self._store.check()
        except StateError as error:
            log.error("%s", error)
        self._refresh()

    @call(idempotent=True, max_bytes=ITEM_BYTES)
    async def get(self, caller: Caller, question: KeyQuestion) -> Item:
        """See the interface."""
        _check(caller)

        def act() -> Item:
            self._refresh()
            return item_of(self._store.get(question.pool, question.key))

        return await asyncio.to_thread(act)

    @download(max_bytes=ITEM_BYTES)
    async def enumerate(self, caller: Caller, question: PoolQuestion) -> AsyncIterator[Item]:
        """See the interface."""
        _check(caller)
        await asyncio.to_thread(self._refresh)
        for pool in sorted(frozenset(question.pools) or Pool):
            for pair in await asyncio.to_thread(self._store.pairs, pool):
                yield item_of(pair)

    @call(max_bytes=SET_BYTES)
    async def set(self, caller: Caller, question: SetQuestion) -> Done:
        """See the interface."""
        _check(caller)
        pairs = {one.key: one.value for one in question.settings}

        def act() -> int:
            if question.replace:
                return self._store.replace(Side.HOST, question.pool, pairs)
            return self._store.set(Side.HOST, question.pool, pairs, question.label)

        return Done(await self._changed(act), len(pairs))

    @call(max_bytes=SET_BYTES)
    async def delete(self, caller: Caller, question: DeleteQuestion) -> Done:
        """See the interface."""
        _check(caller)
        revision = await self._changed(lambda: self._store.delete(Side.HOST, question.pool, question.keys))
        return Done(revision, len(frozenset(question.keys)))

    @call(idempotent=True)
    async def delete_owned(self, caller: Caller, question: OwnedQuestion) -> Done:
        """See the interface."""
        _check(caller)
        return Done(*await self._changed(lambda: self._store.delete_owned(Side.HOST, question.label)))

    @call(idempotent=True)
    async def acknowledge(self, caller: Caller, question: AcknowledgeQuestion) -> Done:
        """See the interface."""
        _check(caller)

        def act() -> int:
            return self._store.acknowledge(Side.HOST, question.pool, question.key, question.revision)

        return Done(await self._changed(act), 1)

    @download(max_bytes=ITEM_BYTES)
    async def watch(self, caller: Caller, question: WatchQuestion) -> AsyncIterator[Change]:
        """See the interface."""
        _check(caller)
        if len(self._watches) >= MAX_WATCHES:
            raise BusyError(f"there are {MAX_WATCHES} watches already: end one, or ask for the keys instead")
        follower = Follower(self._store, question.epoch, question.revision, question.pools)
        woken = asyncio.Event()
        self._watches.add(woken)
        told: Change | None = None
        try:
            while True:
                woken.clear()
                await asyncio.to_thread(self._refresh)
                news = follower.news()
                while (change := await asyncio.to_thread(_next, news)) is not None:
                    if change.kind is ChangeKind.CURRENT and change == told:
                        continue
                    told = change if change.kind is ChangeKind.CURRENT else None
                    yield change
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await woken.wait()
        finally:
            self._watches.discard(woken)

    async def _changed(self, act: Callable[[], T]) -> T:
        """What `act` returns, which has changed the store."""
        result = await asyncio.to_thread(act)
        for woken in self._watches:
            woken.set()
        return result

    def _refresh(self) -> None:
        """Bring what the guest says of itself up to date."""
        now = time.monotonic()
        if now - self._refreshed >= INTRINSIC_SECONDS:
            self._store.replace(Side.GUEST, Pool.AUTO, self._intrinsics())
            self._refreshed = now


def _check(caller: Caller) -> None:
    """Refuse everybody but the guest's host.

    Raises:
        RefusedError: it is somebody else.
    """
    if not caller.is_parent and caller is not MYSELF:
        raise RefusedError(f"the host alone exchanges data with this guest, and not {caller}")


def _next(changes: Iterator[Change]) -> Change | None:
    return next(changes, None)
