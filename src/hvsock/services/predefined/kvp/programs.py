"""The guest's side for programs in the guest: straight from the agent's store, which wakes whoever watches.

::

    pairs = hvsock.services.predefined.kvp.local()
    pairs.set({"service.state": "up"})
    for change in pairs.watch():
        if change.item is not None and change.item.key == "config":
            use(change.item.value)
            pairs.acknowledge(change.item)

It is the agent's user's file: programs of other users have no part in it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from hvsock.errors import NotFoundError
from hvsock.services.agenthood import own_state_folder

from .changes import Follower, item_of
from .interface import Change, Item
from .pools import Pool, Side
from .store import Store

if sys.platform != "linux":
    raise ImportError("guests run Linux")

LOOK_SECONDS: Final = 0.25
"""How often a watch looks for changes; a look takes some 0.3 ms."""


class Local:
    """Data exchange as a program in the guest has it. Any thread may use it; every call may take milliseconds.

    Args:
        folder: the agent's state folder.
    """

    def __init__(self, folder: str) -> None:
        self._store = Store(folder)

    def get(self, key: str, pool: Pool = Pool.EXTERNAL) -> Item:
        """One key.

        Raises:
            NotFoundError: it is not there.
        """
        return item_of(self._store.get(pool, key))

    def items(self, *pools: Pool) -> list[Item]:
        """All keys of some pools, or of all; those of one pool are of one moment."""
        return [item_of(pair) for pool in sorted(frozenset(pools) or Pool) for pair in self._store.pairs(pool)]

    def set(self, pairs: Mapping[str, str | bytes], *, label: str = "") -> int:
        """Set keys of the pool guest, all or none; returns the revision once they are on the disk.

        Args:
            pairs: the values; text goes as UTF-8.
            label: of the program that owns them, for :meth:`delete_owned`.

        Raises:
            UsageError: a key or value is none, or the pool is full.
        """
        values = {key: one.encode() if isinstance(one, str) else one for key, one in pairs.items()}
        return self._store.set(Side.GUEST, Pool.GUEST, values, label)

    def delete(self, keys: Sequence[str]) -> int:
        """Delete keys of the pool guest, all or none; returns the revision.

        Raises:
            NotFoundError: one is not there.
        """
        return self._store.delete(Side.GUEST, Pool.GUEST, keys)

    def delete_owned(self, label: str | None = None) -> int:
        """Delete what a label owns ("" for what has none, None for all of the pool guest); returns how many."""
        return self._store.delete_owned(Side.GUEST, label)[1]

    def acknowledge(self, item: Item) -> None:
        """Tell the host that its value was taken note of.

        Raises:
            UsageError: the host has set it anew since; read it again.
        """
        self._store.acknowledge(Side.GUEST, item.pool, item.key, item.revision)

    def watch(
        self, *pools: Pool, epoch: str = "", revision: int = 0, timeout: float | None = None
    ) -> Iterator[Change]:
        """All changes; see :meth:`.host.Exchange.watch`.

        Args:
            pools: of some pools; of all where none is named.
            epoch: of the last change that was told earlier, with
            revision: its `resume`; without them, everything there is comes first.
            timeout: seconds until it ends; None for no end.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        follower = Follower(self._store, epoch, revision, pools)
        told: Change | None = None
        while True:
            for change in follower.news():
                if change != told:
                    yield change
                told = change
            left = LOOK_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, LOOK_SECONDS))


def local(folder: str | None = None) -> Local:
    """Data exchange with the host of this guest or partition.

    Args:
        folder: the agent's state folder, where it has another than the default.

    Raises:
        NotFoundError: there is none: no agent ran here as this user.
    """
    folder = folder or own_state_folder()
    if not os.path.isdir(folder):
        text = f"there is no {folder}: run the agent first, as the same user: hvsock agent"
        raise NotFoundError(f"{text}; or say which --state folder it has")
    return Local(folder)
