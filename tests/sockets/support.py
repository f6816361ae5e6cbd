"""What the tests of the sockets share: a small world, sockets in every state, and a broker played by hand."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

import pytest

import hvsock
from hvsock import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, HV_GUID_PARENT, ServiceId
from hvsock.fabric import messages
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.messages import Courier, Reply, Request
from hvsock.sockets.socket import socket as hv_socket

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

T = TypeVar("T")

WAIT_SECONDS = 20.0
"""More than anything here takes on a busy machine."""
QUIET_SECONDS = 0.03
"""How long nothing has to happen where nothing may."""
ROOT = Path(__file__).parents[2]

Pair = tuple[hv_socket, hv_socket]


@dataclass(frozen=True, slots=True)
class World:
    """A fabric with a host, two VMs in one group, a third one in none, and a container in each kind of place."""

    fabric: EmbeddedFabric
    host: PartitionHandle
    vm: PartitionHandle
    member: PartitionHandle
    stranger: PartitionHandle
    container: PartitionHandle
    in_vm: PartitionHandle

    @classmethod
    def make(cls, fabric: EmbeddedFabric) -> World:
        """Make the partitions."""
        vm = fabric.create_partition("vm", group="cluster")
        return cls(
            fabric,
            fabric.host,
            vm,
            fabric.create_partition("member", group="cluster"),
            fabric.create_partition("stranger"),
            fabric.create_partition("container", "container"),
            fabric.create_partition("in-vm", "container", parent="vm"),
        )

    def service(self) -> ServiceId:
        """A fresh service that is registered."""
        service_id = ServiceId.new()
        self.fabric.register(f"service {service_id}", service_id)
        return service_id

    def listener(
        self,
        partition: PartitionHandle,
        vm_id: str,
        service_id: str,
        *,
        backlog: int = 128,
        type: int = socket.SOCK_STREAM,
    ) -> hv_socket:
        """A listening socket."""
        return hvsock.create_server((vm_id, service_id), backlog=backlog, type=type, partition=partition.folder)

    def loopback(self, *, backlog: int = 128, type: int = socket.SOCK_STREAM) -> tuple[hv_socket, ServiceId]:
        """A listener of the host for the host itself, with its service."""
        service_id = ServiceId.new()
        return self.listener(self.host, HV_GUID_LOOPBACK, service_id, backlog=backlog, type=type), service_id

    def fresh(
        self, partition: PartitionHandle | None = None, *, type: int = socket.SOCK_STREAM, blocking: bool = True
    ) -> hv_socket:
        """A socket of `partition`, the host by default, that waits no longer than WAIT_SECONDS."""
        sock = hv_socket(type=type, partition=(partition or self.host).folder)
        sock.settimeout(WAIT_SECONDS if blocking else 0)
        return sock

    def pair(self, type: int = socket.SOCK_STREAM) -> Pair:
        """A guest's connection to the host: (connector, accepted)."""
        service_id = self.service()
        with self.listener(self.host, HV_GUID_CHILDREN, service_id, type=type) as listener:
            connector = self.fresh(self.vm, type=type)
            connector.connect((HV_GUID_PARENT, service_id))
            accepted, _ = listener.accept()
        accepted.settimeout(WAIT_SECONDS)
        return connector, accepted


@contextlib.contextmanager
def pending(world: World, *, type: int = socket.SOCK_STREAM) -> Iterator[tuple[hv_socket, hv_socket, hv_socket]]:
    """A connect that stays pending until room is made: (the socket, a listener that is full, who filled it).

    One accept makes room: the connection of who filled it comes first.
    """
    listener, service_id = world.loopback(backlog=0, type=type)
    with listener, world.fresh(type=type) as first, world.fresh(type=type, blocking=False) as sock:
        first.connect((HV_GUID_LOOPBACK, service_id))
        try:
            sock.connect((HV_GUID_LOOPBACK, service_id))
        except BlockingIOError:
            yield sock, listener, first


