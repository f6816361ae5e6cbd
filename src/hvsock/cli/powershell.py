"""Sitting at a PowerShell of a guest: its output, its questions, one script or many."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import select
import shutil
import sys
import termios
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from hvsock.errors import HvsockError, NotReadyError
from hvsock.services.powershell.commands import Command, Script
from hvsock.services.powershell.hosts import Host, HostGoneError
from hvsock.services.powershell.records import Progress, Record, Secret, State, Stream, one_line, text_of, to_json
from hvsock.sockets.aio import ready

from .outcome import ExitCode, say
from .outcome import text_of as error_text

if TYPE_CHECKING:
    from hvsock.services.powershell.pools import RunspacePool

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

STANDARD_INPUT, STANDARD_OUTPUT, STANDARD_ERROR = range(3)
WRITE_BYTES: Final = select.PIPE_BUF
"""Written at once: so much a pipe takes without waiting that says it is ready."""
READ_BYTES: Final = 4096
"""Read of standard input at once."""
PROMPT_SECONDS: Final = 10.0
"""How long the guest may take for its prompt; then there is a plain one."""
PLAIN_PROMPT: Final = "PS> "
_ERASE_LINE: Final = "\r\x1b[K"
_PREFIXES: Final = {
    Stream.ERROR: "",
    Stream.WARNING: "WARNING: ",
    Stream.VERBOSE: "VERBOSE: ",
    Stream.DEBUG: "DEBUG: ",
}
"""The streams that are shown on standard error; information is not, as by PowerShell's own preference."""


class Console(Host):
    """Standard input and output as the host of scripts.

    Args:
        as_json: the output is JSON, one value on a line, so what scripts say to their host goes to standard error.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.code: int | None = None
        """The code of a script's `exit`; None as long as there was none."""
        self.has_errors = False
        """Whether anything was written as an error."""
        self._as_json = as_json
        self._talk = STANDARD_ERROR if as_json else STANDARD_OUTPUT
        self._has_progress = False
        self._typed = bytearray()

    # -- records

    async def show(self, record: Record) -> None:
        """Print a record.

        Raises:
            HostGoneError: nobody reads it.
        """
        if record.stream is Stream.OUTPUT:
            if self._as_json:
                await self._print(f"{json.dumps(to_json(record.value), ensure_ascii=False)}\n", STANDARD_OUTPUT)
            else:
                await self._print(f"{record.text}\n", STANDARD_OUTPUT)
        elif record.stream is Stream.PROGRESS:
            await self.progress(record.value)
        elif (prefix := _PREFIXES.get(record.stream)) is not None:
            self.has_errors |= record.stream is Stream.ERROR
            await self.write_error(f"{prefix}{record.text}")

    # -- the host of a script

    def size(self) -> tuple[int, int]:
        columns, rows = shutil.get_terminal_size(super().size())
        return columns, rows

    async def write(self, text: str) -> None:
        await self._print(text, self._talk)

    async def write_error(self, text: str) -> None:
        await self._print(f"{text}\n", STANDARD_ERROR)

    async def progress(self, progress: Progress) -> None:
        if not os.isatty(STANDARD_ERROR):
            return
        await self._clear_progress()
        if not progress.done:
            line = one_line(str(progress))[: self.size()[0] - 1]
            await _write_all(line.encode(errors="replace"), STANDARD_ERROR)
            self._has_progress = True

    async def read_line(self) -> str:
        await self._clear_progress()
        while b"\n" not in self._typed:
            data = await _read(STANDARD_INPUT)
            if not data:
                if self._typed:
                    break
                raise NotReadyError("standard input has ended, so nobody answers")
            self._typed += data
        line, _, rest = bytes(self._typed).partition(b"\n")
        self._typed = bytearray(rest)
        return line.removesuffix(b"\r").decode(errors="replace")

    async def read_secret(self) -> Secret:
        with _without_echo():
            secret = Secret(await self.read_line())
        if os.isatty(STANDARD_INPUT):
            await self.write("\n")
        return secret

    async def exit(self, code: int) -> None:
        self.code = code & 0xFF

    async def _print(self, text: str, descriptor: int) -> None:
        await self._clear_progress()
        try:
            await _write_all(text.encode(errors="replace"), descriptor)
        except OSError as error:
            raise HostGoneError(error_text(error)) from error

    async def _clear_progress(self) -> None:
        if self._has_progress:
            self._has_progress = False
            await _write_all(_ERASE_LINE.encode(), STANDARD_ERROR)


