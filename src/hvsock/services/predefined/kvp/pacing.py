"""How fast the changes of a guest are shown: as fast as people read, however fast the guest makes them up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final

from hvsock.services.rates import Bucket

from .interface import Change
from .pools import MAX_POOL_KEYS, Pool

SHOWN_PER_SECOND: Final = 50.0
"""Changes that are shown in a second, in the long run; nobody reads more, and a log of them stays small."""
SHOWN_AT_ONCE: Final = len(Pool) * MAX_POOL_KEYS
"""Changes that are shown at once: as many as there can be keys, all of which a watch begins with."""
SAID_SECONDS: Final = 60.0
"""Pause before it is said again that changes have to wait."""


async def paced(
    changes: AsyncIterator[Change],
    slow: Callable[[], object],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> AsyncGenerator[Change, None]:
    """The same changes, no faster than that.

    What comes faster waits in the guest, which has no more of it than its keys: of a key that changes meanwhile it
    tells the last value alone. A guest that lies waits as well.

    Args:
        changes: of a guest.
        slow: called when they have to wait, once in a while.
        clock: seconds.
        sleep: waits so many.
    """
    bucket = Bucket(SHOWN_PER_SECOND, SHOWN_AT_ONCE)
    said = Bucket(1 / SAID_SECONDS, 1)
    async for change in changes:
        if seconds := bucket.take_ahead(clock()):
            if said.take(clock()):
                slow()
            await sleep(seconds)
        yield change
