"""A server of PSRP without PowerShell: `python -m hvsock.testing.psrp_server` speaks on standard input and output.

It speaks the protocol as `pwsh -s -NoLogo -NoProfile` does: runspace pools, several pipelines, every stream, host
calls, keys for secrets, signals. psrpcore does the objects of the protocol. What it is not is PowerShell: scripts
are in the language of :mod:`.psrp_language`, which looks like it, with the few commands of :mod:`.psrp_commands`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import sys
from typing import Any, Final
from uuid import UUID

import psrpcore
import psrpcore.types as ps

from hvsock._version import __version__
from hvsock.errors import ProtocolError
from hvsock.services.powershell.fragments import Message, Reassembly
from hvsock.services.powershell.framing import MAX_FRAGMENT_BYTES, POOL, Decoder, Element, Kind, Role

from .psrp_commands import Arguments, ExitError, RunningError, Values, nothing, run_command, run_script
from .psrp_language import ScriptSyntaxError

READ_BYTES: Final = 64 * 1024
"""Read at once."""
MAX_PIPELINES: Final = 256
"""Most pipelines at the same time."""
MAX_INPUT: Final = 1000
"""Most values of a pipeline's input that wait for it; then the client's next one is not acknowledged."""
FLUSH_BYTES: Final = 32 * 1024
"""How much output is gathered before it is sent, as far as a script does not pause."""
OPTIONS: Final = frozenset(("-s", "-nologo", "-noprofile", "-noninteractive"))
"""Options of pwsh that are taken, and change nothing."""


class Pipeline:
    """One pipeline of a client's.

    Args:
        server: where it runs.
        pipeline_id: its GUID.
    """

    def __init__(self, server: Server, pipeline_id: UUID) -> None:
        self.variables = server.variables
        self.inner = psrpcore.ServerPipeline(server.pool, pipeline_id)
        self.input: asyncio.Queue[Any] = asyncio.Queue(MAX_INPUT)
        self.task: asyncio.Task[None] | None = None
        self._server = server
        self._answers: dict[int, asyncio.Future[Any]] = {}

    def start(self) -> None:
        """Run what the client asked for."""
        self.task = asyncio.create_task(self._run(), name="psrp-pipeline")

    async def stop(self) -> None:
        """Stop it; the client is told."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})

    def answered(self, ci: int, result: Any, error: Any) -> None:
        """The host has answered a call."""
        if (waiting := self._answers.pop(ci, None)) is not None and not waiting.done():
            if error is not None:
                waiting.set_exception(RunningError(str(error), "HostFailed", terminating=True))
            else:
                waiting.set_result(result)

    # -- the shell of its commands

    def record(self, kind: str, *values: Any, **named: Any) -> None:
        """See :class:`.psrp_commands.Shell`."""
        getattr(self.inner, f"write_{kind}")(*values, **named)

    async def flush(self) -> None:
        """See :class:`.psrp_commands.Shell`."""
        await self._server.send_out()

    async def ask(self, method: Any, *values: Any, **named: Any) -> Any:
        """See :class:`.psrp_commands.Shell`."""
        if self._server.pool.host is None or self._server.pool.host.IsHostNull:
            raise RunningError("this session has no host that could be asked", "HostFailed", terminating=True)
        ci = method(psrpcore.ServerHostRequestor(self.inner), *values, **named)
        waiting = asyncio.get_running_loop().create_future()
        if ci is not None and ci >= 0:
            self._answers[ci] = waiting
        await self.flush()
        return await waiting if ci is not None and ci >= 0 else None

    # -- running

    async def _run(self) -> None:
        try:
            async with self._server.runspaces:
                await self._run_statements()
            self.inner.complete()
        except asyncio.CancelledError:
            if self.inner.state is ps.PSInvocationState.NotStarted:  # it waited for a runspace
                self.inner.start()
            self.inner.stop()
        except ExitError as end:
            code = end.code
            with contextlib.suppress(RunningError):
                await self.ask(lambda requestor: requestor.set_should_exit(code))
            self.inner.complete()
        except (RunningError, ScriptSyntaxError) as error:
            self._failed(error)
        with contextlib.suppress(OSError):  # the client is gone, which the session finds out by itself
            await self.flush()

    async def _run_statements(self) -> None:
        self.inner.start()
        commands: list[psrpcore.Command] = self.inner.metadata.commands  # type: ignore[union-attr]
        values: Values = self._input()
        for command in commands:
            arguments: Arguments = tuple((name or "", value) for name, value in command.parameters)
            if command.is_script:
                values = run_script(self, command.command_text, values, arguments)
            else:
                values = _failing(run_command(self, command.command_text, arguments, values))
            if command.end_of_statement:
                await self._write_all(values)
                values = nothing()
        await self._write_all(values)

    async def _write_all(self, values: Values) -> None:
        waiting = 0
        async for value in values:
            self.inner.write_output(value)
            waiting += len(value) if isinstance(value, str) else 500
            if waiting >= FLUSH_BYTES:
                waiting = 0
                await self.flush()
        await self.flush()

    async def _input(self) -> Values:
        if self.inner.metadata.no_input:  # type: ignore[union-attr]
            return
        while (value := await self.input.get()) is not _END:
            yield value

    def _failed(self, error: Exception) -> None:
        kind = "ParseException" if isinstance(error, ScriptSyntaxError) else "RuntimeException"
        exception = ps.NETException(Message=str(error), HResult=-2146233087)
        exception.PSObject.type_names = [f"System.Management.Automation.{kind}", *exception.PSObject.type_names]
        category = error.category if isinstance(error, RunningError) else ps.ErrorCategory.ParserError
        record = ps.ErrorRecord(
            Exception=exception,
            CategoryInfo=ps.ErrorCategoryInfo(Category=category, Reason=kind),
            FullyQualifiedErrorId=error.error_id if isinstance(error, RunningError) else "ParserError",
            ScriptStackTrace="at <ScriptBlock>, <No file>: line 1",
        )
        state = ps.PipelineState(PipelineState=int(ps.PSInvocationState.Failed), ExceptionAsErrorRecord=record)
        self.inner.prepare_message(state)
        self.inner.state = ps.PSInvocationState.Failed


