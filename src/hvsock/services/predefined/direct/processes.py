"""Commands of a guest: with pipes or on a terminal, in a process group of their own, ended for certain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
import struct
import sys
import termios
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from hvsock.errors import StateError
from hvsock.sockets.aio import ready

from .users import User

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

HANGUP_SECONDS: Final = 5.0
"""How long a command whose client is gone may take to end after SIGHUP; then it is killed."""
MAX_ENVIRONMENT: Final = 256
"""Variables that a client may set."""
MAX_TERMINAL_SIZE: Final = 0xFFFF
"""Most rows or columns, for struct winsize has 16 bits for each."""
SHELL: Final = "/bin/sh"
"""The shell that is in every guest; POSIX has it there."""
_ON_TERMINAL: Final = 'tty=$1; shift; exec "$@" <>"$tty" >&0 2>&1'
"""What a session's leader opens first becomes its terminal, and needs no code between fork and exec."""
_SIGNALS: Final = frozenset({"HUP", "INT", "QUIT", "TERM", "KILL", "USR1", "USR2", "ALRM", "PIPE", "CONT", "STOP"})


class Terminal(NamedTuple):
    """The terminal that a client wants for its command.

    Attributes:
        kind: the value of TERM.
        width, height: in characters; 0 where the client does not know.
    """

    kind: str
    width: int
    height: int


class Process:
    """A command, in a session of its own; :meth:`end` has to be called.

    Args:
        child: the process.
        master: the descriptor of its terminal, which this owns; None where it has pipes.
    """

    def __init__(self, child: asyncio.subprocess.Process, master: int | None) -> None:
        self._child = child
        self._master = master
        self.outputs = (1,) if master is not None else (1, 2)
        """The descriptors that can be read."""

    async def read(self, number: int, size: int) -> bytes:
        """Read what the command wrote; empty at its end."""
        if self._master is not None:
            return await self._read_terminal(self._master, size)
        stream = self._child.stdout if number == 1 else self._child.stderr
        assert stream is not None
        return await stream.read(size)

    async def write(self, data: bytes) -> None:
        """Write to the command's input, as fast as it reads; what it does not want is dropped."""
        if self._master is not None:
            await self._write_terminal(self._master, data)
            return
        stream = self._child.stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stream.write(data)
            await stream.drain()

    def end_input(self) -> None:
        """The command's input ends; a terminal has no such end, Ctrl-D is typed there."""
        if self._child.stdin is not None:
            self._child.stdin.close()

    def signal(self, name: str) -> None:
        """Send a signal, by its name without SIG, to the command and what it started; unknown ones are ignored."""
        if name in _SIGNALS:
            self._kill(signal.Signals[f"SIG{name}"])

    def resize(self, width: int, height: int) -> None:
        """Set the size of the terminal, if there is one."""
        if self._master is not None:
            _set_size(self._master, width, height)

    async def wait(self) -> int:
        """The exit status, once the command has ended; the negative number of a signal that ended it."""
        return await self._child.wait()

    async def end(self) -> None:
        """End the command, where it has not ended: hang up, and kill after :data:`HANGUP_SECONDS`."""
        try:
            if self._child.returncode is None:
                self._kill(signal.SIGHUP)
                try:
                    async with asyncio.timeout(HANGUP_SECONDS):
                        await self._child.wait()
                except TimeoutError:
                    pass
                finally:
                    self._kill(signal.SIGKILL)
                await self._child.wait()
        finally:
            if self._master is not None:
                os.close(self._master)
                self._master = None
            transport: Any = self._child
            transport._transport.close()  # pipes that grandchildren hold

    def _kill(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # the group has the child's number as long as the child was not waited for
            if self._child.returncode is None:
                os.killpg(self._child.pid, number)

    async def _read_terminal(self, master: int, size: int) -> bytes:
        """The terminal's end is that of the process, or of the last one that has it open."""
        ended = asyncio.ensure_future(self._child.wait())
        try:
            while True:
                try:
                    return os.read(master, size)
                except BlockingIOError:
                    if ended.done():
                        return b""
                except OSError as error:
                    if error.errno == errno.EIO:
                        return b""
                    raise
                readable = asyncio.ensure_future(ready(master, write=False))
                try:
                    await asyncio.wait({readable, ended}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    readable.cancel()
                    await asyncio.wait({readable})
        finally:
            ended.cancel()
            await asyncio.wait({ended})

    async def _write_terminal(self, master: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(master, rest) :]
            except BlockingIOError:
                await ready(master, write=True)


async def started(
    user: User, command: str | None, environment: Mapping[str, str], terminal: Terminal | None
) -> Process:
    """Start a command, or a login shell, as `user`.

    Args:
        user: whom it runs as: who this process is, or whom it may become.
        command: for :data:`SHELL`; None for the user's login shell.
        environment: what the client adds.
        terminal: the terminal it gets; None for pipes.

    Raises:
        OSError: it cannot be started.
        StateError: the client wants too much.
    """
    if len(environment) > MAX_ENVIRONMENT:
        raise StateError(f"a command gets at most {MAX_ENVIRONMENT} variables")
    environ = {**user.environment(os.environ), **environment}
    # commands are for a shell that everybody's quoting is right for, also those of users without a login
    arguments = [user.shell, "-l"] if command is None else [SHELL, "-c", command]
    home = user.home if await asyncio.to_thread(os.path.isdir, user.home) else "/"
    if terminal is None:
        return Process(await _spawn(arguments, user, environ, home, asyncio.subprocess.PIPE), None)
    master, slave = os.openpty()
    try:
        os.set_blocking(master, False)
        _set_size(master, terminal.width, terminal.height)
        path = os.ttyname(slave)
        environ["TERM"] = terminal.kind or "dumb"
        arguments = [SHELL, "-c", _ON_TERMINAL, SHELL, path, *arguments]
        child = await _spawn(arguments, user, environ, home, asyncio.subprocess.DEVNULL)
        # the child opens the terminal by its path, and nobody may have it closed meanwhile: that reads as its end
        return _WithSlave(child, master, slave)
    except BaseException:
        os.close(master)
        os.close(slave)
        raise


class _WithSlave(Process):
    """A process on a terminal, whose other end stays open here too, until the process has ended."""

    def __init__(self, child: asyncio.subprocess.Process, master: int, slave: int) -> None:
        super().__init__(child, master)
        self._slave = slave

    async def end(self) -> None:
        try:
            await super().end()
        finally:
            os.close(self._slave)


async def _spawn(
    arguments: list[str], user: User, environ: dict[str, str], home: str, pipes: int
) -> asyncio.subprocess.Process:
    as_user: dict[str, Any] = {}
    if user.uid != os.geteuid():
        as_user = {"user": user.uid, "group": user.gid, "extra_groups": user.groups()}
    return await asyncio.create_subprocess_exec(
        *arguments,
        stdin=pipes,
        stdout=pipes,
        stderr=pipes,
        env=environ,
        cwd=home,
        start_new_session=True,
        **as_user,
    )


def _set_size(master: int, width: int, height: int) -> None:
    rows, columns = (max(0, min(one, MAX_TERMINAL_SIZE)) for one in (height, width))
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
