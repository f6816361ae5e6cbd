"""A client's elements over a stream, with their acknowledgements, and how far is read ahead of who wants it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final
from uuid import UUID

from hvsock.errors import HvsockError, LostError

from .framing import Decoder, Element, Kind, Role
from .streams import Reader, Writer

READ_BYTES: Final = 64 * 1024
"""Read at once."""
LAST_WORDS_SECONDS: Final = 5.0
"""How long it may take to read what a server has said that takes nothing any more."""
UNREAD_BYTES: Final = 1024 * 1024
"""How much of what the server sent may wait for its readers, in bytes of XML; then nothing is read from the
connection, which stops the server. An object takes some ten times as much memory as its XML."""
MOST_UNREAD_BYTES: Final = 16 * 1024 * 1024
"""How much may wait where somebody waits for what comes behind it: pipelines of a pool share its connection, so
one that nobody reads holds the others up, and is given up at this point."""


class Intake:
    """Decides whether more is read: there is room, or somebody needs what comes next.

    Args:
        overflow: makes room where too much waits, and somebody needs what comes behind it.
    """

    def __init__(self, overflow: Callable[[], None]) -> None:
        self.unread = 0
        self._overflow = overflow
        self._needs: set[Need] = set()
        self._wake = asyncio.Event()

    def took(self, size: int) -> None:
        """So much waits for a reader now."""
        self.unread += size

    def gave(self, size: int) -> None:
        """So much waits no more."""
        self.unread -= size
        self._wake.set()

    @contextlib.contextmanager
    def needed(self) -> Iterator[Need]:
        """Until it is met, or the context ends, somebody waits for what comes next."""
        need = Need(self._needs)
        self._wake.set()
        try:
            yield need
        finally:
            need.met()

    async def room(self) -> None:
        """Wait until more is to be read.

        Raises:
            HvsockError: no room can be made.
        """
        while self.unread >= UNREAD_BYTES:
            if self._needs and self.unread <= MOST_UNREAD_BYTES:
                return
            if self._needs:
                self._overflow()
            else:
                self._wake.clear()
                await self._wake.wait()


class Need:
    """Somebody waits for what comes next.

    Args:
        all: those that are not met.
    """

    def __init__(self, all: set[Need]) -> None:
        self._all = all
        all.add(self)

    def met(self) -> None:
        """It has come; calling this twice is fine."""
        self._all.discard(self)


class Channel:
    """The connection to a server.

    Args:
        reader: it; what may have been read of it belongs to PSRP.
        writer: its other half, which the channel owns from now on.
        take: is called with each element that is no acknowledgement, and may raise.
        broken: is called once, with the reason why the connection is of no use any more.
        overflow: makes room where too much waits for its readers; see :class:`Intake`.
    """

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        take: Callable[[Element], None],
        broken: Callable[[HvsockError], None],
        overflow: Callable[[], None],
    ) -> None:
        self.intake = Intake(overflow)
        self.error: HvsockError | None = None
        self._reader, self._writer = reader, writer
        self._take, self._tell_broken = take, broken
        self._acks: defaultdict[tuple[Kind, UUID], deque[asyncio.Future[None]]] = defaultdict(deque)
        self._turns: defaultdict[UUID, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reading = asyncio.create_task(self._read(), name="psrp-reading")

    async def ask(self, element: Element) -> None:
        """Send an element and wait for its acknowledgement.

        Raises:
            HvsockError: the connection is of no use any more.
        """
        self.check()
        key = element.kind.ack, element.target
        acknowledged = asyncio.get_running_loop().create_future()
        self._acks[key].append(acknowledged)
        with self.intake.needed():
            try:
                self._writer.write(element.line())
                await self._writer.drain()
            except OSError as error:
                await asyncio.wait({self._reading}, timeout=LAST_WORDS_SECONDS)  # it may have said why
                self.give_up(_lost(error))
            else:
                await acknowledged
        self.check()

    @contextlib.asynccontextmanager
    async def turn(self, target: UUID) -> AsyncIterator[None]:
        """One's turn to send Data for a target: one piece is under way for each, and they keep their order."""
        async with self._turns[target]:
            yield

    def forget(self, target: UUID) -> None:
        """Forget about a pipeline that is closed."""
        self._turns.pop(target, None)

    def check(self) -> None:
        """
        Raises:
            HvsockError: the connection is of no use any more.
        """
        if self.error is not None:
            raise self.error

    def give_up(self, error: HvsockError) -> None:
        """The connection is of no use any more; the first reason counts."""
        if self.error is not None:
            return
        self.error = error
        for waiting in self._acks.values():
            for one in waiting:
                if not one.done():
                    one.set_result(None)
        self._acks.clear()
        self._tell_broken(error)

    async def close(self) -> None:
        """End the connection; calling this twice is fine."""
        self._reading.cancel()
        try:
            await asyncio.wait({self._reading})
        finally:
            self.give_up(LostError("the session is closed"))
            self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        decoder = Decoder(Role.SERVER)
        try:
            while True:
                await self.intake.room()
                data = await self._reader.read(READ_BYTES)
                decoder.receive(data)
                if not data:
                    decoder.receive_end()
                for element in decoder.elements():
                    self._element(element)
                if not data:
                    raise LostError("the server ended the session")
                await asyncio.sleep(0)  # others have their turn, also where there is always something to read
        except HvsockError as error:
            self.give_up(error)
        except OSError as error:
            self.give_up(_lost(error))

    def _element(self, element: Element) -> None:
        if element.kind in (Kind.DATA, Kind.ERROR):
            self._take(element)
            return
        key = element.kind, element.target
        if waiting := self._acks.get(key):  # what nobody waits for is for a pipeline that is closed
            one = waiting.popleft()
            if not waiting:
                del self._acks[key]
            if not one.done():
                one.set_result(None)


def _lost(error: OSError) -> LostError:
    return LostError(f"the connection of the session broke: {error.strerror or error or type(error).__name__}")
