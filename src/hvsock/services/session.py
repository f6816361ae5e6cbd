"""The serving side of one connection: who calls, what was negotiated, and what policy lets through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

from hvsock.addresses import SERVICE_WILDCARD, VmId
from hvsock.errors import ProtocolError, RefusedError

from .caller import Caller
from .negotiation import Accepted, Offer, pick
from .policy import Policy
from .service import Operation, Service, codec_of, download
from .wire import ServerConnection, handlers_of

log = logging.getLogger(__name__)


class Negotiation(Service, name="Negotiation", id=SERVICE_WILDCARD):
    """The operation that each connection has besides those of its service; it has no ServiceId of its own.

    Args:
        session: whose version is picked; None for a side that asks.
    """

    def __init__(self, session: Session | None = None) -> None:
        self._session = session

    @download
    async def negotiate(self, caller: Caller, offer: Offer) -> AsyncIterator[Accepted]:
        """Pick a version, and say when the service is ready."""
        assert self._session is not None
        service = self._session.service
        version, features = pick(service.NAME, service.VERSIONS, service.FEATURES, offer)
        self._session.caller = replace(caller, version=version, features=features)
        accepted = Accepted(version, sorted(features))
        ready = asyncio.ensure_future(service.ready())
        try:
            await asyncio.wait({ready}, timeout=0)
            yield replace(accepted, ready=ready.done())
            if not ready.done():
                await ready
                yield replace(accepted, ready=True)
            ready.result()
        finally:
            ready.cancel()
            await asyncio.wait({ready})


class Session:
    """One connection to a service.

    Args:
        service: what is served.
        vm_id: who connected, as the accepted socket shows it.
        policy: which operations may be called.
    """

    def __init__(self, service: Service, vm_id: VmId, policy: Policy) -> None:
        self.service = service
        self.caller = Caller(vm_id, service.VERSIONS[0])
        self._policy = policy

    def protocol(self) -> ServerConnection:
        """The connection's protocol."""
        handlers = {}
        gathering = asyncio.Lock()
        for service in (Negotiation(self), self.service):
            kind = type(service)
            served = {one: partial(self._answer, service, one) for one in kind.OPERATIONS.values()}
            handlers.update(handlers_of(kind.WIRE, served, codec_of(kind), gathering))
        return ServerConnection(handlers)

    async def _answer(
        self, service: Service, operation: Operation[Any, Any], questions: AsyncIterator[Any]
    ) -> AsyncGenerator[Any, None]:
        """Run a handler; what it takes and gives is of the form that the operation's shape has."""
        if service is self.service:
            self._check(operation)
        question: Any = questions
        if not operation.many_questions:
            question = await anext(questions, None)
            if question is None:
                raise ProtocolError(f"{operation.policy_name} without a question")
        handled = operation.handler(service, self.caller, question)
        if not operation.many_answers:
            yield await handled
            return
        async with contextlib.aclosing(handled) as answers:
            async for answer in answers:
                yield answer

    def _check(self, operation: Operation[Any, Any]) -> None:
        try:
            self._policy.check(operation.policy_name)
        except RefusedError:
            log.warning("%s of %s: denied by policy", operation.policy_name, self.caller)
            raise
        log.info("%s of %s", operation.policy_name, self.caller)
