"""What checks stand on: the sockets, names and registry of one transport on this machine."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self

from hvsock.addresses import HV_GUID_LOOPBACK, ServiceId, VmId
from hvsock.registry import ServiceEntry
from hvsock.testing import Features
from hvsock.transport import Transport

STEP_SECONDS: Final = 5.0
"""Longest that one step of a check may take, such as an accept; more than a busy machine needs."""


class AnyRegistry(Protocol):
    """What checks need of a registry of services, be it the fabric's or Windows'."""

    def entries(self) -> list[ServiceEntry]: ...
    def get(self, service_id: ServiceId) -> ServiceEntry | None: ...
    def register(self, name: str, id: str | None = None) -> ServiceEntry: ...
    def unregister(self, key: str) -> ServiceEntry: ...


@dataclass(frozen=True, slots=True)
class Way:
    """How a connection comes about.

    Attributes:
        calling: makes a socket of the partition that connects.
        serving: makes one of the partition that listens.
        bind: what the listener is bound to.
        to: what is connected to.
        seconds: longest that one step may take.
    """

    calling: Callable[[], Any]
    serving: Callable[[], Any]
    bind: VmId = HV_GUID_LOOPBACK
    to: VmId = HV_GUID_LOOPBACK
    seconds: float = STEP_SECONDS


@dataclass(frozen=True, slots=True)
class Ground:
    """A transport on this machine; a context manager, which closes it.

    Attributes:
        transport: which.
        make: makes a socket of this partition.
        aio: has `open_connection` and `start_server`; they take an address, and `partition`.
        fresh_service: gives a service that its listeners may have.
        registry: the services of this machine; None where the transport has none here.
        vms: the lists of its VMs, by who tells them.
        find_vm: looks the id of a VM up by its name.
        ways: between two partitions of this machine, by name; empty where this process has one alone.
        outwards: a way whose connecting socket is of this transport; None for a connection to itself.
        inwards: a way whose listening socket is; None likewise.
        lacks: why some checks cannot be made on it, by their names.
        features: what its streams have; None to look at a socket.
        partition: what `aio` takes.
        stdlib: the module socket.
        loop_factory: makes asyncio's loop; None for the default one.
        stack: what is closed in the end.
    """

    transport: Transport
    make: Callable[[], Any]
    aio: Any
    fresh_service: Callable[[], ServiceId]
    registry: AnyRegistry | None
    vms: Mapping[str, Callable[[], list[Any]]]
    find_vm: Callable[[str], VmId]
    ways: Mapping[str, Way] = field(default_factory=dict)
    outwards: Way | None = None
    inwards: Way | None = None
    lacks: Mapping[str, str] = field(default_factory=dict)
    features: Features | None = None
    partition: str | None = None
    stdlib: Any = socket
    loop_factory: Callable[[], Any] | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def calling(self) -> Way:
        """How this process connects: to itself where it can."""
        return self.outwards or Way(self.make, self.make)

    @property
    def serving(self) -> Way:
        """How this process is connected to: from itself where it can."""
        return self.inwards or Way(self.make, self.make)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()


@contextlib.contextmanager
def listening(way: Way, service: ServiceId) -> Iterator[Any]:
    """A listener, which waits no longer than a step."""
    with way.serving() as listener:
        listener.settimeout(way.seconds)
        listener.bind((way.bind, service))
        listener.listen()
        yield listener


@contextlib.contextmanager
def connected(way: Way, service: ServiceId) -> Iterator[tuple[Any, Any]]:
    """Both ends of a connection, the one that connected first."""
    with ExitStack() as stack:
        with listening(way, service) as listener:
            near = stack.enter_context(way.calling())
            near.settimeout(way.seconds)
            near.connect((way.to, service))
            far, _ = listener.accept()
            stack.enter_context(far)
            far.settimeout(way.seconds)
        yield near, far