async def run_script(pool: RunspacePool, console: Console, text: str, *, as_json: bool = False) -> State:
    """Run a script and print what it writes, as the guest's own PowerShell would show it, or as JSON.

    Raises:
        ScriptError: a terminating error of the script's.
        BrokenPipeError: nobody reads what is printed; the script was stopped.
        HvsockError: the session is of no use any more.
    """
    commands: list[Command] = [Script(text)]
    if not as_json:
        commands.append(Command("Out-String", Stream=True, Width=console.size()[0]))
    try:
        async with pool.start(*commands) as pipeline:
            async for record in pipeline:
                await console.show(record)
            return pipeline.state
    except HostGoneError as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise


class Conversation:
    """One line after the other, at a terminal.

    Args:
        runner: where the session lives.
        pool: the session.
        console: the terminal.
        vm: what the guest is called.
        as_json: print objects as JSON.
    """

    def __init__(
        self, runner: asyncio.Runner, pool: RunspacePool, console: Console, vm: str, *, as_json: bool = False
    ) -> None:
        self._runner, self._pool, self._console = runner, pool, console
        self._vm, self._as_json = vm, as_json

    def hold(self) -> int:
        """Go on until the script says `exit`, or the terminal ends; returns the exit code.

        Raises:
            HvsockError: the session is of no use any more.
        """
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 # gives input() its editing and history
        while self._console.code is None:
            try:
                line = input(self._runner.run(self._prompt()))
                if line.strip():
                    self._runner.run(self._statement(line))
            except EOFError:
                print(file=sys.stderr)
                return ExitCode.OK
            except KeyboardInterrupt:
                print(file=sys.stderr)
        return self._console.code

    async def _prompt(self) -> str:
        try:
            found = (await self._pool.run("prompt", timeout=PROMPT_SECONDS)).output
        except HvsockError:
            self._pool.channel.check()
            found = []
        text = one_line(text_of(found[0])).rstrip() if found else ""
        return f"[{self._vm}]: {text} " if text else f"[{self._vm}]: {PLAIN_PROMPT}"

    async def _statement(self, line: str) -> None:
        try:
            await run_script(self._pool, self._console, line, as_json=self._as_json)
        except asyncio.CancelledError:  # Ctrl-C: the pipeline is stopped, and the next line may come
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            await self._console.write("\n")
        except HvsockError as error:
            self._pool.channel.check()
            say(str(error))


async def _read(descriptor: int) -> bytes:
    with contextlib.suppress(PermissionError):  # a file is always ready, and cannot be waited for
        await ready(descriptor, write=False)
    return os.read(descriptor, READ_BYTES)


async def _write_all(data: bytes, descriptor: int) -> None:
    """Write without ever holding the event loop up: others have to go on, and Ctrl-C has to be seen."""
    rest = memoryview(data)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    while rest:
        if not poll.poll(0):
            try:
                await ready(descriptor, write=True)
            except OSError as error:
                if error.errno != errno.EPERM:
                    raise
        rest = rest[os.write(descriptor, rest[:WRITE_BYTES]) :]


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """The terminal does not show what is typed, and does again at the end; nothing where there is none."""
    if not os.isatty(STANDARD_INPUT):
        yield
        return
    before = termios.tcgetattr(STANDARD_INPUT)
    silent = termios.tcgetattr(STANDARD_INPUT)
    silent[3] &= ~termios.ECHO
    try:
        termios.tcsetattr(STANDARD_INPUT, termios.TCSADRAIN, silent)
        yield
    finally:
        termios.tcsetattr(STANDARD_INPUT, termios.TCSADRAIN, before)
