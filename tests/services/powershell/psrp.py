"""Sessions of PSRP for tests: a client's pool, and the server of hvsock.testing at the other end of a stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final

from hvsock.services.powershell.hosts import Choice, Host
from hvsock.services.powershell.pools import RunspacePool, opened
from hvsock.services.powershell.records import Progress, Secret
from hvsock.testing.psrp_server import Server

PATIENCE: Final = 30.0
"""Seconds that anything may take here; nothing takes one."""
PROGRAM: Final = (sys.executable, "-m", "hvsock.testing.psrp_server", "-s", "-NoLogo", "-NoProfile")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Typist(Host):
    """A host that answers with lines that are laid out for it, and notes down what it was told.

    Args:
        lines: the answers, in their order.
    """

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)
        self.written = ""
        self.errors: list[str] = []
        self.progresses: list[Progress] = []
        self.codes: list[int] = []

    def size(self) -> tuple[int, int]:
        return 100, 40

    async def write(self, text: str) -> None:
        self.written += text

    async def write_error(self, text: str) -> None:
        self.errors.append(text)

    async def progress(self, progress: Progress) -> None:
        self.progresses.append(progress)

    async def read_line(self) -> str:
        if not self.lines:
            raise OSError("nobody sits there")
        return self.lines.pop(0)

    async def read_secret(self) -> Secret:
        return Secret(await self.read_line())

    async def choose(self, caption: str, message: str, choices: Sequence[Choice], default: int) -> int:
        self.choices = list(choices)
        return await super().choose(caption, message, choices, default)

    async def exit(self, code: int) -> None:
        self.codes.append(code)


class Chopped(asyncio.StreamReader):
    """A reader that gives what it has in pieces of given sizes, again and again.

    Args:
        sizes: the sizes; without any, what is there is given.
    """

    def __init__(self, sizes: Sequence[int] = ()) -> None:
        super().__init__()
        self._sizes = list(sizes)
        self._next = 0

    async def read(self, n: int = -1) -> bytes:
        if self._sizes:
            n = self._sizes[self._next % len(self._sizes)]
            self._next += 1
        return await super().read(n)


async def streams_over(sock: socket.socket, sizes: Sequence[int] = ()) -> Streams:
    """Streams over a connected socket, read in pieces of `sizes`."""
    loop = asyncio.get_running_loop()
    reader = Chopped(sizes)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


@contextlib.asynccontextmanager
async def connected(sizes: Sequence[int] = ()) -> AsyncIterator[tuple[Streams, Streams]]:
    """Two ends of a stream; the second one is closed at the end, the first one is its user's."""
    near, far = socket.socketpair()
    here, there = await streams_over(near, sizes), await streams_over(far, sizes)
    try:
        yield here, there
    finally:
        there[1].close()
        with contextlib.suppress(OSError):
            await there[1].wait_closed()


@contextlib.asynccontextmanager
async def session(
    host: Host | None = None, *, runspaces: int = 1, sizes: Sequence[int] = ()
) -> AsyncIterator[RunspacePool]:
    """A pool in this process; both sides read in pieces of `sizes`. The server has ended at the end, by itself."""
    async with asyncio.timeout(PATIENCE), connected(sizes) as (here, there):
        serving = asyncio.create_task(Server(*there).serve())
        try:
            async with opened(*here, host=host, runspaces=runspaces) as pool:
                yield pool
            await serving
        finally:
            serving.cancel()
            await asyncio.wait({serving})


@contextlib.asynccontextmanager
async def program(*command: str, host: Host | None = None, runspaces: int = 1) -> AsyncIterator[RunspacePool]:
    """A pool of a program that speaks PSRP on its standard streams; it ends by itself."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            async with opened(process.stdout, process.stdin, host=host, runspaces=runspaces) as pool:
                yield pool
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
