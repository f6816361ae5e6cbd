"""The guest agent: one process that serves the guest half of every integration service that the host has enabled.

It asks the broker once a second which services are enabled for its partition, begins to serve those that came, and
ends those that went, with their connections. So what the host says counts within a second, also between two
local processes, where nobody but the two has the connection. A broker that does not answer changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Any, Final

from hvsock._version import __version__
from hvsock.addresses import HV_GUID_PARENT, ServiceId
from hvsock.constants import GUEST_AGENT
from hvsock.errors import HvsockError, NotReadyError, UsageError
from hvsock.fabric import client, paths

from .agenthood import Surroundings
from .caller import Caller
from .policy import Policy
from .predefined import GUEST_HALVES
from .service import Service, call, codec_of
from .serving import RawService, Serving, open_serving
from .session import Negotiation
from .types import Limit, UInt32

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""Pause between two looks at what the host has enabled; a look takes a millisecond."""
MAX_STATUS_SERVICES: Final = 256
"""Most services that an agent reports: there are ten, and somebody's own."""


class Running(StrEnum):
    """What an agent says of a service."""

    RUNNING = "running"
    """It is served."""
    OFF_BY_HOST = "off by host"
    """The host has disabled it for this partition."""
    OFF_BY_GUEST = "off by guest"
    """The guest's own configuration has it off."""
    FAILED = "failed"
    """It cannot be served; the agent tries again."""


def _why(error: Exception) -> str:
    """What prevents a service, and what to do."""
    if isinstance(error, OSError) and error.strerror:
        more = "; another program serves it, as a second agent does: end one of them"
        return error.strerror + (more if error.errno == errno.EADDRINUSE else "")
    return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Question:
    """Asks an agent for its report."""


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """What an agent says of one service.

    Attributes:
        name: its friendly name.
        id: its ServiceId.
        state: one of :class:`Running`.
        reason: why it failed; empty else.
        connections: how many it has.
    """

    name: str
    id: str
    state: str
    reason: str = ""
    connections: UInt32 = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What an agent says of itself.

    Attributes:
        version: hvsock's.
        pid: its process, as the guest counts.
        own_machine: whether the machine is the partition's own.
        services: what it could serve, by name.
    """

    version: str
    pid: UInt32
    own_machine: bool
    services: Annotated[list[ServiceReport], Limit(MAX_STATUS_SERVICES)] = field(default_factory=list)


class GuestAgent(Service, name=GUEST_AGENT.name, port=GUEST_AGENT.port, short="agent"):
    """The agent as a service of its own.

    Args:
        agent: the agent.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    @call(idempotent=True)
    async def report(self, caller: Caller, question: Question) -> Report:
        """What it serves."""
        return self._agent.report()

    async def ready(self) -> None:
        """Once everything that is enabled was begun."""
        await self._agent.wait_ready()


