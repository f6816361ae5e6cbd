"""A side of a conversation in lockstep, on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from hvsock.sockets.aio import ready
from hvsock.sockets.chosen import socket

from .lockstep import Lockstep, R

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

PAUSE_SECONDS: Final = 0.1
"""What ends a message without an end: the parts of one that is sent at once are not that far apart. A guest waits
for it once for each text and after FAIL, a client for a token without padding."""


async def converse(
    connection: socket, side: Lockstep[R], decide: Callable[[], Awaitable[None]] | None = None
) -> R:
    """Have a conversation; the caller limits its time, owns the socket and closes it.

    Args:
        connection: a socket that does not block.
        side: the side to take.
        decide: called for turns with a verdict.

    Returns:
        What comes of it. Nothing beyond its last message was read.

    Raises:
        HvsockError: what the side raises.
        OSError: the connection failed otherwise than by its end.
    """
    loop = asyncio.get_running_loop()
    while not side.done:
        turn = side.turn
        if turn.send:
            # a peer that is gone may have said why, so that reading tells
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                await loop.sock_sendall(connection, turn.send)
        if turn.verdict and decide is not None:
            await decide()
        if not turn.due:
            side.receive(b"")
            continue
        data = await _received(connection, turn.due, PAUSE_SECONDS if turn.pausable else None)
        if data is None:
            side.pause()
        elif data:
            side.receive(data)
        else:
            side.end()
    return side.result


async def _received(connection: socket, size: int, seconds: float | None) -> bytes | None:
    """What comes within `seconds`, b"" for the end, None for nothing.

    The time-out is on waiting alone: one on loop.sock_recv loses what it received as the time ran out.
    """
    over = False
    while True:
        try:
            return connection.recv(size)
        except (BlockingIOError, InterruptedError):
            if over:
                return None
        except ConnectionResetError:
            return b""
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await ready(connection.fileno(), write=False)
        except TimeoutError:
            if not limit.expired():
                raise
            over = True  # unless it came while nobody looked
