"""Asking: an instance of a service's class that stands for the service elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, Final, TypeVar

from hvsock.errors import (
    HvsockError,
    LostError,
    NegotiationError,
    NoFabricError,
    NotFoundError,
    NotReadyError,
    ProtocolError,
)
from hvsock.sockets.aio import connected
from hvsock.sockets.patience import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, WORTH_WAITING

from .negotiation import NEGOTIATION_SECONDS, Accepted, Offer
from .peerlog import lines_of
from .service import Operation, Service, codec_of
from .session import Negotiation
from .wire import ClientConnection

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

S = TypeVar("S", bound=Service)

CONNECT_SECONDS: Final = 10.0
"""How long a connection may take, with all tries, where the caller says nothing."""


class Connector:
    """Keeps one negotiated connection to a service, and makes another when it has ended.

    Args:
        service: the class.
        vm: where it is served: parent, loopback, a VmId or a name.
        partition: the partition's folder to connect from; by default that of the process.
    """

    def __init__(self, service: type[Service], vm: str, partition: str | None) -> None:
        self._service = service
        self._vm = vm
        self._partition = partition
        self._codec = codec_of(service)
        self._connection: ClientConnection | None = None
        self._lock = asyncio.Lock()
        self.accepted = Accepted()

    async def close(self) -> None:
        """End the connection. Calling this twice is fine."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def connect(self, timeout: float | None, *, wait: bool, ready: bool = True) -> ClientConnection:
        """The connection, which is made and negotiated if there is none.

        Args:
            timeout: seconds for all tries; None for no limit.
            wait: whether a service that is not there yet is waited for.
            ready: whether a service that is not ready yet is waited for.

        Raises:
            OSError, NoFabricError, NotFoundError: there is no connection; what the last try raised.
            NegotiationError: there is no version in common.
            NotReadyError: it is there, and was not ready in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        async with self._lock:
            pause = FIRST_PAUSE_SECONDS
            while self._connection is None or not self._connection.is_open:
                await self.close()
                left = None if deadline is None else deadline - time.monotonic()
                limit = asyncio.timeout(left)
                try:
                    async with limit:
                        self._connection = await self._try(ready)
                except (OSError, NoFabricError, NotFoundError, LostError) as error:
                    if limit.expired():
                        raise TimeoutError(errno.ETIMEDOUT, f"{self} did not answer in {timeout:g} s") from error
                    passing = isinstance(error, HvsockError) or error.errno in WORTH_WAITING
                    if not (wait and passing) or (left is not None and left <= pause):
                        raise
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            return self._connection

    async def _try(self, ready: bool) -> ClientConnection:
        sock = await connected((self._vm, self._service.ID), partition=self._partition)
        with lines_of(self._vm):
            connection = await ClientConnection.open(sock)
        try:
            await self._negotiate(connection, ready)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _negotiate(self, connection: ClientConnection, ready: bool) -> None:
        offer = Offer(list(self._service.VERSIONS), sorted(self._service.FEATURES))
        asked = connection.ask(Negotiation.WIRE, Negotiation.negotiate, codec_of(Negotiation), _one(offer), None)
        async with contextlib.aclosing(asked) as answers:
            try:
                async with asyncio.timeout(NEGOTIATION_SECONDS):
                    first = await anext(answers, None)
            except TimeoutError:
                text = f"{self} took the connection and said nothing for {NEGOTIATION_SECONDS:g} s"
                raise TimeoutError(errno.ETIMEDOUT, text) from None
            if first is None:
                raise LostError(f"{self} ended the negotiation")
            if first.version not in offer.versions or not set(first.features) <= set(offer.features):
                raise NegotiationError(f"{self} picked version {first.version}, or a feature, never offered")
            self.accepted = first
            if not ready and not first.ready:
                return
            if not first.ready:
                last = await anext(answers, None)
                if last is None:
                    raise NotReadyError(f"{self} is not ready, and will not be")
                if last != replace(first, ready=True):
                    raise ProtocolError(f"{self} changed its mind about what it picked")
            async for _ in answers:  # to its end, so that the other side need not cancel it
                raise ProtocolError(f"{self} goes on with a negotiation that is over")

    # -- what operations ask for, see service.Link

    async def call(self, operation: Operation[Any, Any], question: Any, timeout: float | None) -> Any:
        """One answer; see :class:`.service.Link`.

        A connection that has ended is made again first, for as long as the time-out allows. One that ends
        within an operation that is idempotent is too, and the operation is tried again.

        Raises:
            TimeoutError: it was not over in time.
            LostError: the connection ended within an operation that is not idempotent.
            ProtocolError: the other side said what none of ours says.
            OSError, HvsockError: there is no connection, or what the other side refused.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        again = operation.idempotent and not operation.many_questions
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            connection = await self.connect(left, wait=True)
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                async with contextlib.aclosing(self._asked(connection, operation, question, left)) as answers:
                    answer = await anext(answers, None)
                    if answer is None:
                        raise ProtocolError(f"{self} ended {operation.policy_name} without an answer")
                    async for _ in answers:
                        pass
                    return answer
            except LostError:
                if not again or (deadline is not None and time.monotonic() >= deadline):
                    raise
            await asyncio.sleep(FIRST_PAUSE_SECONDS)

    async def stream(
        self, operation: Operation[Any, Any], question: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        """Many answers; see :class:`.service.Link`.

        A lost connection ends it: only the caller knows where it was, and whether to ask again.
        """
        connection = await self.connect(CONNECT_SECONDS if timeout is None else timeout, wait=True)
        async with contextlib.aclosing(self._asked(connection, operation, question, timeout)) as answers:
            async for answer in answers:
                yield answer

    def _asked(
        self, connection: ClientConnection, operation: Operation[Any, Any], question: Any, timeout: float | None
    ) -> AsyncGenerator[Any, None]:
        questions = question if operation.many_questions else _one(question)
        return connection.ask(self._service.WIRE, operation, self._codec, questions, timeout)

    def __str__(self) -> str:
        return f"{self._service.NAME!r} of {self._vm}"


async def _one(question: Any) -> AsyncIterator[Any]:
    yield question


@contextlib.asynccontextmanager
async def connect(
    service: type[S],
    vm: str,
    *,
    partition: str | None = None,
    timeout: float | None = CONNECT_SECONDS,
    wait: bool = False,
) -> AsyncIterator[S]:
    """An instance that stands for the service in another partition, connected and negotiated.

    Where the connection ends (a VM's pause, reset or restore, an agent that is started again), the next operation
    makes another; see :meth:`Connector.call` for those that are under way.

    Args:
        service: the class.
        vm: where it is served: parent, loopback, a VmId or a name.
        partition: the partition's folder to connect from; by default that of the process.
        timeout: seconds until it has to be connected; None for no limit.
        wait: wait for a service that is not there yet, as long as `timeout` allows.

    Raises:
        OSError, NoFabricError, NotFoundError, UsageError: what :func:`hvsock.open_connection` raises.
        NegotiationError: there is no version in common.
        NotReadyError: it is there, and cannot be used yet.
    """
    connector = Connector(service, vm, partition)
    try:
        await connector.connect(timeout, wait=wait)
        yield standing_for(service, connector)
    finally:
        await connector.close()


def standing_for(service: type[S], connector: Connector) -> S:
    """An instance of `service` whose operations are asked over `connector`."""
    made = object.__new__(service)
    made.__dict__["_link"] = connector
    return made
