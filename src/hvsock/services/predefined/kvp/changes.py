"""What a watcher is told: the changes of a store after a revision, one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hvsock.errors import NotFoundError

from .interface import Change, ChangeKind, Item
from .pools import Pool
from .store import Pair, Store


def item_of(pair: Pair) -> Item:
    """A pair as it goes over the wire."""
    return Item(pair.pool, pair.key, pair.value, pair.owner, pair.revision, pair.acknowledged, pair.changed)


class Follower:
    """Tells the changes of a store after a revision.

    Args:
        store: the store.
        epoch: whose revision it is; "" for none.
        revision: what is known.
        pools: which pools count.
    """

    def __init__(self, store: Store, epoch: str, revision: int, pools: Collection[Pool]) -> None:
        self._store = store
        self._epoch = epoch
        self._revision = revision
        self._pools = frozenset(pools) or frozenset(Pool)

    def news(self) -> Iterator[Change]:
        """The changes since the last call, to be taken to the end; one value is in memory at a time."""
        state = self._store.state()
        if state.epoch != self._epoch or not state.oldest <= self._revision <= state.revision:
            self._epoch, self._revision = state.epoch, 0
            yield Change(ChangeKind.RESET, None, state.epoch, 0)
        state, touched = self._store.touched(self._revision)
        if state.epoch != self._epoch:
            return  # it was replaced just now; the next call says so
        for one in touched:
            if one.pool not in self._pools:
                continue
            if one.deleted:
                item = Item(one.pool, one.key, b"", one.owner, one.changed, 0, one.changed)
                yield Change(ChangeKind.DELETED, item, self._epoch, self._revision)
                continue
            try:
                pair = self._store.get(one.pool, one.key)
            except NotFoundError:
                continue  # deleted since: the next call tells
            yield Change(ChangeKind.SET, item_of(pair), self._epoch, self._revision)
        if state.revision != self._revision or state.revision == 0:
            self._revision = state.revision
        yield Change(ChangeKind.CURRENT, None, self._epoch, self._revision)
