"""asyncio streams over Hyper-V sockets on Windows.

The Proactor loop carries the data of a connected socket, and can neither connect nor accept one: BindLocal and
ConnectEx know the addresses of TCP alone, the socket that it makes for AcceptEx has protocol 0, and the 44 bytes
that it has for an address are fewer than the 52 that SOCKADDR_HV needs. So both are done by blocking calls in
threads, and the socket is handed over to the loop. That works on the other loops, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl as _ssl
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hvsock.addresses import Address, parse_service_id, parse_url, parse_vm_id
from hvsock.constants import HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU
from hvsock.sockets.patience import AddressLike
from hvsock.sockets.streams import (
    ACCEPTS_PER_WAKE_UP,
    STREAM_LIMIT_BYTES,
    Acceptor,
    ClientConnected,
    Server,
    check_tls,
    over,
    serve,
)

from .helpers import create_server, resolve

if TYPE_CHECKING and sys.platform != "win32":
    from hvsock.sockets.chosen import socket  # the interface is the same, and so is what goes on below
else:
    from .socket import socket

STUCK_SECONDS: Final = 5.0
"""How long a closed listener's thread may take to end; Windows ends it at once."""


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
        partition: None.

    Raises:
        ValueError: `ssl` without `server_hostname`.
        OSError: what connect raises.
        UsageError, NotFoundError: the address, as :func:`hvsock.resolve` says.
    """
    check_tls(ssl, server_hostname)
    return await over(await connected(address, partition=partition), limit, ssl, server_hostname)


async def connected(address: AddressLike, *, partition: str | None = None, passthru: bool = False) -> socket:
    """A socket that is connected to a service and does not block; names are looked up. The caller owns it.

    Args:
        address: ``hvsocket://VM/SERVICE`` or the pair.
        partition: None.
        passthru: set HVSOCKET_CONTAINER_PASSTHRU.

    Raises:
        OSError: what connect raises.
        UsageError, NotFoundError: the address, as :func:`hvsock.resolve` says.
    """
    target = await _resolve(address)
    sock = socket(partition=partition)
    try:
        if passthru:
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU, 1)
        sock.settimeout(None)
        await _in_thread(lambda: sock.connect(target), "hvsock connect")
        sock.setblocking(False)
    except BaseException:
        sock.close()  # which ends a connect in its thread; without that, its own time-out would
        raise
    return sock


async def _resolve(address: AddressLike) -> Address:
    """Looks a name up in a thread; what is no name needs none."""
    try:
        vm, service = parse_url(address) if isinstance(address, str) else address
    except ValueError:
        return resolve(address)  # its own error is better
    if parse_vm_id(vm) is None or parse_service_id(service) is None:
        return await asyncio.to_thread(resolve, address)
    return resolve(address)


async def _in_thread(call: Callable[[], None], name: str) -> None:
    """Call it in a thread of its own, which nobody waits for once this is cancelled."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure = None
        try:
            call()
        except BaseException as error:
            failure = error
        _tell(loop, settle, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    await done


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> bool:
    """Have the loop call it; False where the loop is closed."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        return False
    return True


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
        partition: None.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError: the address, as :func:`hvsock.resolve` says.
    """
    listener: Any = await asyncio.to_thread(create_server, address, backlog=backlog, partition=partition)
    return serve(ThreadServer, listener, client_connected_cb, limit, ssl)


class ThreadAcceptor(Acceptor):
    """An acceptor whose listener is waited for in a thread, as no loop of Windows can."""

    def _watch(self) -> None:
        if not self.is_serving:
            return
        self.listener.setblocking(True)
        self._room = threading.Semaphore(ACCEPTS_PER_WAKE_UP)
        self._thread_ended = asyncio.Event()
        self._thread = threading.Thread(target=self._accept_all, name="hvsock accept", daemon=True)
        self._thread.start()

    def _unwatch(self) -> None:
        """Nothing: closing the listener ends the accept that waits."""

    def _accept_all(self) -> None:
        """In the thread: hand over what comes, while the loop keeps up."""
        while True:
            self._room.acquire()
            try:
                sock, peer = self.listener.accept()
            except OSError as error:
                _tell(self._loop, self._ended, error)
                return
            if not _tell(self._loop, self._taken, sock, peer):
                sock.close()
                return

    def _taken(self, sock: socket, peer: Address) -> None:
        self._room.release()
        if self.is_serving:
            self._accepted(sock, peer)
        else:
            sock.close()

    def _ended(self, error: OSError) -> None:
        self._thread.join()  # it has nothing left to do
        self._thread_ended.set()
        if self.is_serving:
            self._failed(error)

    async def wait_stopped(self) -> None:
        """As the other acceptor's; the thread has ended, too."""
        await self.stopped.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._thread_ended.wait(), STUCK_SECONDS)
        await super().wait_stopped()


class ThreadServer(Server):
    """A server on Windows; as the other one to whoever uses it."""

    acceptor = ThreadAcceptor