async def _failing(values: Values) -> Values:
    """`values`, and any error of theirs ends the pipeline: there is no script that could go on."""
    try:
        async for one in values:
            yield one
    except RunningError as error:
        error.terminating = True
        raise


_END: Final = object()


class Server:
    """A session over a stream.

    Args:
        reader: it.
        writer: its other half.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.variables: dict[str, Any] = {}
        self.pool = psrpcore.ServerRunspacePool(
            application_private_data={"PSVersionTable": {"PSEdition": "hvsock.testing", "PSVersion": __version__}}
        )
        self.runspaces = asyncio.Semaphore(1)
        self._reader, self._writer = reader, writer
        self._reassembly = Reassembly(Role.CLIENT)
        self._pipelines: dict[UUID, Pipeline] = {}

    async def serve(self) -> None:
        """Serve until the client ends the session.

        Raises:
            ProtocolError: it is no client of PSRP.
            OSError: the connection broke.
        """
        decoder = Decoder(Role.CLIENT)
        try:
            while data := await self._reader.read(READ_BYTES):
                decoder.receive(data)
                for element in decoder.elements():
                    if element.kind is Kind.END:
                        return
                    await self._element(element)
        finally:
            for one in list(self._pipelines.values()):
                await one.stop()

    async def send_out(self) -> None:
        """Send what is written, and wait until there is room for more."""
        while (payload := self.pool.data_to_send(MAX_FRAGMENT_BYTES)) is not None:
            first = payload.stream_type is psrpcore.StreamType.prompt_response
            element = Element(Kind.DATA, payload.pipeline_id or POOL, payload.data, first)
            self._writer.write(element.line())
            await self._writer.drain()

    async def _element(self, element: Element) -> None:
        pipeline = self._pipelines.get(element.target)
        match element.kind:
            case Kind.DATA:
                for message in self._reassembly.receive(element.data, element.target, element.prompt_response):
                    await self._message(message)
                await self.send_out()
            case Kind.COMMAND:
                if pipeline is not None or len(self._pipelines) >= MAX_PIPELINES:
                    raise ProtocolError("the client began a pipeline twice, or too many of them")
                self._pipelines[element.target] = Pipeline(self, element.target)
            case Kind.SIGNAL if pipeline is not None:
                await pipeline.stop()
            case Kind.CLOSE:
                for one in [pipeline] if pipeline is not None else list(self._pipelines.values()):
                    await one.stop()
                    self._pipelines.pop(one.inner.pipeline_id, None)
                    self.pool.pipeline_table.pop(one.inner.pipeline_id, None)
        self._writer.write(Element(element.kind.ack, element.target).line())
        await self._writer.drain()

    async def _message(self, message: Message) -> None:
        pipeline = self._pipelines.get(message.target)
        if pipeline is None and message.target != POOL:
            return  # it has ended, and does not need its input any more
        try:
            payload = psrpcore.PSRPPayload(message.fragment, psrpcore.StreamType.default, message.target)
            self.pool.receive_data(payload)
            event = self.pool.next_event()
        except Exception as error:  # of whatever kind: psrpcore looks into objects as it hopes they are
            raise ProtocolError(f"the client sent a message that is not as it should be: {error!r}") from error
        match event:
            case psrpcore.InitRunspacePoolEvent():
                self.runspaces = asyncio.Semaphore(max(1, event.max_runspaces))
            case psrpcore.GetAvailableRunspacesEvent():
                self.pool.runspace_availability_response(event.ci, self.pool.max_runspaces)
            case psrpcore.SetMaxRunspacesEvent() | psrpcore.SetMinRunspacesEvent():
                self.pool.runspace_availability_response(event.ci, False)
            case psrpcore.ResetRunspaceStateEvent():
                self.variables.clear()
                self.pool.runspace_availability_response(event.ci, True)
            case psrpcore.CreatePipelineEvent() if pipeline is not None and pipeline.task is None:
                pipeline.start()
            case psrpcore.PipelineInputEvent() if pipeline is not None:
                await pipeline.input.put(event.data)
            case psrpcore.EndOfPipelineInputEvent() if pipeline is not None:
                await pipeline.input.put(_END)
            case psrpcore.PipelineHostResponseEvent() if pipeline is not None:
                pipeline.answered(event.ci, event.result, event.error)


async def _standard_streams() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if stat.S_ISSOCK(os.fstat(0).st_mode):  # both ways, as inetd has it
        return await asyncio.open_connection(sock=socket.socket(fileno=os.dup(0)))
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(0), "rb"))
    made = os.fdopen(os.dup(1), "wb")
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), made
    )
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


async def serve_standard_streams() -> None:
    """Serve one client on standard input and output."""
    reader, writer = await _standard_streams()
    try:
        await Server(reader, writer).serve()
    finally:
        writer.close()


def main() -> int:
    """Serve one client; returns the exit code."""
    unknown = [word for word in sys.argv[1:] if word.lower() not in OPTIONS]
    if unknown:
        print(__doc__, file=sys.stderr)
        print(f"unknown option {unknown[0]}", file=sys.stderr)
        return 2
    try:
        asyncio.run(serve_standard_streams())
    except (ProtocolError, OSError) as error:
        print(f"psrp_server: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
