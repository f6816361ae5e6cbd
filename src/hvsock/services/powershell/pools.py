"""A runspace pool on the other side of a stream, and the pipelines that run in it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final
from uuid import UUID

import psrpcore
import psrpcore.types as ps

from hvsock.errors import BusyError, HvsockError, NotReadyError, ProtocolError, RemoteError

from . import hostcalls
from .channel import Channel, Intake
from .commands import Command, commands_of
from .fragments import Message, Reassembly
from .framing import MAX_FRAGMENT_BYTES, POOL, Element, Kind, Role
from .hosts import Host, HostGoneError
from .pipelines import Input, Pipeline
from .records import Result, ScriptError, Stream
from .streams import Reader, Writer
from .values import error_detail, has_secret, to_powershell, to_python

OPENING_SECONDS: Final = 60.0
"""How long a server may take to open a pool; PowerShell takes one or two, an emulated guest many times as long."""
CLOSE_SECONDS: Final = 10.0
"""How long a server may take to close a pool; then the connection is just ended, which ends the session too."""
MAX_RESULT_BYTES: Final = 64 * 1024 * 1024
"""Most that :meth:`RunspacePool.run` keeps of one pipeline, in bytes of XML."""
MAX_PIPELINES: Final = 64
"""Most pipelines of one pool at the same time."""

_FROM_SERVER: Final = frozenset(
    int(one)
    for one in (
        ps.PSRPMessageType.SessionCapability,
        ps.PSRPMessageType.RunspacePoolState,
        ps.PSRPMessageType.RunspacePoolInitData,
        ps.PSRPMessageType.ApplicationPrivateData,
        ps.PSRPMessageType.RunspaceAvailability,
        ps.PSRPMessageType.UserEvent,
        ps.PSRPMessageType.PublicKeyRequest,
        ps.PSRPMessageType.EncryptedSessionKey,
        ps.PSRPMessageType.RunspacePoolHostCall,
        ps.PSRPMessageType.PipelineHostCall,
        ps.PSRPMessageType.PipelineState,
        ps.PSRPMessageType.PipelineOutput,
        ps.PSRPMessageType.ErrorRecord,
        ps.PSRPMessageType.WarningRecord,
        ps.PSRPMessageType.VerboseRecord,
        ps.PSRPMessageType.DebugRecord,
        ps.PSRPMessageType.InformationRecord,
        ps.PSRPMessageType.ProgressRecord,
    )
)
"""The messages that a server sends."""
_PIPELINE_STATE: Final = int(ps.PSRPMessageType.PipelineState)


class RunspacePool:
    """A session of PowerShell; :func:`opened` and :func:`hvsock.services.powershell.client.connect` make it.

    Args:
        reader: the connection.
        writer: its other half, which the pool owns from now on.
        host: whom scripts may ask and write to; without one, they have no host.
        runspaces: how many pipelines may run at the same time; others wait in the server.
    """

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        *,
        host: Host | None = None,
        runspaces: int = 1,
    ) -> None:
        self.facts: dict[str, Any] = {}
        """What the server says of itself, like PSVersionTable."""
        self._host = host
        self._runspace = psrpcore.ClientRunspacePool(
            host=hostcalls.host_info(host), min_runspaces=1, max_runspaces=runspaces
        )
        self._reassembly = Reassembly(Role.SERVER)
        self._pipelines: dict[UUID, Pipeline] = {}
        self._changed = asyncio.Event()
        self._has_key = False
        self._key_turn = asyncio.Lock()
        self._calls: deque[tuple[hostcalls.Call, int]] = deque()
        self._calling: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self.channel = Channel(reader, writer, self._take, self._broken, self._overflow)

    @property
    def intake(self) -> Intake:
        """Decides how far is read ahead."""
        return self.channel.intake

    # -- for whoever uses it

    @contextlib.asynccontextmanager
    async def start(self, *what: Command | str, input: Input | None = None) -> AsyncIterator[Pipeline]:
        """Start a pipeline; at the end of the context it is stopped if it runs still, and closed.

        Args:
            what: scripts and commands, of which each takes the output of the one before; a str is a script.
            input: what the first of them gets as its input, as `$input`; nothing by default.

        Raises:
            UsageError: there is nothing to run, or PowerShell has no value for an argument.
            BusyError: MAX_PIPELINES run.
            ScriptError: from iterating: a terminating error of the script's.
            HvsockError: the session is of no use any more.
        """
        pipeline = await self._pipeline(commands_of(what), has_input=input is not None)
        try:
            await pipeline.begin(input)
            yield pipeline
        finally:
            await pipeline.close()

    async def run(
        self,
        *what: Command | str,
        input: Input | None = None,
        timeout: float | None = None,
        max_bytes: int = MAX_RESULT_BYTES,
    ) -> Result:
        """Run a pipeline to its end, and keep what it writes.

        Args:
            what: scripts and commands, of which each takes the output of the one before; a str is a script.
            input: what the first of them gets as its input; nothing by default.
            timeout: seconds that it may take; any by default.
            max_bytes: how much it may write, in bytes of XML; iterate over :meth:`start` where it is more.

        Raises:
            ScriptError: a terminating error of the script's; its attribute `result` has what was written before.
            NotReadyError: it did not end in time, and was stopped.
            BusyError: it wrote too much, and was stopped; or MAX_PIPELINES run.
            UsageError, HvsockError: as :meth:`start` says.
        """
        result = Result()
        try:
            async with asyncio.timeout(timeout), self.start(*what, input=input) as pipeline:
                async for record in pipeline:
                    if pipeline.bytes_read > max_bytes:
                        raise BusyError(f"the script wrote more than {max_bytes} bytes; read it record by record")
                    if record.stream is Stream.OUTPUT:
                        result.output.append(record.value)
                    elif record.stream is not Stream.PROGRESS:
                        result.records.append(record)
                result.state = pipeline.state
        except TimeoutError:
            raise NotReadyError(f"the script did not end within {timeout:g} s, and was stopped") from None
        except ScriptError as error:
            error.result = result
            raise
        return result

    async def close(self) -> None:
        """Close the pool and end the connection; what runs is stopped. Calling this twice is fine."""
        try:
            if self.channel.error is None:
                with contextlib.suppress(HvsockError, TimeoutError):
                    async with asyncio.timeout(CLOSE_SECONDS):
                        for pipeline in list(self._pipelines.values()):
                            await pipeline.close()
                        await self.channel.ask(Element(Kind.CLOSE))
        finally:
            for task in (self._calling, *self._sending):
                if task is not None:
                    task.cancel()
                    await asyncio.wait({task})
            await self.channel.close()

    # -- for its pipelines

    async def open(self) -> None:
        """Open the pool on the server; :func:`opened` does, with a time-out."""
        self._runspace.open()
        await self.send_out(POOL)
        with self.intake.needed():
            while self._runspace.state is not ps.RunspacePoolState.Opened:
                self.channel.check()
                self._changed.clear()
                await self._changed.wait()

    async def send_out(self, target: UUID) -> None:
        """Send what psrpcore has for a target, piece by piece as the server acknowledges."""
        payloads = []
        while (payload := self._runspace.data_to_send(MAX_FRAGMENT_BYTES)) is not None:
            payloads.append(payload)
        async with self.channel.turn(target):
            for payload in payloads:
                first = payload.stream_type is psrpcore.StreamType.prompt_response
                await self.channel.ask(Element(Kind.DATA, payload.pipeline_id or POOL, payload.data, first))

    async def answer(self, call: hostcalls.Call) -> None:
        """Have the host do what a script asks, and tell the script."""
        answer, error, secret = None, None, False
        try:
            if self._host is None:
                raise NotReadyError("this session has no host")
            answer = await hostcalls.answered(self._host, call)
            secret = hostcalls.wants_secret(call)
        except HostGoneError:
            raise
        except Exception as failure:  # of the host's: its script is told, whatever it is
            error = hostcalls.failure(failure)
        if call.ci == hostcalls.NO_ANSWER:
            return
        if secret:
            await self._exchange_key()
        pipeline = self._pipelines.get(call.pipeline_id) if call.pipeline_id else None
        if call.pipeline_id and (pipeline is None or not pipeline.is_running):
            return  # it was stopped meanwhile
        try:
            self._runspace.host_response(call.ci, answer, error)
        except KeyError:
            raise ProtocolError(f"the server made the host call {call.ci} twice") from None
        await self.send_out(call.pipeline_id or POOL)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done on the side; where it fails, the session is of no use and tells so itself."""

        async def do() -> None:
            with contextlib.suppress(HvsockError):
                await work

        task = asyncio.create_task(do(), name="psrp-side")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def forget(self, pipeline: Pipeline) -> None:
        """A pipeline is closed."""
        self._pipelines.pop(pipeline.id, None)
        self._runspace.pipeline_table.pop(pipeline.id, None)
        self._reassembly.forget(pipeline.id)
        self.channel.forget(pipeline.id)

    async def _pipeline(self, commands: tuple[Command, ...], has_input: bool) -> Pipeline:
        self.channel.check()
        if len(self._pipelines) >= MAX_PIPELINES:
            raise BusyError(f"{MAX_PIPELINES} pipelines run in this session already; wait for one of them")
        made = [_command(one) for one in commands]
        if any(has_secret((one.arguments, one.parameters)) for one in commands):
            await self._exchange_key()
        powershell = psrpcore.ClientPowerShell(
            self._runspace, host=hostcalls.pipeline_host_info(), no_input=not has_input
        )
        for one in made:
            powershell.add_command(one)
        pipeline = Pipeline(self, powershell)
        self._pipelines[pipeline.id] = pipeline
        return pipeline

    async def _exchange_key(self) -> None:
        """Have a key on both sides, by which secrets are encrypted on their way."""
        async with self._key_turn:
            if self._has_key:
                return
            self._runspace.exchange_key()
            await self.send_out(POOL)
            with self.intake.needed():
                while not self._has_key:
                    self.channel.check()
                    self._changed.clear()
                    await self._changed.wait()

    # -- what comes from the server

    def _take(self, element: Element) -> None:
        if element.kind is Kind.ERROR:
            opening = self._runspace.state is ps.RunspacePoolState.Opening
            raise (NotReadyError if opening else RemoteError)(f"the server says: {element.text}")
        for message in self._reassembly.receive(element.data, element.target, element.prompt_response):
            self._message(message)

    def _message(self, message: Message) -> None:
        if message.kind not in _FROM_SERVER:
            raise ProtocolError(
                f"the server sent a message of type 0x{message.kind:08x}, which is a client's or none"
            )
        pipeline = self._pipelines.get(message.target)
        if pipeline is None and message.target != POOL:
            return  # of one that is closed
        if pipeline is not None and pipeline.discards and message.kind != _PIPELINE_STATE:
            return
        try:
            self._runspace.receive_data(
                psrpcore.PSRPPayload(message.fragment, psrpcore.StreamType.default, message.target)
            )
            event = self._runspace.next_event()
            if event is None:
                raise ProtocolError("the server sent a message that is none")
            if pipeline is not None:
                pipeline.take(event, len(message.payload))
            else:
                self._event(event, len(message.payload))
        except HvsockError:
            raise
        except Exception as error:  # of whatever kind: psrpcore looks into objects as it hopes they are
            raise ProtocolError(
                f"the server sent a message that is not as it should be: {error!r:.200}"
            ) from error

    def _event(self, event: psrpcore.PSRPEvent[Any, Any], size: int) -> None:
        match event:
            case psrpcore.RunspacePoolStateEvent():
                if event.state in (ps.RunspacePoolState.Broken, ps.RunspacePoolState.Closed):
                    why = f": {error_detail(event.reason)}" if event.reason is not None else ""
                    raise RemoteError(f"the server closed the session{why}")
            case psrpcore.ApplicationPrivateDataEvent():
                self.facts = to_python(event.data, size) or {}
            case psrpcore.EncryptedSessionKeyEvent():
                self._has_key = True
            case psrpcore.PublicKeyRequestEvent():
                self.spawn(self.send_out(POOL))
            case psrpcore.RunspacePoolHostCallEvent():
                self._calls.append((event, size))
                self.intake.took(size)
                if self._calling is None or self._calling.done():
                    self._calling = asyncio.create_task(self._answer_calls(), name="psrp-host")
        self._changed.set()

    async def _answer_calls(self) -> None:
        with contextlib.suppress(HvsockError):
            while self._calls:
                call, size = self._calls.popleft()
                self.intake.gave(size)
                await self.answer(call)

    def _overflow(self) -> None:
        """Make room: give up the pipeline of which most waits for a reader."""
        worst = max(self._pipelines.values(), key=lambda one: one.unread, default=None)
        if worst is None or not worst.unread:
            raise BusyError("the server made more host calls than this side answers")
        worst.overflow()

    def _broken(self, error: HvsockError) -> None:
        self._changed.set()
        for pipeline in self._pipelines.values():
            pipeline.broken(error)


