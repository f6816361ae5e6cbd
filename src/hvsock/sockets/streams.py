"""asyncio over connected and listening sockets, whatever their transport: streams, and serving."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl as _ssl
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from hvsock.addresses import Address

if TYPE_CHECKING:
    from .chosen import socket

STREAM_LIMIT_BYTES: Final = 64 * 1024
"""asyncio's own default for the buffer of a StreamReader."""
ACCEPTS_PER_WAKE_UP: Final = 64
"""Connections taken from one listener before the loop's other work has its turn."""
EXHAUSTED_SECONDS: Final = 1.0
"""Pause after EMFILE and the like, as in asyncio (constants.ACCEPT_RETRY_DELAY)."""

EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""After these, the connections wait in the backlog."""

ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


def check_tls(ssl: _ssl.SSLContext | None, server_hostname: str | None) -> None:
    """Refuse a client's TLS that checks no name.

    Raises:
        ValueError: `ssl` without `server_hostname`.
    """
    if ssl is not None and server_hostname is None:
        raise ValueError("TLS needs server_hostname, the name that the server's certificate has to have")


async def over(
    sock: socket, limit: int, ssl: _ssl.SSLContext | None, server_hostname: str | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over a connected socket that does not block, and which they own from now on."""
    loop = asyncio.get_running_loop()
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


def serve(
    kind: type[Server],
    listener: socket,
    client_connected_cb: ClientConnected,
    limit: int,
    ssl: _ssl.SSLContext | None,
) -> Server:
    """A server of that kind, which calls `client_connected_cb` with the streams of each connection.

    Args:
        kind: the class.
        listener: what it accepts from, and owns from now on.
        client_connected_cb: a function or a coroutine function; it closes the writer.
        limit: bytes that each reader buffers.
        ssl: speak TLS.
    """

    def make_protocol(server: Server) -> asyncio.StreamReaderProtocol:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handled = client_connected_cb(reader, writer)
            if handled is not None:
                server.run(handled)

        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=limit), connected)

    return kind(listener, make_protocol, ssl)


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
            self._unwatch()
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

    def _unwatch(self) -> None:
        self._loop.remove_reader(self.listener.fileno())

    def _accept(self) -> None:
        for _ in range(ACCEPTS_PER_WAKE_UP):
            try:
                sock, peer = self.listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._unwatch()
                self._failed(error)
                return
            self._accepted(sock, peer)

    def _accepted(self, sock: socket, peer: Address) -> None:
        sock.setblocking(False)
        self.run(self._handle(sock, peer)).add_done_callback(partial(_close_if_dropped, sock))

    def _failed(self, error: OSError) -> None:
        """Watch again after a pause, or stop for good."""
        if error.errno in EXHAUSTED:
            self._loop.call_exception_handler({"message": "accept failed", "exception": error})
            self._loop.call_later(EXHAUSTED_SECONDS, self._watch)
        else:
            self.error = error
            self.stop()


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

    acceptor: ClassVar = Acceptor
    """How it accepts."""

    def __init__(
        self,
        listener: socket,
        make_protocol: Callable[[Server], asyncio.BaseProtocol],
        ssl: _ssl.SSLContext | None = None,
    ) -> None:
        self._make_protocol = make_protocol
        self._ssl = ssl
        self._loop = asyncio.get_running_loop()
        self._acceptor = self.acceptor(listener, self._connected)

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
