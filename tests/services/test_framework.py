"""The framework over a local fabric: every shape, who calls, what goes wrong, and what comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock import SHUT_WR
from hvsock.addresses import HV_GUID_PARENT
from hvsock.errors import (
    LostError,
    NegotiationError,
    NotFoundError,
    ProtocolError,
    RefusedError,
    RemoteError,
    UsageError,
)
from hvsock.services import connecting
from hvsock.services.caller import Caller
from hvsock.services.connecting import connect
from hvsock.services.policy import Policy
from hvsock.services.serving import MAX_CONNECTIONS_OF_ONE, Serving, raw_service, serve
from hvsock.sockets.aio import connected
from hvsock.sockets.chosen import socket
from hvsock.testing.fabric import EmbeddedFabric, PartitionHandle, fabric
from tests.services.inventory import Colour, Inventory, Item, NewInventory, Query

PATIENCE_SECONDS = 20.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client of HTTP/2 says first (RFC 9113, 3.4)."""


@dataclass
class World:
    """A fabric with a host and a guest, and the service in the guest.

    Attributes:
        fabric, guest: what there is.
        inventory: what is served.
        serving: as what.
    """

    fabric: EmbeddedFabric
    guest: PartitionHandle
    inventory: Inventory
    serving: Serving

    def connect(self, service: Any = Inventory, **settings: Any) -> Any:
        """The service, for the host."""
        return connect(service, "web01", partition=self.fabric.host.folder, **settings)


def in_world(test: Callable[[World], Coroutine[Any, Any, None]], policy: Policy = Policy()) -> None:  # noqa: B008
    """Run a test in a new world."""

    async def run() -> None:
        with fabric() as made:
            made.register("Inventory", Inventory.ID)
            guest = made.create_partition("web01")
            inventory = Inventory()
            async with (
                asyncio.timeout(PATIENCE_SECONDS),
                serve(inventory, bind="parent", partition=guest.folder, policy=policy) as (serving,),
            ):
                await test(World(made, guest, inventory, serving))

    asyncio.run(run())


async def items(*numbers: int) -> AsyncIterator[Item]:
    for number in numbers:
        yield Item("", number)


def test_every_shape_and_every_kind_of_field() -> None:
    item = Item(
        "Grüße",
        -(2**63),
        0.5,
        Colour.RED,
        b"\0\xff",
        True,
        0,
        Query("inner"),
        ["a", ""],
        [Query(), Query("q", 2**32 - 1)],
        {"b": 2},
        {"c": Query("by name")},
    )

    async def test(world: World) -> None:
        async with world.connect() as inventory:
            assert await inventory.count(Query("ssl", 7)) == Item("ssl", 7)
            assert [one.number async for one in inventory.find(Query("", 1000))] == list(range(1000))
            assert (await inventory.put(items(1, 2, 3))).number == 6
            assert (await inventory.put(items())).number == 0

            async def whole() -> AsyncIterator[Item]:
                yield item

            assert [one async for one in inventory.echo(whole())] == [item]
        assert world.inventory.callers == [Caller(HV_GUID_PARENT, 2, frozenset({"find", "put"}))]

    in_world(test)


def test_a_guest_calls_its_host() -> None:
    async def run() -> None:
        with fabric() as made:
            made.register("Inventory", Inventory.ID)
            guest = made.create_partition("web01")
            inventory = Inventory()
            async with (
                serve(inventory, partition=made.host.folder),
                connect(Inventory, "parent", partition=guest.folder) as remote,
            ):
                await remote.count(Query())
            assert [one.vm_id for one in inventory.callers] == [guest.id]

    asyncio.run(run())


def test_without_a_connection() -> None:
    async def run() -> None:
        inventory = Inventory()
        assert await inventory.count(Query("x", 1)) == Item("x", 1)
        assert [one.number async for one in inventory.find(Query("", 3))] == [0, 1, 2]

    asyncio.run(run())


def test_errors_by_their_class() -> None:
    async def test(world: World) -> None:
        async with world.connect() as inventory:
            with pytest.raises(NotFoundError, match="no such thing: Grüße"):
                await inventory.fail(Query("not found"))
            with pytest.raises(RemoteError, match=r"Permission denied \(errno 13\)"):
                await inventory.fail(Query("OSError"))
            with pytest.raises(RemoteError, match=r"inventory\.fail failed") as caught:
                await inventory.fail(Query("secret"))
            assert "secret" not in str(caught.value)
            with pytest.raises(UsageError, match="2147483648000 is no uint32"):
                await inventory.count(Query("", 2147483648000))
            assert (await inventory.count(Query("still"))).name == "still"

    in_world(test)


