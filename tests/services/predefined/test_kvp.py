"""Data exchange over a fabric: a host and its guest, and guests that lie."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock._version import __version__
from hvsock.errors import LostError, NotFoundError, ProtocolError, RefusedError, UsageError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.policy import Policy
from hvsock.services.predefined.kvp import Exchange, exchange, local, pacing, pools
from hvsock.services.predefined.kvp.guest import GuestExchange
from hvsock.services.predefined.kvp.interface import (
    Change,
    ChangeKind,
    Done,
    Item,
    KeyQuestion,
    KeyValueExchange,
    PoolQuestion,
    SetQuestion,
    WatchQuestion,
)
from hvsock.services.predefined.kvp.pools import Pool
from hvsock.services.service import call, download
from hvsock.services.serving import Serving, serve
from hvsock.testing.fabric import fabric

PATIENCE = 30.0


def between(
    work: Callable[[Exchange, str], Awaitable[None]],
    folder: Path,
    *,
    guest: KeyValueExchange | None = None,
    policy: Policy = Policy(),  # noqa: B008
    introduce: bool = True,
) -> None:
    """Run `work` with an exchange, and the guest's state folder."""

    async def run() -> None:
        surroundings = Surroundings(False, str(folder), policy)
        half = guest or GuestExchange(surroundings)
        with fabric() as made:
            partition = made.create_partition("web01")
            async with (
                asyncio.timeout(PATIENCE),
                serve(half, bind="parent", partition=partition.folder, policy=policy),
                exchange("web01", partition=made.host.folder, introduce=introduce) as kvp,
            ):
                await work(kvp, str(folder))

    asyncio.run(run())


def test_what_the_host_sets_the_guest_reads_and_acknowledges(tmp_path: Path) -> None:
    async def work(kvp: Exchange, folder: str) -> None:
        revision = await kvp.set({"config": "x=1", "raw": b"\0\xff"}, label="deploy")
        mine = local(folder)
        assert mine.get("config").text == "x=1"
        assert mine.get("raw").value == b"\0\xff"
        waiting = asyncio.create_task(kvp.wait_acknowledged("config", revision))
        with pytest.raises(TimeoutError, match="nobody acknowledged 'raw'"):
            await kvp.wait_acknowledged("raw", revision, timeout=0.05)
        assert not waiting.done()
        await asyncio.to_thread(mine.acknowledge, mine.get("config"))
        await waiting
        assert (await kvp.get("config", Pool.EXTERNAL)).is_acknowledged
        assert await kvp.delete_owned("deploy") == 2
        with pytest.raises(NotFoundError):
            await kvp.get("config", Pool.EXTERNAL)

    between(work, tmp_path)


def test_what_the_guest_sets_the_host_reads_and_acknowledges(tmp_path: Path) -> None:
    async def work(kvp: Exchange, folder: str) -> None:
        mine = local(folder)
        mine.set({"state": "up"})
        item = await kvp.get("state")
        assert (item.text, item.owner) == ("up", "guest")
        await kvp.acknowledge(item)
        assert mine.get("state", Pool.GUEST).is_acknowledged
        mine.set({"state": "down"})
        with pytest.raises(UsageError, match="read it again"):
            await kvp.acknowledge(item)

    between(work, tmp_path)


def test_both_sides_say_who_they_are(tmp_path: Path) -> None:
    async def work(kvp: Exchange, folder: str) -> None:
        said = {one.key: one.text for one in await kvp.items(Pool.AUTO)}
        assert said["IntegrationServicesVersion"] == __version__
        assert said["ProcessorArchitecture"]
        assert said["FullyQualifiedDomainName"]
        assert {"OSName", "OSVersion", "OSMajorVersion", "NetworkAddressIPv4", "NetworkAddressIPv6"} <= said.keys()
        assert "127.0.0.1" not in said["NetworkAddressIPv4"]
        heard = {one.key: one.text for one in local(folder).items(Pool.AUTO_EXTERNAL)}
        assert heard["VirtualMachineName"] == "web01"
        assert len(heard["VirtualMachineId"]) == 36
        assert heard["HostName"] == heard["PhysicalHostName"]
        assert (await kvp.find("HostName")).text == heard["HostName"]
        with pytest.raises(NotFoundError, match="in any pool"):
            await kvp.find("nothing")

    between(work, tmp_path)


