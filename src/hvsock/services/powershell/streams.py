"""A session's connection as a stream whose reading outlives its writing."""

from __future__ import annotations

import asyncio
import sys
from typing import Final, Protocol

from hvsock.sockets.chosen import socket

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

UNSENT_BYTES: Final = 64 * 1024
"""How much may wait to be sent; then writers wait."""
SEND_BYTES: Final = 64 * 1024
"""Sent at once."""


class Reader(Protocol):
    """What a session reads from, as asyncio.StreamReader has it."""

    async def read(self, n: int) -> bytes:
        """At most `n` bytes; none at the end of the stream."""


class Writer(Protocol):
    """What a session writes to, as asyncio.StreamWriter has it."""

    def write(self, data: bytes) -> None:
        """Send data when there is room."""

    async def drain(self) -> None:
        """Wait until there is room for more."""

    def close(self) -> None:
        """End the stream."""

    async def wait_closed(self) -> None:
        """Wait until it has ended."""


class SocketStream:
    """A connected socket as both.

    asyncio's own transport gives up reading as soon as writing fails, and with it the last words of a server that
    says why it ends the connection.

    Args:
        sock: a connected socket that does not block; the stream owns it from now on.
    """

    def __init__(self, sock: socket) -> None:
        self._sock = sock
        self._unsent = bytearray()
        self._error: OSError | None = None
        self._changed = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None

    async def read(self, n: int) -> bytes:
        """See :class:`Reader`."""
        return await asyncio.get_running_loop().sock_recv(self._sock, n)

    def write(self, data: bytes) -> None:
        """See :class:`Writer`; what is given up is told by :meth:`drain`."""
        if self._error is None:
            self._unsent += data
            if self._sending is None:
                self._sending = asyncio.create_task(self._send(), name="psrp-sending")

    async def drain(self) -> None:
        """See :class:`Writer`.

        Raises:
            OSError: the other side takes nothing any more.
        """
        while self._error is None and len(self._unsent) > UNSENT_BYTES:
            self._changed.clear()
            await self._changed.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """See :class:`Writer`; what waits to be sent is dropped."""
        if self._sending is not None:
            self._sending.cancel()
        else:
            self._sock.close()

    async def wait_closed(self) -> None:
        """See :class:`Writer`."""
        try:
            if self._sending is not None:
                await asyncio.wait({self._sending})
        finally:
            self._sock.close()

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._unsent:
                piece = bytes(self._unsent[:SEND_BYTES])
                await loop.sock_sendall(self._sock, piece)
                del self._unsent[: len(piece)]
                self._changed.set()
        except OSError as error:
            self._error = error
            self._unsent.clear()
            self._changed.set()
        self._sending = None