def test_a_deadline_cancels_the_handler() -> None:
    async def test(world: World) -> None:
        async with world.connect() as inventory:
            with pytest.raises(TimeoutError, match=r"inventory\.wait was not over"):
                await inventory.wait(Query(), timeout=0.1)
            while world.inventory.events != ["begun", "over"]:
                await asyncio.sleep(0.005)

    in_world(test)


def test_who_leaves_early_cancels_the_handler() -> None:
    async def test(world: World) -> None:
        async with world.connect() as inventory:
            async with contextlib.aclosing(inventory.find(Query("x" * 1000, 10**6))) as found:
                async for _ in found:
                    break
            while world.inventory.events != ["find ended"]:
                await asyncio.sleep(0.005)
            waiting = asyncio.create_task(inventory.wait(Query()))
            while "begun" not in world.inventory.events:
                await asyncio.sleep(0.005)
            waiting.cancel()
            while "over" not in world.inventory.events:
                await asyncio.sleep(0.005)
            assert (await inventory.count(Query("still"))).name == "still"

    in_world(test)


def test_a_slow_reader_stalls_itself_alone() -> None:
    async def test(world: World) -> None:
        async with (
            world.connect() as inventory,
            contextlib.aclosing(inventory.find(Query("x" * 50_000, 10**6))) as found,
        ):
            await anext(found)
            before = -1
            while world.inventory.produced != before:  # until its windows are full
                before = world.inventory.produced
                assert [await inventory.count(Query("a", n)) for n in range(20)]
            assert world.inventory.produced < 100

    in_world(test)


def test_what_the_policy_denies() -> None:
    async def test(world: World) -> None:
        async with world.connect() as inventory:
            with pytest.raises(RefusedError, match=r"inventory\.put is denied"):
                await inventory.put(items(1))
            assert (await inventory.count(Query("x"))).name == "x"

    in_world(test, Policy.of(deny=["inventory.put"]))


def test_no_version_in_common() -> None:
    async def test(world: World) -> None:
        text = "other side speaks version 3, and this side versions 1, 2"
        with pytest.raises(NegotiationError, match=text):
            async with world.connect(NewInventory):
                pass

    in_world(test)


def test_a_service_that_is_not_ready_yet() -> None:
    async def run() -> None:
        opened = asyncio.Event()

        class Late(Inventory):
            async def ready(self) -> None:
                await opened.wait()

        with fabric() as made:
            made.register("Inventory", Inventory.ID)
            guest = made.create_partition("web01")
            async with serve(Late(), bind="parent", partition=guest.folder):
                with pytest.raises(TimeoutError, match="did not answer"):
                    async with connect(Inventory, "web01", partition=made.host.folder, timeout=0.3):
                        pass
                asyncio.get_running_loop().call_later(0.1, opened.set)
                async with connect(Inventory, "web01", partition=made.host.folder) as inventory:
                    assert opened.is_set()
                    await inventory.count(Query())

    asyncio.run(run())


def test_a_server_that_is_started_again() -> None:
    """What is idempotent comes through by itself; what is not says that it may have been done."""

    async def test(world: World) -> None:
        async with world.connect() as inventory:
            await inventory.count(Query())
            waiting = asyncio.create_task(inventory.wait(Query()))
            while not world.inventory.events:
                await asyncio.sleep(0.005)
            await world.serving.close()
            with pytest.raises(LostError, match=r"ended within inventory\.wait"):
                await waiting
            counting = asyncio.create_task(inventory.count(Query("again")))
            await asyncio.sleep(0)
            world.fabric.restart()
            async with serve(Inventory(), bind="parent", partition=world.guest.folder):
                assert (await counting).name == "again"
                assert (await inventory.put(items(4))).number == 4

    in_world(test)


def test_a_service_that_is_waited_for() -> None:
    async def run() -> None:
        with fabric() as made:
            made.register("Inventory", Inventory.ID)
            guest = made.create_partition("web01")

            async def ask() -> Item:
                async with connect(Inventory, "web01", partition=made.host.folder, wait=True) as inventory:
                    return await inventory.count(Query("there"))

            with pytest.raises(ConnectionRefusedError):
                async with connect(Inventory, "web01", partition=made.host.folder):
                    pass
            asking = asyncio.create_task(ask())
            await asyncio.sleep(0.05)
            async with serve(Inventory(), bind="parent", partition=guest.folder):
                assert (await asking).name == "there"

    asyncio.run(run())