class FakeBroker:
    """A partition's folder whose broker is the test, one step at a time.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path, *, backlog: int = 16) -> None:
        self.folder = str(folder)
        self.control = {}
        for name, type_ in (("stream", socket.SOCK_STREAM), ("seqpacket", socket.SOCK_SEQPACKET)):
            control = socket.socket(socket.AF_UNIX, type_)
            control.bind(str(folder / name))
            control.listen(backlog)
            control.settimeout(WAIT_SECONDS)
            self.control[int(type_)] = control
        self.listening: list[socket.socket] = []

    def close(self) -> None:
        """Close the control sockets."""
        for sock in (*self.control.values(), *self.listening):
            sock.close()

    def connector(self, *, type: int = socket.SOCK_STREAM, blocking: bool = False) -> hv_socket:
        """A socket of this partition."""
        sock = hv_socket(type=type, partition=self.folder)
        sock.settimeout(WAIT_SECONDS if blocking else 0)
        return sock

    def take(self, type: int = socket.SOCK_STREAM) -> tuple[socket.socket, Request]:
        """The next client, with its request still unread."""
        connection, _ = self.control[type].accept()
        connection.settimeout(WAIT_SECONDS)
        request = Request.unpack(connection.recv(messages.REQUEST_BYTES, socket.MSG_PEEK | socket.MSG_WAITALL))
        return connection, request

    def establish(self, type: int = socket.SOCK_STREAM) -> socket.socket:
        """Let the next connect succeed; the result is its other end."""
        connection, _ = self.take(type)
        connection.recv(messages.REQUEST_BYTES)
        return connection

    def refuse(self, code: int, text: str, type: int = socket.SOCK_STREAM) -> None:
        """Refuse the next connect."""
        connection, _ = self.take(type)
        with connection:
            connection.sendall(Reply.refuse(code, text).pack())

    def listener(self, *, type: int = socket.SOCK_STREAM, backlog: int = 16) -> hv_socket:
        """A listening socket as a broker makes it, by way of its descriptor."""
        sock = socket.socket(socket.AF_UNIX, type)
        sock.bind(f"{self.folder}/{os.urandom(16).hex()}")
        sock.listen(backlog)
        made = hv_socket(fileno=sock.detach(), partition=self.folder)
        made.settimeout(WAIT_SECONDS)
        return made


class CourierByHand:
    """A courier to `listener`, one step at a time, and the connection that it brings."""

    def __init__(self, listener: hv_socket) -> None:
        self.token = os.urandom(16)
        self.near, self.far = socket.socketpair(socket.AF_UNIX, listener.type)
        self.near.settimeout(WAIT_SECONDS)
        self.link = socket.socket(socket.AF_UNIX, listener.type)
        self.link.connect(socket.socket.getsockname(listener))
        address = hvsock.Address(HV_GUID_PARENT, ServiceId.new())
        self.courier = Courier(address, address, self.token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.near, self.far, self.link):
            sock.close()

    def put_request(self) -> None:
        """Leave the connect request unread on the connection, as it is until the broker drains it."""
        self.near.sendall(Request(messages.Op.CONNECT, self.courier.own, self.near.type, token=self.token).pack())

    def send(self) -> None:
        """Send descriptor and addresses."""
        socket.send_fds(self.link, [self.courier.pack()], [self.far.fileno()])
        self.far.close()

    def done(self) -> None:
        """Say that the connection is the accepter's alone."""
        self.link.sendall(messages.DONE)


class Job(Generic[T]):
    """A call in a thread; :meth:`result` waits for it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, name="job of a test", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._call())
        except BaseException as error:
            self._error = error

    def result(self, seconds: float = WAIT_SECONDS) -> T:
        """What the call returned, or raises what it raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the call has not ended"
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def is_blocked(self) -> bool:
        """Whether it is still at it after the quiet time."""
        self._thread.join(QUIET_SECONDS)
        return self._thread.is_alive()


@contextlib.contextmanager
def fails(*codes: int) -> Iterator[None]:
    """Requires an OSError with one of these numbers, of the class that stands for it."""
    with pytest.raises(OSError, check=lambda error: error.errno in codes) as caught:
        yield
    assert type(caught.value) is type(OSError(caught.value.errno, ""))


def writable(sock: socket.socket, seconds: float = WAIT_SECONDS) -> bool:
    """Whether select says so before `seconds` are over."""
    return bool(select.select([], [sock], [], seconds)[1])


def readable(sock: socket.socket, seconds: float = WAIT_SECONDS) -> bool:
    """Whether select says so before `seconds` are over."""
    return bool(select.select([sock], [], [], seconds)[0])


def so_error(sock: socket.socket) -> int:
    """SO_ERROR, which is zero after it was read."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def receive_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    parts = []
    while part := sock.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def run_python(code: str, *arguments: str, **environ: str) -> str:
    """What a program printed that had to end well, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS * 2,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