def _command(command: Command) -> psrpcore.Command:
    made = psrpcore.Command(command.name, is_script=command.is_script)
    for argument in command.arguments:
        made.add_argument(to_powershell(argument))
    for name, value in command.parameters.items():
        made.add_parameter(name, to_powershell(value))
    return made


@contextlib.asynccontextmanager
async def opened(
    reader: Reader,
    writer: Writer,
    *,
    host: Host | None = None,
    runspaces: int = 1,
    timeout: float = OPENING_SECONDS,
) -> AsyncIterator[RunspacePool]:
    """A runspace pool over a stream, closed at the end with the stream.

    Args:
        reader: the stream, on which PSRP comes next.
        writer: its other half, which the pool owns from now on.
        host: whom scripts may ask and write to; without one, they have no host.
        runspaces: how many pipelines may run at the same time; others wait in the server.
        timeout: seconds that the server may take to open it.

    Raises:
        NotReadyError: the server is silent, or says why it cannot.
        ProtocolError: it is no server of PSRP.
        LostError: the connection ended.
    """
    pool = RunspacePool(reader, writer, host=host, runspaces=runspaces)
    try:
        try:
            async with asyncio.timeout(timeout):
                await pool.open()
        except TimeoutError:
            error = NotReadyError(f"PowerShell did not open a session within {round(timeout, 2):g} s; try again")
            pool.channel.give_up(error)
            raise error from None
        yield pool
    finally:
        await pool.close()