class Agent:
    """The services of one partition.

    Args:
        surroundings: what they may rely on.
        partition: the partition's folder; None for that of the process.
        off: names of services that this side has off.
        halves: the guest halves, as "module:class" by name.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        partition: str | None = None,
        *,
        off: Collection[str] = (),
        halves: Mapping[str, str] = GUEST_HALVES,
    ) -> None:
        self._surroundings = surroundings
        self._partition = partition
        self._off = frozenset(off)
        self._halves = halves
        self._ids: dict[str, ServiceId] = {}
        self._serving: dict[str, Serving] = {}
        self._served_without: dict[str, frozenset[str]] = {}
        self._states = dict.fromkeys(halves, (Running.OFF_BY_HOST, ""))
        self._ready = asyncio.Event()
        if unknown := self._off - set(halves):
            raise UsageError(f"there is no service {min(unknown)!r}; there are: {', '.join(sorted(halves))}")

    async def run(self, folder: str) -> None:
        """Serve until cancelled.

        Args:
            folder: the partition's folder, whose broker is asked.
        """
        try:
            while True:
                with contextlib.suppress(HvsockError, OSError):  # as long as no broker answers, all stays as it is
                    await self._follow(await asyncio.to_thread(client.call, folder, "services"))
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for serving in self._serving.values():
                await serving.close()

    async def wait_ready(self) -> None:
        """Wait until everything that is enabled was begun."""
        await self._ready.wait()

    def report(self) -> Report:
        """What is served."""
        services = [
            ServiceReport(
                name,
                self._ids.get(name, ""),
                state,
                reason,
                self._serving[name].connections if name in self._serving else 0,
            )
            for name, (state, reason) in sorted(self._states.items())
        ]
        return Report(__version__, os.getpid(), self._surroundings.own_machine, services)

    async def _follow(self, enabled: Iterable[dict[str, Any]]) -> None:
        """Serve what is enabled, and nothing else."""
        known = {one["name"]: one for one in enabled if one["name"] in self._halves}
        self._ids = {name: ServiceId(one["id"]) for name, one in known.items()}
        for name in self._halves:
            denied = frozenset(known[name].get("denied", ())) if name in known else frozenset()
            serving = self._serving.get(name)
            wanted = name in self._ids and name not in self._off
            # its connections go by the policy that they began with
            is_right = wanted and self._served_without.get(name) == denied
            if serving is not None and not (is_right and serving.is_serving):
                await self._serving.pop(name).close()
                log.info("%s is not served any more", name)
            if not wanted:
                self._states[name] = (Running.OFF_BY_GUEST if name in self._off else Running.OFF_BY_HOST, "")
            elif name not in self._serving:
                await self._begin(name, denied)
        self._ready.set()

    async def _begin(self, name: str, denied: frozenset[str]) -> None:
        before = self._states[name]
        surroundings = replace(self._surroundings, policy=self._surroundings.policy.without(denied))
        try:
            service = await asyncio.to_thread(self._made, name, surroundings)
            self._serving[name] = await open_serving(service, HV_GUID_PARENT, self._partition, surroundings.policy)
            self._served_without[name] = denied
        except Exception as error:  # one service that is broken, in whatever way, leaves the others alone
            self._states[name] = (Running.FAILED, _why(error))
            if before != self._states[name]:
                log.warning("%s cannot be served: %s", name, _why(error))
            return
        self._states[name] = (Running.RUNNING, "")
        log.info("%s is served", name)

    def _made(self, name: str, surroundings: Surroundings) -> Service | RawService:
        kind = _half(self._halves[name])
        made: Service | RawService = kind(self if kind is GuestAgent else surroundings)
        return made


def _half(path: str) -> Any:
    """A guest half's class, of "module:class"."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def load(off: Collection[str] = ()) -> None:
    """Load all guest halves but some, and what their first questions need, for an agent in a fork of this process.

    What cannot be loaded is left to the agent, which tells.

    Args:
        off: names of services that are not served.
    """
    codec_of(Negotiation)
    for name, path in GUEST_HALVES.items():
        if name not in off:
            with contextlib.suppress(Exception):
                kind = _half(path)
                if issubclass(kind, Service):
                    codec_of(kind)


def check_patterns(policy: Policy, off: Collection[str] = ()) -> None:
    """Refuse a pattern that no operation here matches: who mistypes a name would deny nothing.

    Of services that are off, or cannot be loaded, all is taken.

    Args:
        policy: the policy.
        off: names of services that are not served.

    Raises:
        UsageError: there is such a pattern.
    """
    found = operations(off)
    known = frozenset().union(*found.values())
    services = {one.partition(".")[0] for one in known}
    for pattern in sorted(policy.deny.union(policy.allow or ())):
        is_ours = len(found) == len(GUEST_HALVES) or pattern.partition(".")[0] in services
        if is_ours and not covered(pattern, known):
            raise UsageError(f"there is no operation {pattern!r}; there are: {', '.join(sorted(known))}")


def operations(off: Collection[str] = ()) -> dict[str, frozenset[str]]:
    """The operations that policies name, by the service's friendly name; without what cannot be loaded.

    Args:
        off: names of services that are left out.
    """
    found = {}
    for name, path in GUEST_HALVES.items():
        if name not in off:
            with contextlib.suppress(Exception):  # the agent tells
                found[name] = _policy_names(_half(path))
    return found


def covered(pattern: str, among: Iterable[str]) -> frozenset[str]:
    """The operations that a pattern means.

    Raises:
        UsageError: it is no pattern.
    """
    policy = Policy.of([pattern])
    return frozenset(one for one in among if policy.allows(one))


def _policy_names(kind: type[Service | RawService]) -> frozenset[str]:
    if issubclass(kind, Service):
        return frozenset(one.policy_name for one in kind.OPERATIONS.values())
    return kind.POLICY_NAMES


@contextlib.asynccontextmanager
async def running(agent: Agent, folder: str) -> AsyncIterator[Agent]:
    """An agent that runs for as long as the context lasts, in this process; it is ready within.

    Args:
        agent: the agent.
        folder: the partition's folder.

    Raises:
        NotReadyError: no broker answered.
    """
    task = asyncio.create_task(agent.run(folder))
    try:
        try:
            async with asyncio.timeout(client.REPLY_SECONDS):
                await agent.wait_ready()
        except TimeoutError:
            raise NotReadyError(f"no broker answers in {folder}; {paths.how_to_start(folder)}") from None
        yield agent
    finally:
        task.cancel()
        await asyncio.wait([task])
