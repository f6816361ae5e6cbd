"""A service of every shape, for tests of the framework."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Annotated

from hvsock.errors import NotFoundError
from hvsock.services.caller import Caller
from hvsock.services.service import Service, call, download, exchange, upload
from hvsock.services.types import Limit, UInt32

PORT = 5300


class Colour(enum.IntEnum):
    """An enumeration."""

    NONE = 0
    RED = 1


@dataclass
class Query:
    """A question."""

    pattern: str = ""
    count: UInt32 = 0


@dataclass
class Item:
    """An answer with a field of each kind."""

    name: str
    number: int = 0
    share: float = 0.0
    colour: Colour = Colour.NONE
    data: Annotated[bytes, Limit(1 << 17)] = b""
    known: bool = False
    maybe: int | None = None
    inner: Query | None = None
    words: Annotated[list[str], Limit(5)] = field(default_factory=list)
    queries: list[Query] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    by_name: dict[str, Query] = field(default_factory=dict)


class Inventory(Service, name="Inventory", port=PORT, versions=(1, 2), features=frozenset({"find", "put"})):
    """What a machine has.

    Attributes:
        events: what became of handlers, in their order.
        callers: who called.
        gate: what `wait` waits for.
    """

    def __init__(self) -> None:
        self.events: list[str] = []
        self.callers: list[Caller] = []
        self.gate = asyncio.Event()
        self.produced = 0

    @call(idempotent=True)
    async def count(self, caller: Caller, query: Query) -> Item:
        """How many there are."""
        self.callers.append(caller)
        return Item(query.pattern, query.count)

    @call
    async def fail(self, caller: Caller, query: Query) -> Item:
        """Fail as the pattern says."""
        if query.pattern == "not found":
            raise NotFoundError("there is no such thing: Grüße")
        if query.pattern == "OSError":
            raise PermissionError(13, "Permission denied")
        raise KeyError("a secret")

    @call(timeout=30)
    async def wait(self, caller: Caller, query: Query) -> Item:
        """Wait for the gate."""
        self.events.append("begun")
        try:
            await self.gate.wait()
        finally:
            self.events.append("over")
        return Item("waited")

    @download
    async def find(self, caller: Caller, query: Query) -> AsyncIterator[Item]:
        """So many items."""
        self.produced = 0
        try:
            for number in range(query.count):
                self.produced += 1
                yield Item(query.pattern, number, data=bytes(len(query.pattern)))
        finally:
            self.events.append("find ended")

    @upload
    async def put(self, caller: Caller, items: AsyncIterator[Item]) -> Item:
        """The sum of all numbers."""
        return Item("sum", sum([item.number async for item in items]))

    @exchange
    async def echo(self, caller: Caller, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """What comes."""
        async for item in items:
            yield item


class NewInventory(Service, name="Inventory", port=PORT, short="inventory", versions=(3,)):
    """The same in a version that Inventory does not speak."""

    @call
    async def count(self, caller: Caller, query: Query) -> Item:
        """How many there are."""
        return Item("new")
