"""asyncio streams over Hyper-V sockets, on asyncio's own loops and on uvloop.

The plain ``loop.sock_connect``, ``sock_accept``, ``sock_recv`` and so on take Hyper-V sockets as they are,
and asyncio's own ``loop.create_server(sock=...)`` takes a listener. uvloop accepts by itself, which does not
know couriers: there, :func:`start_server` serves.
"""

from __future__ import annotations

import asyncio
import errno
import ssl as _ssl
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

from hvsock.addresses import Address, parse_service_id, parse_url, parse_vm_id
from hvsock.fabric import client

from .chosen import socket
from .helpers import AddressLike, create_server
from .socket import RETRY_SECONDS

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

STREAM_LIMIT_BYTES: Final = 64 * 1024
"""asyncio's own default for the buffer of a StreamReader."""
ACCEPTS_PER_WAKE_UP: Final = 64
"""Connections taken from one listener before the loop's other work has its turn."""
EXHAUSTED_SECONDS: Final = 1.0
"""Pause after EMFILE and the like, as in asyncio (constants.ACCEPT_RETRY_DELAY)."""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


async def open_connection(
    address: AddressLike,
    *,
    limit: int = STREAM_LIMIT_BYTES,
    ssl: _ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    partition: str | None = None,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a service; names are looked up.

    Args:
        address: ``hvsocket://VM/SERVICE`` or the pair.
        limit: bytes that the reader buffers.
        ssl: speak TLS.
        server_hostname: the name that the server's certificate has to have; needed with `ssl`.
        partition: the partition's folder to connect from; by default that of the process.

    Raises:
        ValueError: `ssl` without `server_hostname`.
        OSError: what connect raises.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    if ssl is not None and server_hostname is None:
        raise ValueError("TLS needs server_hostname, the name that the server's certificate has to have")
    loop = asyncio.get_running_loop()
    target = await _resolve(address, partition)
    reader = asyncio.StreamReader(limit=limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    owned = True
    sock = socket(partition=partition)

    def hand_over() -> asyncio.StreamReaderProtocol:
        nonlocal owned
        owned = False  # from here on the transport closes it
        return protocol

    try:
        sock.setblocking(False)
        await _connect(loop, sock, target)
        transport, _ = await loop.create_connection(hand_over, sock=sock, ssl=ssl, server_hostname=server_hostname)
    finally:
        if owned:
            sock.close()
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _connect(loop: asyncio.AbstractEventLoop, sock: socket, target: Address) -> None:
    while True:
        try:
            return await loop.sock_connect(sock, target)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        await asyncio.sleep(RETRY_SECONDS)  # the broker's queue is full


async def _resolve(address: AddressLike, partition: str | None) -> Address:
    """Looks a name up in a thread; what is no name needs none."""
    try:
        vm, service = parse_url(address) if isinstance(address, str) else address
    except ValueError:
        return client.resolve(address)  # its own error is better
    if parse_vm_id(vm) is None or parse_service_id(service) is None:
        return await asyncio.to_thread(client.resolve, address, partition)
    return client.resolve(address)


async def start_server(
    client_connected_cb: ClientConnected,
    address: AddressLike,
    *,
    limit: int = STREAM_LIMIT_BYTES,
    backlog: int = 128,
    ssl: _ssl.SSLContext | None = None,
    partition: str | None = None,
) -> Server:
    """Serve a service: `client_connected_cb(reader, writer)` runs for each connection.

    Args:
        client_connected_cb: a function or a coroutine function; it closes the writer.
        address: ``hvsocket://VM/SERVICE`` or the pair.
        limit: bytes that each reader buffers.
        backlog: connections that may wait to be accepted.
        ssl: speak TLS.
        partition: the partition's folder to listen in; by default that of the process.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    listener = await asyncio.to_thread(create_server, address, backlog=backlog, partition=partition)

    def make_protocol(server: Server) -> asyncio.StreamReaderProtocol:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handled = client_connected_cb(reader, writer)
            if handled is not None:
                server.run(handled)

        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=limit), connected)

    return Server(listener, make_protocol, ssl)


class Server:
    """A listener that is served; as asyncio.Server, also where a loop accepts by itself (uvloop).

    ``async with`` closes it at the end.

    Args:
        listener: a listening Hyper-V socket, which this object owns from now on.
        make_protocol: called with the server, makes the protocol of one connection.
        ssl: speak TLS.
    """

    def __init__(
        self,
        listener: socket,
        make_protocol: Callable[[Server], asyncio.BaseProtocol],
        ssl: _ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._closed = asyncio.Event()
        self._error: OSError | None = None
        listener.setblocking(False)
        self._watch()

    @property
    def sockets(self) -> tuple[socket, ...]:
        """The listening socket, until the server is closed."""
        return (self._listener,) if self.is_serving() else ()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that this server runs on."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether new connections are accepted."""
        return self._listener.fileno() >= 0

    def close(self) -> None:
        """Accept no more; connections there are go on. Calling this twice is fine."""
        if self.is_serving():
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until the listener is closed and the handlers of all connections are done."""
        await self._closed.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def serve_forever(self) -> None:
        """Serve until cancelled or closed.

        Raises:
            OSError: accept failed for good.
        """
        try:
            await self._closed.wait()
        finally:
            self.close()
        if self._error is not None:
            raise self._error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()

    def run(self, handler: Awaitable[None]) -> None:
        """Run the handler of a connection; :meth:`wait_closed` waits for it."""
        task = asyncio.ensure_future(handler)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": "the handler of a connection failed", "exception": error, "future": task}
            )

    def _watch(self) -> None:
        if self.is_serving():
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_WAKE_UP):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._loop.remove_reader(self._listener.fileno())
                if error.errno in _EXHAUSTED:  # the connections wait in the backlog
                    self._loop.call_exception_handler({"message": "accept failed", "exception": error})
                    self._loop.call_later(EXHAUSTED_SECONDS, self._watch)
                else:
                    self._error = error
                    self.close()
                return
            self.run(self._connected(sock))

    async def _connected(self, sock: socket) -> None:
        sock.setblocking(False)
        owned = True

        def hand_over() -> asyncio.BaseProtocol:
            nonlocal owned
            owned = False
            return self._make_protocol(self)

        try:
            await self._loop.connect_accepted_socket(hand_over, sock, ssl=self._ssl)
        except OSError as error:  # the peer is gone already, or does not speak TLS
            if self._loop.get_debug():
                self._loop.call_exception_handler({"message": "a connection failed", "exception": error})
        finally:
            if owned:
                sock.close()