def test_what_the_guest_says_of_itself_is_kept_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvsock.services.predefined.kvp.guest.INTRINSIC_SECONDS", 0.0)
    said = {"OSName": b"one"}
    half = GuestExchange(Surroundings(False, str(tmp_path)), lambda: dict(said))

    async def work(kvp: Exchange, folder: str) -> None:
        assert (await kvp.get("OSName", Pool.AUTO)).text == "one"
        said["OSName"] = b"two"
        assert (await kvp.get("OSName", Pool.AUTO)).text == "two"

    between(work, tmp_path, guest=half)


def test_values_of_a_mebibyte_and_pools_that_are_full(tmp_path: Path) -> None:
    async def work(kvp: Exchange, folder: str) -> None:
        largest = bytes(range(256)) * (pools.MAX_VALUE_BYTES // 256)
        await kvp.set({f"large{one}": largest for one in range(3)})
        assert (await kvp.get("large1", Pool.EXTERNAL)).value == largest
        assert [one.key for one in await kvp.items(Pool.EXTERNAL)] == ["large0", "large1", "large2"]
        with pytest.raises(UsageError, match="copy a file instead"):
            await kvp.set({"larger": largest + b"x"})
        with pytest.raises(UsageError, match="are the most"):
            await kvp.set({f"large{one}": largest for one in range(5)})
        await kvp.set({f"more{one}": largest for one in range(3)})
        with pytest.raises(UsageError, match="delete some"):
            await kvp.set({f"again{one}": largest for one in range(3)})
        assert len(await kvp.items(Pool.EXTERNAL)) == 6

    between(work, tmp_path)


def test_the_host_writes_its_own_pools_alone(tmp_path: Path) -> None:
    async def work(kvp: Exchange, folder: str) -> None:
        with pytest.raises(RefusedError, match="written by the guest"):
            await kvp.set({"a": "1"}, Pool.GUEST)
        local(folder).set({"a": "1"})
        with pytest.raises(RefusedError, match="written by the guest"):
            await kvp.delete(["a"], Pool.GUEST)
        await kvp.set({"b": "1"})
        own = await kvp.get("b", Pool.EXTERNAL)
        with pytest.raises(RefusedError, match="for the other side"):
            await kvp.acknowledge(own)

    between(work, tmp_path)


def test_nobody_but_the_host_is_answered(tmp_path: Path) -> None:
    half = GuestExchange(Surroundings(False, str(tmp_path)))
    stranger = Caller(KeyValueExchange.ID)  # type: ignore[arg-type]

    async def run() -> None:
        with pytest.raises(RefusedError, match="the host alone"):
            await GuestExchange.get.handler(half, stranger, KeyQuestion(Pool.AUTO, "OSName"))

    asyncio.run(run())


def test_policy_denies_by_name(tmp_path: Path) -> None:
    async def work(kvp: Exchange, folder: str) -> None:
        with pytest.raises(RefusedError, match=r"kvp\.set is denied"):
            await kvp.set({"a": "1"})
        assert await kvp.items(Pool.AUTO)

    between(work, tmp_path, policy=Policy.of(deny=["kvp.set"]), introduce=False)


async def until(changes: AsyncIterator[Change], kind: ChangeKind, key: str | None = None) -> Change:
    async for change in changes:
        if change.kind is kind and (change.item and change.item.key) == key:
            return change
    raise AssertionError("the watch has ended")


def test_a_watch_tells_what_either_side_does_and_loses_nothing(tmp_path: Path) -> None:
    async def work(kvp: Exchange, folder: str) -> None:
        mine = local(folder)
        async with contextlib.aclosing(kvp.watch(Pool.GUEST, Pool.EXTERNAL)) as changes:
            last = await until(changes, ChangeKind.CURRENT)
            await kvp.set({"by the host": "1"})
            await until(changes, ChangeKind.SET, "by the host")
            await asyncio.to_thread(mine.set, {"by a program": "1"})
            await until(changes, ChangeKind.SET, "by a program")
        await asyncio.to_thread(mine.set, {"meanwhile": "1"})
        await asyncio.to_thread(mine.delete, ["by a program"])
        async with contextlib.aclosing(
            kvp.watch(Pool.GUEST, Pool.EXTERNAL, epoch=last.epoch, revision=last.resume)
        ) as changes:
            told = [await anext(changes) for _ in range(4)]
        assert [(one.kind, one.item and one.item.key) for one in told] == [
            (ChangeKind.SET, "by the host"),
            (ChangeKind.SET, "meanwhile"),
            (ChangeKind.DELETED, "by a program"),
            (ChangeKind.CURRENT, None),
        ]

    between(work, tmp_path)


def test_a_watch_goes_on_when_the_agent_is_another(tmp_path: Path) -> None:
    async def run() -> None:
        surroundings = Surroundings(False, str(tmp_path))
        with fabric() as made:
            guest = made.create_partition("web01")
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(asyncio.timeout(PATIENCE))

                async def agent() -> contextlib.AsyncExitStack:
                    one = contextlib.AsyncExitStack()
                    await one.enter_async_context(
                        serve(GuestExchange(surroundings), bind="parent", partition=guest.folder)
                    )
                    return one

                first = await agent()
                kvp = await stack.enter_async_context(exchange("web01", partition=made.host.folder))
                changes = await stack.enter_async_context(contextlib.aclosing(kvp.watch(Pool.GUEST)))
                await until(changes, ChangeKind.CURRENT)
                await first.aclose()
                await asyncio.to_thread(local(str(tmp_path)).set, {"while it was away": "1"})
                second = await agent()
                change = await anext(changes)
                assert change.item is not None
                assert change.item.key == "while it was away"
                await changes.aclose()
                await second.aclose()

    asyncio.run(run())


# -- guests that lie


def item(key: str, value: bytes = b"", pool: Pool = Pool.GUEST) -> Item:
    return Item(pool, key, value, "guest", 1, 0, 1)


class Liar(KeyValueExchange):
    """A guest half under somebody else's command."""

    def __init__(self) -> None:
        self.told = 0
        self.closed = asyncio.Event()

    @download
    async def enumerate(self, caller: Caller, question: PoolQuestion) -> AsyncIterator[Item]:
        try:
            while True:
                self.told += 1
                yield self.next_item()
        finally:
            self.closed.set()

    def next_item(self) -> Item:
        return item(f"key{self.told}")

    @call
    async def get(self, caller: Caller, question: KeyQuestion) -> Item:
        return item("another")

    @call
    async def set(self, caller: Caller, question: SetQuestion) -> Done:
        await asyncio.Event().wait()
        raise AssertionError

    @download
    async def watch(self, caller: Caller, question: WatchQuestion) -> AsyncIterator[Change]:
        yield Change(ChangeKind.SET, None, "e", 2**64 - 1)


class GiantLiar(Liar):
    def next_item(self) -> Item:
        return item(f"key{self.told}", bytes(pools.MAX_VALUE_BYTES))


class RepeatingLiar(Liar):
    def next_item(self) -> Item:
        return item("the same")


class UnaskedLiar(Liar):
    def next_item(self) -> Item:
        return item("a", pool=Pool.AUTO)


@pytest.mark.parametrize(
    ("liar", "most", "says"),
    [
        (Liar, pools.MAX_POOL_KEYS + 10_000, "tells more than"),
        (GiantLiar, 20, "tells more than"),
        (RepeatingLiar, 20_000, "twice, or unasked"),
        (UnaskedLiar, 20_000, "twice, or unasked"),
    ],
)
def test_a_guest_that_enumerates_without_end(tmp_path: Path, liar: type[Liar], most: int, says: str) -> None:
    """It is stopped by what is accepted, and can have sent only little more: its stream waits for the reader."""

    async def run() -> None:
        guest = liar()

        async def work(kvp: Exchange, folder: str) -> None:
            with pytest.raises(ProtocolError, match=says):
                await kvp.items(Pool.GUEST)
            await guest.closed.wait()
            assert guest.told <= most

        await _serving(guest, work)

    asyncio.run(run())


async def _serving(guest: Any, work: Callable[[Exchange, str], Awaitable[None]]) -> None:
    with fabric() as made:
        partition = made.create_partition("web01")
        async with asyncio.timeout(PATIENCE), serve(guest, bind="parent", partition=partition.folder) as served:
            assert isinstance(served[0], Serving)
            async with exchange("web01", partition=made.host.folder, introduce=False) as kvp:
                await work(kvp, "")


class RestlessLiar(Liar):
    """Makes up a change of another key, as fast as anybody takes them."""

    @download
    async def watch(self, caller: Caller, question: WatchQuestion) -> AsyncIterator[Change]:
        try:
            while True:
                self.told += 1
                yield Change(ChangeKind.SET, item(f"key{self.told}"), "e", self.told)
        finally:
            self.closed.set()


def test_a_guest_that_changes_without_end_is_shown_at_a_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is one of the test's own; what waits, waits in the guest."""
    monkeypatch.setattr(pacing, "SHOWN_AT_ONCE", 100)
    monkeypatch.setattr(pacing, "SHOWN_PER_SECOND", 5.0)
    now = 0.0
    said = 0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow() -> None:
        nonlocal said
        said += 1

    async def work(kvp: Exchange, folder: str) -> None:
        shown = 0
        async with (
            contextlib.aclosing(kvp.watch()) as told,
            contextlib.aclosing(pacing.paced(told, slow, clock=lambda: now, sleep=sleep)) as changes,
        ):
            async for _ in changes:
                shown += 1
                if now >= 61:
                    break
        assert shown == pytest.approx(pacing.SHOWN_AT_ONCE + 61 * pacing.SHOWN_PER_SECOND, abs=2)
        assert said == 2  # at first, and a minute later
        await guest.closed.wait()
        assert guest.told < shown + 20_000  # what the windows of the connection hold

    guest = RestlessLiar()
    asyncio.run(_serving(guest, work))


def test_all_keys_there_are_are_shown_at_once() -> None:
    """And again after a while: nothing waits that a guest may have."""
    now = 0.0

    async def changes() -> AsyncIterator[Change]:
        nonlocal now
        for _ in range(2):
            for number in range(pacing.SHOWN_AT_ONCE):
                yield Change(ChangeKind.SET, item(f"key{number}"), "e", number)
            now += pacing.SHOWN_AT_ONCE / pacing.SHOWN_PER_SECOND

    async def never(seconds: float) -> None:
        raise AssertionError(f"it waits {seconds} s")

    async def run() -> int:
        paced = pacing.paced(changes(), lambda: None, clock=lambda: now, sleep=never)
        return len([one async for one in paced])

    assert asyncio.run(run()) == 2 * pacing.SHOWN_AT_ONCE


def test_a_guest_that_answers_with_something_else_or_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyValueExchange.set, "timeout", 0.2)

    async def work(kvp: Exchange, folder: str) -> None:
        with pytest.raises(ProtocolError, match="answered with 'another'"):
            await kvp.get("state")
        with pytest.raises(TimeoutError, match="was not over"):
            await kvp.set({"a": "1"})
        with pytest.raises(ProtocolError, match="without saying of what"):
            await anext(kvp.watch())

    async def run() -> None:
        await _serving(Liar(), work)

    asyncio.run(run())


