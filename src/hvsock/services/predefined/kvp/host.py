"""The host's side: what is asked of a guest, and what is believed of its answers, which is nothing unchecked."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Final

from hvsock.errors import LostError, NoFabricError, NotFoundError, NotReadyError, ProtocolError, UsageError
from hvsock.fabric import client, paths
from hvsock.machines import known
from hvsock.names import has_broker, resolve
from hvsock.services.connecting import CONNECT_SECONDS, connect

from . import intrinsic
from .interface import (
    AcknowledgeQuestion,
    Change,
    ChangeKind,
    DeleteQuestion,
    Item,
    KeyQuestion,
    KeyValueExchange,
    OwnedQuestion,
    PoolQuestion,
    SetQuestion,
    Setting,
    WatchQuestion,
)
from .pools import MAX_POOL_BYTES, MAX_POOL_KEYS, Pool, Side, check_key, check_pairs, check_writer, own_pool

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

LIST_SECONDS: Final = 60.0
"""Longest listing: 32 MiB come in a second, or ten from an emulated guest."""
PAUSE_SECONDS: Final = 0.25
"""Pause before a lost watch is begun again."""


class Exchange:
    """Data exchange with one guest; use :func:`exchange`, which makes one.

    Every value that comes from the guest is whatever somebody in it wanted it to be.

    Args:
        service: what stands for the guest half.
    """

    def __init__(self, service: KeyValueExchange) -> None:
        self._service = service

    async def get(self, key: str, pool: Pool = Pool.GUEST) -> Item:
        """One key.

        Raises:
            NotFoundError: it is not there.
            ProtocolError: the guest answered with something else.
        """
        check_key(key)
        item = await self._service.get(KeyQuestion(pool, key))
        if (item.pool, item.key) != (pool, key):
            raise ProtocolError(f"the guest was asked for {key!a} and answered with {item.key!a}")
        return item

    async def find(self, key: str) -> Item:
        """One key, of the first pool that has it: guest, auto, external, auto_external.

        Raises:
            NotFoundError: none has.
        """
        for pool in (Pool.GUEST, Pool.AUTO, Pool.EXTERNAL, Pool.AUTO_EXTERNAL):
            with contextlib.suppress(NotFoundError):
                return await self.get(key, pool)
        raise NotFoundError(f"there is no key {key!a} in any pool")

    async def items(self, *pools: Pool) -> list[Item]:
        """All keys of some pools, or of all.

        Raises:
            ProtocolError: the guest told more than there can be, or what no guest of ours tells.
            TimeoutError: it did not come to an end.
        """
        asked = frozenset(pools) or frozenset(Pool)
        found: dict[tuple[Pool, str], Item] = {}
        size = dict.fromkeys(asked, 0)
        keys = dict.fromkeys(asked, 0)
        told = self._service.enumerate(PoolQuestion(sorted(asked)), timeout=LIST_SECONDS)
        async with contextlib.aclosing(told) as answers:
            async for item in answers:
                if item.pool not in asked or (item.pool, item.key) in found:
                    raise ProtocolError(f"the guest tells {item.key!a} of {item.pool.word} twice, or unasked")
                _check_told(item)
                keys[item.pool] += 1
                size[item.pool] += len(item.key.encode()) + len(item.value)
                if keys[item.pool] > MAX_POOL_KEYS or size[item.pool] > MAX_POOL_BYTES:
                    raise ProtocolError(
                        f"the guest tells more than {MAX_POOL_KEYS} keys or {MAX_POOL_BYTES} bytes of "
                        f"{item.pool.word}; it lies, or is of another version"
                    )
                found[item.pool, item.key] = item
        return list(found.values())

    async def set(self, pairs: Mapping[str, str | bytes], pool: Pool = Pool.EXTERNAL, *, label: str = "") -> int:
        """Set keys, all or none.

        Args:
            pairs: the values; text goes as UTF-8.
            pool: external; what is in auto_external is hvsock's own.
            label: of the program that owns them, for :meth:`delete_owned`.

        Returns:
            The revision, once they are on the guest's disk.

        Raises:
            UsageError: a key or value is none, or the pool is full.
            RefusedError: the pool is the guest's.
            LostError: the connection ended within, and the keys are set or not, but all or none.
        """
        values = {key: one.encode() if isinstance(one, str) else one for key, one in pairs.items()}
        check_writer(pool, Side.HOST)
        check_pairs(values)
        settings = [Setting(key, value) for key, value in values.items()]
        return (await self._service.set(SetQuestion(pool, settings, label))).revision

    async def delete(self, keys: Sequence[str], pool: Pool = Pool.EXTERNAL) -> int:
        """Delete keys, all or none; returns the revision.

        Raises:
            NotFoundError: one is not there.
            RefusedError: the pool is the guest's.
        """
        return (await self._service.delete(DeleteQuestion(pool, list(keys)))).revision

    async def delete_owned(self, label: str | None = None) -> int:
        """Delete what a label owns ("" for what has none, None for all of the host's); returns how many."""
        return (await self._service.delete_owned(OwnedQuestion(label))).count

    async def acknowledge(self, item: Item) -> None:
        """Tell the guest that its value was taken note of.

        Raises:
            UsageError: the guest has set it anew since.
        """
        await self._service.acknowledge(AcknowledgeQuestion(item.pool, item.key, item.revision))

    async def wait_acknowledged(self, key: str, revision: int, *, timeout: float | None = None) -> None:
        """Wait until the guest has acknowledged a key as it was set at a revision, or later.

        Args:
            key: of the pool external.
            revision: what :meth:`set` returned.
            timeout: seconds; None for no limit.

        Raises:
            TimeoutError: it did not.
            NotFoundError: the key was deleted.
        """
        pool = own_pool(Side.HOST)
        try:
            async with asyncio.timeout(timeout), contextlib.aclosing(self.watch(pool)) as changes:
                async for change in changes:
                    if change.item is None or (change.item.pool, change.item.key) != (pool, key):
                        continue
                    if change.kind is ChangeKind.DELETED:
                        raise NotFoundError(f"{key!a} was deleted before anybody acknowledged it")
                    if change.item.acknowledged >= revision:
                        return
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, f"nobody acknowledged {key!a} within {timeout:g} s") from None

    async def watch(self, *pools: Pool, epoch: str = "", revision: int = 0) -> AsyncGenerator[Change, None]:
        """All changes, without end; a lost connection is made again, and what happened meanwhile is told.

        Args:
            pools: of some pools; of all where none is named.
            epoch: of the last change that was told earlier, with
            revision: its `resume`; without them, everything there is comes first.
        """
        while True:
            asked = WatchQuestion(epoch, revision, sorted(frozenset(pools)))
            try:
                async with contextlib.aclosing(self._service.watch(asked)) as changes:
                    async for change in changes:
                        if (change.item is None) is (change.kind in (ChangeKind.SET, ChangeKind.DELETED)):
                            raise ProtocolError("the guest tells a change without saying of what")
                        if change.item is not None:
                            _check_told(change.item)
                        epoch, revision = change.epoch, change.resume
                        yield change
            except (LostError, NoFabricError, NotReadyError, ConnectionError, TimeoutError):
                pass  # the guest is away; it may come back
            await asyncio.sleep(PAUSE_SECONDS)

    async def introduce(self, vm_name: str, vm_id: str) -> None:
        """Tell the guest what it is called, and by whom: the pool auto_external."""
        items = intrinsic.of_host(vm_name, vm_id)
        settings = [Setting(key, value) for key, value in items.items()]
        await self._service.set(SetQuestion(Pool.AUTO_EXTERNAL, settings, replace=True))