def test_one_partition_does_not_shut_the_others_out() -> None:
    async def test(world: World) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(MAX_CONNECTIONS_OF_ONE):
                stack.enter_context(await connected(("web01", Inventory.ID), partition=world.fabric.host.folder))
            while world.serving.connections < MAX_CONNECTIONS_OF_ONE:
                await asyncio.sleep(0.005)
            with pytest.raises((LostError, ConnectionResetError)):
                async with world.connect(timeout=2):
                    pass
        while world.serving.connections:
            await asyncio.sleep(0.005)
        async with world.connect() as inventory:
            await inventory.count(Query())

    in_world(test)


def test_a_raw_service_of_one_function() -> None:
    @raw_service("HV Socket Demo", port=2761)
    async def echo(caller: Caller, connection: socket) -> None:
        loop = asyncio.get_running_loop()
        assert caller.is_parent
        while data := await loop.sock_recv(connection, 65536):
            await loop.sock_sendall(connection, data.upper())

    async def run() -> None:
        with fabric() as made:
            made.register("HV Socket Demo", echo.ID)
            guest = made.create_partition("web01")
            async with serve(echo, bind="parent", partition=guest.folder):
                with await connected(("web01", echo.ID), partition=made.host.folder) as sock:
                    loop = asyncio.get_running_loop()
                    await loop.sock_sendall(sock, b"hello")
                    assert await loop.sock_recv(sock, 100) == b"HELLO"

    asyncio.run(run())


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(bytes(100_000), id="zeros"),
        pytest.param(PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", id="a giant frame"),
        pytest.param(PREFACE + bytes(9) * 10, id="frames out of order"),
        pytest.param(PREFACE + bytes.fromhex("000000ff0000000000") * 1000, id="unknown frames"),
    ],
)
def test_garbage_ends_its_own_connection(sent: bytes) -> None:
    async def test(world: World) -> None:
        loop = asyncio.get_running_loop()
        async with world.connect() as inventory:
            sock = await connected(("web01", Inventory.ID), partition=world.fabric.host.folder)
            with sock, contextlib.suppress(ConnectionError):
                await loop.sock_sendall(sock, sent)
                sock.shutdown(SHUT_WR)
                while await loop.sock_recv(sock, 65536):
                    pass
            assert (await inventory.count(Query("still"))).name == "still"

    in_world(test)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n", bytes(1000)], ids=["end", "another", "zeros"])
def test_a_server_that_speaks_something_else(answer: bytes) -> None:
    async def run() -> None:
        async def lie(caller: Caller, connection: socket) -> None:
            await asyncio.get_running_loop().sock_sendall(connection, answer)

        liar = raw_service("Inventory", id=Inventory.ID)(lie)
        with fabric() as made:
            made.register("Inventory", Inventory.ID)
            guest = made.create_partition("web01")
            async with serve(liar, bind="parent", partition=guest.folder):
                with pytest.raises((LostError, ProtocolError, ConnectionError)):
                    async with connect(Inventory, "web01", partition=made.host.folder, timeout=5):
                        pass

    asyncio.run(run())


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "NEGOTIATION_SECONDS", 0.2)

    async def run() -> None:
        async def be_silent(caller: Caller, connection: socket) -> None:
            await asyncio.sleep(PATIENCE_SECONDS)

        silent = raw_service("Inventory", id=Inventory.ID)(be_silent)
        with fabric() as made:
            made.register("Inventory", Inventory.ID)
            guest = made.create_partition("web01")
            async with serve(silent, bind="parent", partition=guest.folder):
                with pytest.raises(TimeoutError):
                    async with connect(Inventory, "web01", partition=made.host.folder):
                        pass

    asyncio.run(run())


def test_messages_beyond_their_bounds() -> None:
    async def test(world: World) -> None:
        async with world.connect() as inventory:
            with pytest.raises(UsageError, match="items; 5 is the most"):
                [one async for one in inventory.echo(_one(Item("", words=["a"] * 6)))]
            with pytest.raises(UsageError, match=r"Query\.pattern: a text of 65537 characters"):
                await inventory.count(Query("x" * 65537))

            async def large() -> AsyncIterator[Item]:
                yield Item("", queries=[Query("x" * 60_000)] * 20)

            with pytest.raises(ProtocolError, match=r"a message of 12\d{5} bytes; 1048576 is the most"):
                [one async for one in inventory.echo(large())]

    in_world(test)


async def _one(item: Item) -> AsyncIterator[Item]:
    yield item