def test_a_guest_whose_fields_are_beyond_their_bounds() -> None:
    """It is another program, which knows no bounds: a host does not take a value, a key or a kind of that sort."""
    from hvsock.services.predefined.kvp import interface
    from hvsock.services.service import codec_of

    codec = codec_of(KeyValueExchange)
    good = codec.encode(item("k", b"v"))
    assert codec.decode(Item, good) == item("k", b"v")
    for bad in (
        good.replace(b"\x08\x01", b"\x08\x63", 1),  # a pool that is none
        codec.encode(item("k", b"v")) + b"\x12\x81\x08" + b"x" * 1025,  # a key of 1025 bytes
        b"\xff" * 20,
    ):
        with pytest.raises(ProtocolError):
            codec.decode(Item, bad)
    assert interface.ITEM_BYTES < pools.MAX_VALUE_BYTES + 8192


def test_a_lost_connection_within_a_set_is_told() -> None:
    leaving = asyncio.Event()

    class Leaver(Liar):
        @call
        async def set(self, caller: Caller, question: SetQuestion) -> Done:
            leaving.set()
            await asyncio.Event().wait()
            raise AssertionError

    async def run() -> None:
        with fabric() as made:
            partition = made.create_partition("web01")
            async with (
                serve(Leaver(), bind="parent", partition=partition.folder) as (serving,),
                exchange("web01", partition=made.host.folder, introduce=False) as kvp,
            ):
                setting = asyncio.create_task(kvp.set({"a": "1"}))
                await leaving.wait()
                await serving.close()
                with pytest.raises(LostError):
                    await setting

    asyncio.run(run())
