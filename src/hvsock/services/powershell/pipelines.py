"""A pipeline that runs: its records, its end, and the calls of its script to its host."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

import psrpcore
import psrpcore.types as ps

from hvsock.errors import BusyError, HvsockError, NotReadyError

from .channel import MOST_UNREAD_BYTES, Need
from .framing import Element, Kind
from .records import Record, ScriptError, State, Stream
from .values import error_detail, information, progress, to_powershell, to_python

if TYPE_CHECKING:
    from .hostcalls import Call
    from .pools import RunspacePool

STOP_SECONDS: Final = 30.0
"""How long a server may take to stop or close a pipeline; PowerShell itself waits twice as long."""
STATE_SECONDS: Final = 5.0
"""How long the state of a pipeline that was stopped may stay away: the server has said that it took the signal."""
OVERHEAD_BYTES: Final = 256
"""Counted for each record besides its XML, so that small ones count too."""

Input = Iterable[Any] | AsyncIterable[Any]


class Pipeline(AsyncIterator[Record]):
    """A pipeline; :meth:`.pools.RunspacePool.start` makes it, and iterating over it gives its records, once.

    The script goes on as far as what it writes is read: where nobody reads, it waits. Its calls to the host are
    made while it is iterated over, in their order.

    Args:
        pool: its pool.
        powershell: what psrpcore knows about it.
    """

    def __init__(self, pool: RunspacePool, powershell: psrpcore.ClientPowerShell) -> None:
        self.state = State.RUNNING
        self._pool = pool
        self._powershell = powershell
        self._items: deque[tuple[Record | Call, int]] = deque()
        self._unread = 0
        self._read = 0
        self._changed = asyncio.Event()
        self._need: Need | None = None
        self._stopping = asyncio.Lock()
        self.discards = False
        """Whether nobody wants what it writes any more."""
        self._error: Exception | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._begun = False
        self._is_there = False
        self._ended_there = False
        self._closed = False

    @property
    def id(self) -> UUID:
        """Its GUID."""
        return self._powershell.pipeline_id

    @property
    def bytes_read(self) -> int:
        """How many bytes of XML the records had that were read, roughly."""
        return self._read

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        while True:
            if self._items:
                item, size = self._items.popleft()
                self._unread -= size
                self._read += size
                self._pool.intake.gave(size)
                if isinstance(item, Record):
                    return item
                await self._pool.answer(item)
            elif self.state is State.RUNNING:
                await self._change()
            else:
                await self.close()
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration

    async def _change(self) -> None:
        """Wait until there is something new."""
        self._changed.clear()
        with self._pool.intake.needed() as self._need:
            await self._changed.wait()

    def _tell_change(self) -> None:
        if self._need is not None:
            self._need.met()
        self._changed.set()

    async def begin(self, input: Input | None) -> None:
        """Start it on the server; the pool does, once."""
        self._powershell.start()
        self._begun = True
        await self._pool.channel.ask(Element(Kind.COMMAND, self.id))
        await self._pool.send_out(self.id)
        self._is_there = True
        if input is not None:
            self._feeding = asyncio.create_task(self._feed(input), name="psrp-input")

    async def stop(self) -> None:
        """Stop the script, and drop what it wrote that was not read; its state is STOPPED then, or what it was.

        Raises:
            NotReadyError: the server does not stop it; the session is given up.
            HvsockError: the session is of no use any more.
        """
        async with self._stopping:
            if self._ended_there:
                return
            self._discard()
            await self._stop_feeding()
            if self.is_running:
                self._powershell.begin_stop()
            await self._asked(Kind.SIGNAL, "stop")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STATE_SECONDS):
                    while self._is_there and not self._ended_there:
                        self._pool.channel.check()
                        await self._change()
            self._ended_there = True
            self._end(State.STOPPED)

    async def close(self) -> None:
        """Stop it where it runs, and tell the server that it is done with; calling this twice is fine.

        Raises:
            HvsockError: as :meth:`stop` says.
        """
        if self._closed:
            return
        self._closed = True
        try:
            await self._stop_feeding()
            if self._begun and self._pool.channel.error is None:
                await self.stop()
                await self._asked(Kind.CLOSE, "close")
        finally:
            self._discard()
            self._pool.forget(self)

    async def _asked(self, kind: Kind, what: str) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._pool.channel.ask(Element(kind, self.id))
        except TimeoutError:
            error = NotReadyError(f"the server did not {what} a pipeline within {STOP_SECONDS:g} s")
            self._pool.channel.give_up(error)
            raise error from None

    async def _feed(self, input: Input) -> None:
        try:
            if isinstance(input, AsyncIterable):
                async for one in input:
                    await self._send(one)
            else:
                for one in input:
                    await self._send(one)
            if self.is_running:
                self._powershell.send_eof()
                await self._pool.send_out(self.id)
        except Exception as error:  # of whoever gives the input, too: it is told where the records are read
            self._fail(error)

    async def _send(self, value: Any) -> None:
        if self.is_running:  # it may have ended without having read everything
            self._powershell.send(to_powershell(value))
            await self._pool.send_out(self.id)

    async def _stop_feeding(self) -> None:
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.wait({self._feeding})
            self._feeding = None

    # -- what comes from the server, by the pool

    def take(self, event: psrpcore.PSRPEvent[Any, Any], size: int) -> None:
        """Take an event of the server's.

        Args:
            event: it.
            size: the bytes of its XML.

        Raises:
            Exception: it is not as it should be.
        """
        if isinstance(event, psrpcore.PipelineStateEvent):
            self._state(event)
        elif self.discards:
            return
        elif isinstance(event, psrpcore.PipelineHostCallEvent):
            self._add(event, size)
        elif (record := record_of(event, size)) is not None:
            self._add(record, size)

    def _add(self, item: Record | Call, size: int) -> None:
        size += OVERHEAD_BYTES
        self._items.append((item, size))
        self._unread += size
        self._pool.intake.took(size)
        self._tell_change()

    @property
    def is_running(self) -> bool:
        """Whether it runs on the server, as far as is known, and is not being stopped."""
        return bool(self._powershell.state == ps.PSInvocationState.Running)

    @property
    def unread(self) -> int:
        """How many bytes of its XML nobody has read yet."""
        return self._unread

    def overflow(self) -> None:
        """Give it up: nobody reads what it writes, and others wait for the connection."""
        limit = MOST_UNREAD_BYTES // (1024 * 1024)
        self._discard()
        self._fail(
            BusyError(f"nobody read more than {limit} MiB that a pipeline wrote, while others waited behind it")
        )
        self._pool.spawn(self.stop())

    def broken(self, error: HvsockError) -> None:
        """The session is of no use any more; what came is still read."""
        if self.state is State.RUNNING:
            self._fail(error)
        self._tell_change()

    def _fail(self, error: Exception) -> None:
        """It failed on this side; the server is told when it is closed."""
        if self._error is None:
            self._error = error
        self._end(State.FAILED)

    def _state(self, event: psrpcore.PipelineStateEvent) -> None:
        match event.state:
            case ps.PSInvocationState.Completed:
                state = State.COMPLETED
            case ps.PSInvocationState.Stopped:
                state = State.STOPPED
            case ps.PSInvocationState.Failed:
                state = State.FAILED
                if self._error is None:
                    self._error = ScriptError(error_detail(event.reason))
            case _:
                return
        self._ended_there = True
        self._end(state)

    def _end(self, state: State) -> None:
        if self.state is State.RUNNING:
            self.state = state
        self._tell_change()

    def _discard(self) -> None:
        self.discards = True
        self._pool.intake.gave(self._unread)
        self._items.clear()
        self._unread = 0


def record_of(event: psrpcore.PSRPEvent[Any, Any], size: int = 0) -> Record | None:
    """The record that an event tells of; None for an event of another kind.

    Args:
        event: it.
        size: the bytes of its XML.

    Raises:
        Exception: it is not as it should be.
    """
    match event:
        case psrpcore.PipelineOutputEvent():
            return Record(Stream.OUTPUT, to_python(event.data, size))
        case psrpcore.ErrorRecordEvent():
            return Record(Stream.ERROR, error_detail(event.record))
        case psrpcore.WarningRecordEvent():
            return Record(Stream.WARNING, str(event.record.Message or ""))
        case psrpcore.VerboseRecordEvent():
            return Record(Stream.VERBOSE, str(event.record.Message or ""))
        case psrpcore.DebugRecordEvent():
            return Record(Stream.DEBUG, str(event.record.Message or ""))
        case psrpcore.InformationRecordEvent():
            return Record(Stream.INFORMATION, information(event, size))
        case psrpcore.ProgressRecordEvent():
            return Record(Stream.PROGRESS, progress(event.record))
        case _:
            return None
