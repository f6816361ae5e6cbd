"""Serving: services on listeners, each connection with its caller, within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import ClassVar, Final, Self

from hvsock.addresses import HV_GUID_CHILDREN, Address, ServiceId, VmId, describe_vm_id
from hvsock.sockets.aio import Acceptor
from hvsock.sockets.chosen import socket
from hvsock.sockets.helpers import create_server

from .caller import Caller
from .negotiation import NEGOTIATION_SECONDS
from .peerlog import lines_of
from .policy import ALLOW_ALL, Policy
from .service import Service, id_of
from .session import Session

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

log = logging.getLogger(__name__)

BACKLOG: Final = 128
"""Connections that wait to be accepted."""
MAX_CONNECTIONS: Final = 1024
"""Connections that one service has at once, from everywhere: each costs some 100 KiB when it is busy."""
MAX_CONNECTIONS_OF_ONE: Final = 64
"""Connections that one service has at once from one partition, so that none shuts the others out."""


class RawService:
    """A service that is a bare stream: one function for each connection.

    A subclass states `name` and either `id` or `port`, as a :class:`.service.Service` does, and has a coroutine
    ``handle``. For a service that is one function there is :func:`raw_service`.

    Attributes:
        NAME: its friendly name.
        ID: its ServiceId.
        SHORT: its name in policies.
        POLICY_NAMES: the operations about which it asks its policy itself.
    """

    NAME: ClassVar[str] = ""
    ID: ClassVar[ServiceId]
    SHORT: ClassVar[str]
    POLICY_NAMES: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(
        cls, *, name: str | None = None, id: str | None = None, port: int | None = None, short: str | None = None
    ) -> None:
        super().__init_subclass__()
        if name is None:
            return
        cls.NAME = name
        cls.ID = id_of(cls, id, port)
        cls.SHORT = cls.__name__.lower() if short is None else short

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Serve one connection, which is closed when this returns or raises.

        Args:
            caller: who connected.
            connection: a non-blocking Hyper-V socket; take its descriptor by detach() to keep it.
        """
        raise NotImplementedError


def raw_service(
    name: str, *, id: str | None = None, port: int | None = None
) -> Callable[[Callable[[Caller, socket], Awaitable[None]]], RawService]:
    """Make a raw service of one coroutine function of the caller and the connected socket::

    @raw_service("HV Socket Demo", port=2761)
    async def echo(caller: Caller, connection: hvsock.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(connection, 65536):
            await loop.sock_sendall(connection, data)
    """

    def made(function: Callable[[Caller, socket], Awaitable[None]]) -> RawService:
        class Made(RawService, name=name, id=id, port=port, short=function.__name__.lower()):
            async def handle(self, caller: Caller, connection: socket) -> None:
                await function(caller, connection)

        return Made()

    return made


class Serving:
    """A service that is being served, until it is closed.

    Use :func:`serve`, which makes one.
    """

    def __init__(self, service: Service | RawService, listener: socket, policy: Policy) -> None:
        self.service = service
        self._policy = policy
        self._connections: Counter[VmId] = Counter()
        self._acceptor = Acceptor(listener, self._serve)

    @property
    def is_serving(self) -> bool:
        """Whether connections are taken."""
        return self._acceptor.is_serving

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return self._connections.total()

    async def _serve(self, sock: socket, peer: Address) -> None:
        """Serve one connection; it is closed at the end."""
        with lines_of(describe_vm_id(peer.vm_id)):
            await self._serve_one(sock, peer)

    async def _serve_one(self, sock: socket, peer: Address) -> None:
        if self._connections[peer.vm_id] >= MAX_CONNECTIONS_OF_ONE or self.connections >= MAX_CONNECTIONS:
            log.warning(
                "%s: too many connections, that of %s is closed", self.service.NAME, describe_vm_id(peer.vm_id)
            )
            sock.close()
            return
        self._connections[peer.vm_id] += 1
        try:
            if isinstance(self.service, RawService):
                await self._handle(self.service, sock, peer)
            else:
                await self._converse(self.service, sock, peer)
        finally:
            self._connections[peer.vm_id] -= 1
            self._connections += Counter()  # forget those that have none

    async def _handle(self, service: RawService, sock: socket, peer: Address) -> None:
        with sock:
            try:
                await service.handle(Caller(peer.vm_id), sock)
            except OSError as error:
                log.info("%s: the connection of %s failed: %s", service.NAME, describe_vm_id(peer.vm_id), error)
            except Exception:
                log.exception("%s: the connection of %s failed", service.NAME, describe_vm_id(peer.vm_id))

    async def _converse(self, service: Service, sock: socket, peer: Address) -> None:
        protocol = Session(service, peer.vm_id, self._policy).protocol()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, sock)
        except OSError as error:
            log.info("%s: the connection of %s failed: %s", service.NAME, describe_vm_id(peer.vm_id), error)
            sock.close()
            return
        try:
            await asyncio.wait({protocol.ended}, timeout=NEGOTIATION_SECONDS)
            if not protocol.was_asked:
                log.info("%s: %s asked for nothing", service.NAME, describe_vm_id(peer.vm_id))
                return
            await asyncio.shield(protocol.ended)
        finally:
            protocol.abort()
            await protocol.wait_ended()

    async def close(self) -> None:
        """Take no more connections, and end those there are. Calling this twice is fine."""
        await self._acceptor.close()

    async def wait_closed(self) -> None:
        """Wait until it is closed, or its listener failed for good.

        Raises:
            OSError: the listener's error.
        """
        await self._acceptor.wait_stopped()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


@contextlib.asynccontextmanager
async def serve(
    *services: Service | RawService,
    bind: str = HV_GUID_CHILDREN,
    partition: str | None = None,
    policy: Policy = ALLOW_ALL,
) -> AsyncIterator[list[Serving]]:
    """Serve services for as long as the context lasts.

    Args:
        services: what is served, each under its own ServiceId.
        bind: which partitions may connect: children, parent, loopback, any, a VmId or a name.
        partition: the partition's folder to listen in; by default that of the process.
        policy: which operations may be called.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError, NoFabricError: `bind`, as :func:`hvsock.resolve` says.
    """
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for service in services:
            made.append(await stack.enter_async_context(await open_serving(service, bind, partition, policy)))
        yield made


async def open_serving(
    service: Service | RawService, bind: str, partition: str | None = None, policy: Policy = ALLOW_ALL
) -> Serving:
    """Begin to serve one service; the caller closes it. Arguments and errors are those of :func:`serve`."""
    listener = await asyncio.to_thread(create_server, (bind, service.ID), backlog=BACKLOG, partition=partition)
    return Serving(service, listener, policy)
