"""asyncio streams over Hyper-V sockets, on asyncio's own loops and on uvloop.

The plain ``loop.sock_connect``, ``sock_accept``, ``sock_recv`` and so on take Hyper-V sockets as they are,
and asyncio's own ``loop.create_server(sock=...)`` takes a listener. uvloop accepts by itself, which does not
know couriers: there, :func:`start_server` serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl as _ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from hvsock.addresses import Address, parse_service_id, parse_url, parse_vm_id
from hvsock.constants import HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU
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
    sock = await connected(address, partition=partition)
    reader = asyncio.StreamReader(limit=limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    owned = True

    def hand_over() -> asyncio.StreamReaderProtocol:
        nonlocal owned
        owned = False  # from here on the transport closes it
        return protocol

    try:
        transport, _ = await loop.create_connection(hand_over, sock=sock, ssl=ssl, server_hostname=server_hostname)
    finally:
        if owned:
            sock.close()
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def connected(address: AddressLike, *, partition: str | None = None, passthru: bool = False) -> socket:
    """A socket that is connected to a service and does not block; names are looked up. The caller owns it.

    Args:
        address: ``hvsocket://VM/SERVICE`` or the pair.
        partition: the partition's folder to connect from; by default that of the process.
        passthru: set HVSOCKET_CONTAINER_PASSTHRU.

    Raises:
        OSError: what connect raises.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    target = await _resolve(address, partition)
    sock = socket(partition=partition)
    try:
        sock.setblocking(False)
        if passthru:
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU, 1)
        await _connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(sock: socket, target: Address) -> None:
    while True:
        try:
            return sock.connect(target)  # the second call tells why; loop.sock_connect knows the errno alone
        except BlockingIOError:
            await ready(sock.fileno(), write=True)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            await asyncio.sleep(RETRY_SECONDS)  # the broker's queue is full


async def ready(descriptor: int, *, write: bool) -> None:
    """Wait until `descriptor`, which stays its owner's, can be read or written."""
    loop = asyncio.get_running_loop()
    found = loop.create_future()

    def settle() -> None:
        if not found.done():
            found.set_result(None)

    (loop.add_writer if write else loop.add_reader)(descriptor, settle)
    try:
        await found
    finally:
        (loop.remove_writer if write else loop.remove_reader)(descriptor)


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


class Acceptor:
    """A listener whose connections are handed to a coroutine, on every event loop.

    Args:
        listener: a listening Hyper-V socket, which this object owns from now on.
        handle: called with each accepted socket, which it owns and which does not block, and the peer's address.
    """

    def __init__(self, listener: socket, handle: Callable[[socket, Address], Coroutine[Any, Any, None]]) -> None:
        self.listener = listener
        self.error: OSError | None = None
        self.tasks: set[asyncio.Future[Any]] = set()
        self.stopped = asyncio.Event()
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        self._watch()

    @property
    def is_serving(self) -> bool:
        """Whether new connections are accepted."""
        return self.listener.fileno() >= 0

    def stop(self) -> None:
        """Accept no more; connections there are go on. Calling this twice is fine."""
        if self.is_serving:
            self._loop.remove_reader(self.listener.fileno())
            self.listener.close()
        self.stopped.set()

    async def wait_stopped(self) -> None:
        """Wait until nothing is accepted any more, and the handlers of all connections are done.

        Raises:
            OSError: accept failed for good.
        """
        await self.stopped.wait()
        while self.tasks:
            await asyncio.wait(self.tasks)
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Accept no more, and cancel the handlers of all connections. Calling this twice is fine."""
        self.stop()
        for task in self.tasks:
            task.cancel()
        while self.tasks:
            await asyncio.wait(self.tasks)

    def run(self, handler: Awaitable[None]) -> asyncio.Future[None]:
        """Run what belongs to a connection; :meth:`wait_stopped` waits for it."""
        task = asyncio.ensure_future(handler)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Future[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": "the handler of a connection failed", "exception": error, "future": task}
            )

    def _watch(self) -> None:
        if self.is_serving:
            self._loop.add_reader(self.listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_WAKE_UP):
            try:
                sock, peer = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._loop.remove_reader(self.listener.fileno())
                if error.errno in _EXHAUSTED:  # the connections wait in the backlog
                    self._loop.call_exception_handler({"message": "accept failed", "exception": error})
                    self._loop.call_later(EXHAUSTED_SECONDS, self._watch)
                else:
                    self.error = error
                    self.stop()
                return
            sock.setblocking(False)
            self.run(self._handle(sock, peer)).add_done_callback(partial(_close_if_dropped, sock))


def _close_if_dropped(sock: socket, task: asyncio.Future[Any]) -> None:
    """A handler that was cancelled may not even have begun, and one that failed owns nothing."""
    if task.cancelled() or task.exception() is not None:
        sock.close()


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
        self._make_protocol = make_protocol
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._acceptor = Acceptor(listener, self._connected)

    @property
    def sockets(self) -> tuple[socket, ...]:
        """The listening socket, until the server is closed."""
        return (self._acceptor.listener,) if self.is_serving() else ()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that this server runs on."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether new connections are accepted."""
        return self._acceptor.is_serving

    def close(self) -> None:
        """Accept no more; connections there are go on. Calling this twice is fine."""
        self._acceptor.stop()

    async def wait_closed(self) -> None:
        """Wait until the listener is closed and the handlers of all connections are done."""
        with contextlib.suppress(OSError):  # serve_forever tells it
            await self._acceptor.wait_stopped()

    async def serve_forever(self) -> None:
        """Serve until cancelled or closed.

        Raises:
            OSError: accept failed for good.
        """
        try:
            await self._acceptor.stopped.wait()
        finally:
            self.close()
        if self._acceptor.error is not None:
            raise self._acceptor.error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await self.wait_closed()

    def run(self, handler: Awaitable[None]) -> None:
        """Run the handler of a connection; :meth:`wait_closed` waits for it."""
        self._acceptor.run(handler)

    async def _connected(self, sock: socket, _: Address) -> None:
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
