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

from hvsock import names
from hvsock.addresses import Address, AddressText
from hvsock.constants import HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU
from hvsock.fabric.client import RETRY_SECONDS

from .chosen import class_for, socket
from .helpers import create_server
from .patience import AddressLike
from .streams import STREAM_LIMIT_BYTES, Acceptor, ClientConnected, Server, check_tls, over, serve

__all__ = ["Acceptor", "Server", "connected", "open_connection", "ready", "start_server"]

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")


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
        address: a URL or the pair, as :func:`hvsock.resolve` takes them.
        limit: bytes that the reader buffers.
        ssl: speak TLS.
        server_hostname: the name that the server's certificate has to have; needed with `ssl`.
        partition: the partition's folder to connect from; by default that of the process.

    Raises:
        ValueError: `ssl` without `server_hostname`.
        OSError: what connect raises.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    check_tls(ssl, server_hostname)
    return await over(await connected(address, partition=partition), limit, ssl, server_hostname)


async def connected(address: AddressLike, *, partition: str | None = None, passthru: bool = False) -> socket:
    """A socket that is connected to a service and does not block; names are looked up. The caller owns it.

    Args:
        address: a URL or the pair, as :func:`hvsock.resolve` takes them.
        partition: the partition's folder to connect from; by default that of the process.
        passthru: set HVSOCKET_CONTAINER_PASSTHRU.

    Raises:
        OSError: what connect raises.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    target = await _resolve(address, partition)
    sock = class_for(address)(partition=partition)
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
    text = names.parse(address)
    found = names.at_once(text) if isinstance(text, AddressText) else None
    return found if found is not None else await asyncio.to_thread(names.resolve, address, partition)


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
        address: a URL or the pair, as :func:`hvsock.resolve` takes them.
        limit: bytes that each reader buffers.
        backlog: connections that may wait to be accepted.
        ssl: speak TLS.
        partition: the partition's folder to listen in; by default that of the process.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    listener = await asyncio.to_thread(create_server, address, backlog=backlog, partition=partition)
    return serve(Server, listener, client_connected_cb, limit, ssl)