@contextlib.asynccontextmanager
async def exchange(
    vm: str,
    *,
    partition: str | None = None,
    timeout: float | None = CONNECT_SECONDS,
    wait: bool = False,
    introduce: bool = True,
) -> AsyncIterator[Exchange]:
    """Data exchange with a guest, which is told at once who its host is.

    Args:
        vm: its name or VmId.
        partition: the folder of the host's partition; by default that of the process.
        timeout: seconds until it has to be connected.
        wait: wait for an agent that is not there yet.
        introduce: set the pool auto_external.

    Raises:
        OSError, HvsockError: what :func:`hvsock.services.connecting.connect` raises.
    """
    async with connect(KeyValueExchange, vm, partition=partition, timeout=timeout, wait=wait) as service:
        made = Exchange(service)
        if introduce:
            await made.introduce(*await asyncio.to_thread(_named, vm, partition))
        yield made


def _check_told(item: Item) -> None:
    """Refuse a key of the guest's that no store of ours has.

    Raises:
        ProtocolError: it is none.
    """
    try:
        check_key(item.key)
    except UsageError as error:
        raise ProtocolError(f"the guest tells of a key that is none: {error}") from None


def _named(vm: str, partition: str | None) -> tuple[str, str]:
    """The name and the VmId of a VM, as its host knows them."""
    vm_id = resolve((vm, KeyValueExchange.ID), partition).vm_id
    if not has_broker():
        configured = known.with_id(vm_id)
        return "" if configured is None else configured.name, vm_id
    found = client.call(partition or paths.partition_folder(), "partition.list")
    return next((one["name"] for one in found if one["id"] == vm_id), ""), vm_id
