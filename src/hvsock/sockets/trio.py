"""trio's streams and listeners over Hyper-V sockets; needs trio, which the rest of the library does not.

::

    from hvsock.sockets import trio as hvsock_trio

    stream = await hvsock_trio.open_stream("hvsocket://parent/2761")
    nursery.start_soon(hvsock_trio.serve, handler, ("children", "HV Socket Demo"))
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from hvsock import names

from .chosen import class_for, socket
from .helpers import create_server
from .patience import AddressLike
from .plain import to_plain

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

QUEUE_PAUSE_SECONDS = 0.005
"""Pause of a connect while the broker's queue is full."""

Handler = Callable[[trio.SocketStream], Awaitable[object]]


async def open_stream(address: AddressLike, *, partition: str | None = None) -> trio.SocketStream:
    """Connect to a service; names are looked up.

    Args:
        address: a URL or the pair, as :func:`hvsock.resolve` takes them.
        partition: the partition's folder to connect from; by default that of the process.

    Raises:
        OSError: what connect raises.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    target = await trio.to_thread.run_sync(names.resolve, address, partition)
    with contextlib.closing(class_for(address)(partition=partition)) as sock:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(target)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
                sock.connect(target)  # tells how it ended
                return _stream(sock)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            await trio.sleep(QUEUE_PAUSE_SECONDS)


class Listener(trio.abc.Listener[trio.SocketStream]):
    """A listener as ``trio.serve_listeners`` takes it.

    Args:
        sock: a listening Hyper-V socket, which this object owns from now on.
    """

    def __init__(self, sock: socket) -> None:
        sock.setblocking(False)
        self.socket = sock

    async def accept(self) -> trio.SocketStream:
        """Wait for a connection.

        Raises:
            OSError: as accept; EMFILE and the like lose nothing.
            trio.ClosedResourceError: this listener is closed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError
            try:
                sock, _ = self.socket.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.socket)
                continue
            await trio.lowlevel.cancel_shielded_checkpoint()
            return _stream(sock)

    async def aclose(self) -> None:
        """Close the listener; tasks that wait in accept get ClosedResourceError."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()
        await trio.lowlevel.checkpoint()


async def open_listener(address: AddressLike, *, backlog: int = 128, partition: str | None = None) -> Listener:
    """A listener for a service; names are looked up.

    Args:
        address: a URL or the pair, as :func:`hvsock.resolve` takes them.
        backlog: connections that may wait to be accepted.
        partition: the partition's folder to listen in; by default that of the process.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    return Listener(
        await trio.to_thread.run_sync(lambda: create_server(address, backlog=backlog, partition=partition))
    )


async def serve(
    handler: Handler,
    address: AddressLike,
    *,
    backlog: int = 128,
    partition: str | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[Listener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve a service until cancelled, as trio.serve_tcp does: each connection is a task ``handler(stream)``.

    Args:
        handler: a coroutine function; the stream is closed when it returns.
        address: a URL or the pair, as :func:`hvsock.resolve` takes them.
        backlog: connections that may wait to be accepted.
        partition: the partition's folder to listen in; by default that of the process.
        handler_nursery: where the tasks run; by default one of this call's own.
        task_status: for ``nursery.start``, which returns the listener in a list.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    listener = await open_listener(address, backlog=backlog, partition=partition)
    started: Any = task_status
    await trio.serve_listeners(handler, [listener], handler_nursery=handler_nursery, task_status=started)


def _stream(sock: socket) -> trio.SocketStream:
    return trio.SocketStream(trio.socket.from_stdlib_socket(to_plain(sock)))
