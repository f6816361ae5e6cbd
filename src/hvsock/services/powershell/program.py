"""The program that serves a session, between its pipes and the connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Final

from hvsock.errors import NotReadyError
from hvsock.services.predefined.direct.processes import Process, started
from hvsock.services.predefined.direct.users import User
from hvsock.sockets.chosen import socket

from .framing import ERROR_PREFIXES

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 64 * 1024
"""Read at once from either side; that, and what pipes and sockets hold, is what a stalled session has."""
END_SECONDS: Final = 10.0
"""How long a program may take to end, without output, whose client has or which closed its output; then it is hung
up."""
MAX_COMPLAINT_BYTES: Final = 1024
"""Most that is kept of what a program writes to its error output: the last of it, for the log and the client."""


def error_line(text: str) -> bytes:
    """An error for the client, which prints it."""
    return ERROR_PREFIXES[0] + " ".join(text.split()).encode("utf-8", "replace") + b"\n"


async def run(connection: socket, user: User, program: Sequence[str], begun: bytes = b"") -> None:
    """Run a program for a session, until it or the client ends; it is gone after that.

    Args:
        connection: a socket that does not block; the caller closes it.
        user: whom it runs as.
        program: with its arguments. It speaks PSRP's lines on standard input and output.
        begun: what was read from the connection already.

    Raises:
        NotReadyError: there is no such program.
        OSError: it cannot be started.
    """
    path = user.environment(os.environ)["PATH"]
    if await asyncio.to_thread(shutil.which, program[0], path=path) is None:
        raise NotReadyError(f"{program[0]} is not installed in this guest, or not in {path}")
    process = await started(user, f"exec {shlex.join(program)}", {}, None)
    try:
        await _Session(connection, process).pump(begun)
    finally:
        await process.end()


class _Session:
    """One session.

    Args:
        connection, process: what it is between.
    """

    def __init__(self, connection: socket, process: Process) -> None:
        self._connection = connection
        self._process = process
        self._last = b"\n"
        self._printed = 0
        self._complaint = b""

    async def pump(self, begun: bytes) -> None:
        """Carry everything, until the program has closed its output, or some time after the client has ended."""
        feeding = asyncio.create_task(self._feed(begun))
        printing = asyncio.create_task(self._print())
        complaining = asyncio.create_task(self._complain())
        tasks = {feeding, printing, complaining}
        try:
            await asyncio.wait({feeding, printing}, return_when=asyncio.FIRST_COMPLETED)
            if not printing.done():
                if feeding.exception() is None:
                    await self._finish(printing)
            elif printing.exception() is None:
                await asyncio.wait({complaining}, timeout=END_SECONDS)
                await self._explain()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if isinstance(error, OSError):
                log.info("powershell: the client of a session is gone: %s", error)
            elif error is not None:
                raise error

    async def _finish(self, printing: asyncio.Task[None]) -> None:
        """Wait for the rest of the output, whose program knows that its client says no more."""
        before = -1
        while not printing.done() and self._printed != before:
            before = self._printed
            await asyncio.wait({printing}, timeout=END_SECONDS)

    async def _feed(self, begun: bytes) -> None:
        loop = asyncio.get_running_loop()
        data = begun or await loop.sock_recv(self._connection, CHUNK_BYTES)
        while data:
            await self._process.write(data)
            data = await loop.sock_recv(self._connection, CHUNK_BYTES)
        self._process.end_input()

    async def _print(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await self._process.read(1, CHUNK_BYTES):
            await loop.sock_sendall(self._connection, data)
            self._last = data[-1:]
            self._printed += len(data)

    async def _complain(self) -> None:
        while data := await self._process.read(2, CHUNK_BYTES):
            self._complaint = (self._complaint + data)[-MAX_COMPLAINT_BYTES:]

    async def _explain(self) -> None:
        """Tell the client why a program ended that ended badly."""
        with contextlib.suppress(OSError):  # or it takes too long, or the client is gone
            async with asyncio.timeout(END_SECONDS):
                status = await self._process.wait()
                if status:
                    text = self._complaint.decode("utf-8", "replace").strip()
                    log.warning("powershell: the program of a session ended with %d: %s", status, text)
                    cut = b"" if self._last == b"\n" else b"\n"
                    what = f"the session's program ended with status {status}: {text or 'it said nothing'}"
                    await asyncio.get_running_loop().sock_sendall(self._connection, cut + error_line(what))
