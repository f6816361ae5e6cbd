"""asyncio streams over Hyper-V sockets, on asyncio's own loops and on uvloop.

The plain ``loop.sock_connect``, ``sock_accept``, ``sock_recv`` and so on take Hyper-V sockets as they are.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

from hvsock.addresses import parse_service_id, parse_url, parse_vm_id
from hvsock.fabric import client

from .helpers import AddressLike, create_server
from .socket import socket

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

STREAM_LIMIT_BYTES: Final = 64 * 1024
"""asyncio's own default for the buffer of a StreamReader."""

ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


async def open_connection(
    address: AddressLike, *, limit: int = STREAM_LIMIT_BYTES, partition: str | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a service; names are looked up.

    Args:
        address: ``hvsocket://VM/SERVICE`` or the pair.
        limit: bytes that the reader buffers.
        partition: the partition's folder to connect from; by default that of the process.

    Raises:
        OSError: what connect raises.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    target = (
        await asyncio.to_thread(client.resolve, address, partition)
        if _has_names(address)
        else client.resolve(address)
    )
    sock = socket(partition=partition)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, target)
        return await asyncio.open_connection(sock=sock, limit=limit)
    except BaseException:
        sock.close()
        raise


def _has_names(address: AddressLike) -> bool:
    try:
        vm, service = parse_url(address) if isinstance(address, str) else address
    except ValueError:
        return False
    return parse_vm_id(vm) is None or parse_service_id(service) is None


async def start_server(
    client_connected_cb: ClientConnected,
    address: AddressLike,
    *,
    limit: int = STREAM_LIMIT_BYTES,
    backlog: int = 128,
    partition: str | None = None,
) -> Server:
    """Serve a service: `client_connected_cb(reader, writer)` runs for each connection.

    Args:
        client_connected_cb: a function or a coroutine function; it closes the writer.
        address: ``hvsocket://VM/SERVICE`` or the pair.
        limit: bytes that each reader buffers.
        backlog: connections that may wait to be accepted.
        partition: the partition's folder to listen in; by default that of the process.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    listener = await asyncio.to_thread(create_server, address, backlog=backlog, partition=partition)
    listener.setblocking(False)
    return Server(listener, client_connected_cb, limit)


class Server:
    """A listener and the task that accepts; as asyncio.Server, also where a loop accepts by itself (uvloop).

    Owns the listener. `async with` closes it at the end.
    """

    def __init__(self, listener: socket, client_connected_cb: ClientConnected, limit: int) -> None:
        self._listener = listener
        self._callback = client_connected_cb
        self._limit = limit
        self._handlers: set[asyncio.Task[Any]] = set()
        self._task = asyncio.create_task(self._accept())

    @property
    def sockets(self) -> tuple[socket, ...]:
        """The listening socket, until the server is closed."""
        return (self._listener,) if self._listener.fileno() >= 0 else ()

    def is_serving(self) -> bool:
        """Whether new connections are accepted."""
        return not self._task.done()

    def close(self) -> None:
        """Accept no more; connections there are go on. Calling this twice is fine."""
        self._task.cancel()

    async def wait_closed(self) -> None:
        """Wait until the listener is closed and the handlers of all connections are done."""
        await asyncio.wait([self._task])
        while self._handlers:
            await asyncio.wait(self._handlers)

    async def serve_forever(self) -> None:
        """Serve until cancelled, then close."""
        try:
            await asyncio.wait([self._task])
            self._task.result()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._listener)
                except OSError as error:  # descriptors are short: the connection waits in the backlog
                    loop.call_exception_handler({"message": "accept failed", "exception": error})
                    await asyncio.sleep(_EXHAUSTED_SECONDS)
                    continue
                try:
                    await loop.connect_accepted_socket(self._protocol, sock)
                except OSError:
                    sock.close()
        finally:
            self._listener.close()

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=self._limit)
        return asyncio.StreamReaderProtocol(reader, self._connected)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled = self._callback(reader, writer)
        if handled is not None:
            task = asyncio.ensure_future(handled)
            self._handlers.add(task)
            task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[Any]) -> None:
        self._handlers.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "the handler of a connection failed", "exception": error, "task": task}
            )


_EXHAUSTED_SECONDS: Final = 1.0
"""Pause after EMFILE and the like, as in asyncio (constants.ACCEPT_RETRY_DELAY)."""
