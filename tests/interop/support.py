"""What these tests share: a guest that dials its host, data whose digest is known, event loops by name."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trustme

import hvsock
from hvsock import HV_GUID_CHILDREN, ServiceId

assert sys.platform == "linux"

if TYPE_CHECKING:
    from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
    from hvsock.sockets.socket import socket as hv_socket
    from tests.sockets.support import World

T = TypeVar("T")

WAIT_SECONDS: Final = 20.0
"""More than anything here takes on a busy machine."""
MIB: Final = 1 << 20
CHUNK_BYTES: Final = 64 * 1024
LOOPS: Final = ["asyncio", "uvloop"]
PORT: Final = 2761
"""The service, as libraries for TCP write it."""


@dataclass(frozen=True, slots=True)
class Wire:
    """A host that serves, and a guest that connects to it.

    Attributes:
        fabric: what they are in.
        guest: the connecting partition; the serving one is the host.
        service: what the host serves.
    """

    fabric: EmbeddedFabric
    guest: PartitionHandle
    service: ServiceId

    @classmethod
    def make(cls, fabric: EmbeddedFabric) -> Wire:
        """Register the service and make the guest."""
        service = fabric.register("HV Socket Demo", ServiceId.from_port(PORT))
        return cls(fabric, fabric.create_partition("web01"), service.id)

    @property
    def serving(self) -> tuple[str, str]:
        """What the host binds to."""
        return "children", self.service

    @property
    def target(self) -> tuple[str, str]:
        """What the guest connects to."""
        return "parent", self.service

    def listener(self, backlog: int = 128) -> hv_socket:
        """The host's listener, with a time-out."""
        made: hv_socket = hvsock.create_server(self.serving, backlog=backlog, partition=self.fabric.host.folder)
        made.settimeout(WAIT_SECONDS)
        return made

    def dial(self) -> hv_socket:
        """A connection from the guest, with a time-out; a listener has to be there."""
        made: hv_socket = hvsock.create_connection(self.target, WAIT_SECONDS, partition=self.guest.folder)
        return made

    def pair(self) -> tuple[hv_socket, hv_socket]:
        """(The guest's end, with a time-out; the host's end, which blocks for good) of one connection."""
        with self.listener() as listener:
            near = self.dial()
            far, _ = listener.accept()
        return near, far


def payload(size: int, seed: int = 0) -> bytes:
    """The same `size` random bytes for the same `seed`."""
    return random.Random(seed).randbytes(size)


def digest(data: bytes | bytearray) -> str:
    """SHA-256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


LARGE: Final = payload(4 * MIB)
"""More than all the buffers on the way hold."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """What each end needs to speak TLS.

    Attributes:
        name: what the server's certificate says.
        server: with that certificate.
        client: trusts who issued it.
        stranger: a client that trusts somebody else.
    """

    name: str
    server: ssl.SSLContext
    client: ssl.SSLContext
    stranger: ssl.SSLContext

    @classmethod
    def issue(cls, name: str = "host.hvsock.test") -> Certificates:
        """Certificates of a fresh authority."""
        authority = trustme.CA()
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert(name).configure_cert(server)
        clients = []
        for trusted in (authority, trustme.CA()):
            client = ssl.create_default_context()
            trusted.configure_trust(client)
            clients.append(client)
        return cls(name, server, *clients)


def listen(world: World) -> tuple[hv_socket, ServiceId]:
    """A listener of the host for its guests, with its service."""
    service_id = world.service()
    return world.listener(world.host, HV_GUID_CHILDREN, service_id), service_id


def receive_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    parts = []
    while part := sock.recv(CHUNK_BYTES):
        parts.append(part)
    return b"".join(parts)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """The next `size` bytes."""
    received = bytearray()
    while len(received) < size:
        part = sock.recv(min(CHUNK_BYTES, size - len(received)))
        assert part, f"the stream ended after {len(received)} of {size} bytes"
        received += part
    return bytes(received)


@contextlib.contextmanager
def in_background(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Run `work` in a thread beside the body; at the end it has to have succeeded.

    Everything that `work` waits for needs a time-out of its own: a thread cannot be ended.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        yield future
        future.result(WAIT_SECONDS)


def run_on(loop: str, main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a fresh event loop of that kind; it has WAIT_SECONDS."""

    async def bounded() -> T:
        async with asyncio.timeout(WAIT_SECONDS):
            return await main

    with asyncio.Runner(loop_factory=_factory(loop)) as runner:
        return runner.run(bounded())


def _factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop
