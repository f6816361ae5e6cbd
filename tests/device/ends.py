"""The host's programs, and connections between them and a guest."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator

if sys.platform != "linux":
    raise ImportError("the device needs Linux")

import hvsock
from hvsock import HV_GUID_CHILDREN, ServiceId
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry import ServiceEntry
from hvsock.virtio.packet import STREAM
from tests.device.conftest import PORT
from tests.device.guest import PATIENCE_SECONDS, Guest, GuestSocket

Types = tuple[int, int]
"""The host's socket type, and the guest's."""


def listen(
    fabric: EmbeddedFabric, service: ServiceId, type_: int = socket.SOCK_STREAM, **options: int
) -> hvsock.socket:
    """A program of the host that listens to its VMs."""
    listener = hvsock.socket(type=type_, partition=fabric.host.folder)
    try:
        for name, value in options.items():
            listener.setsockopt(hvsock.HV_PROTOCOL_RAW, getattr(hvsock, name), value)
        listener.bind((HV_GUID_CHILDREN, service))
        listener.listen()
        listener.settimeout(PATIENCE_SECONDS)
    except BaseException:
        listener.close()
        raise
    return listener


def accept(listener: hvsock.socket) -> hvsock.socket:
    """The next connection, with a time-out."""
    accepted, _ = listener.accept()
    accepted.settimeout(PATIENCE_SECONDS)
    return accepted


def connect(
    fabric: EmbeddedFabric,
    vm: PartitionHandle,
    service: ServiceId,
    type_: int = socket.SOCK_STREAM,
    **options: int,
) -> hvsock.socket:
    """A program of the host that connects to a VM."""
    sock = hvsock.socket(type=type_, partition=fabric.host.folder)
    try:
        for name, value in options.items():
            sock.setsockopt(hvsock.HV_PROTOCOL_RAW, getattr(hvsock, name), value)
        sock.connect((vm.id, service))
        sock.settimeout(PATIENCE_SECONDS)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def from_guest(
    fabric: EmbeddedFabric, guest: Guest, service: ServiceEntry, types: Types = (socket.SOCK_STREAM, STREAM)
) -> Iterator[tuple[hvsock.socket, GuestSocket]]:
    """A connection that the guest began."""
    with listen(fabric, service.id, types[0]) as listener:
        far = guest.connect(PORT, type_=types[1])
        near = accept(listener)
    with near:
        yield near, far


@contextlib.contextmanager
def from_host(
    fabric: EmbeddedFabric, vm: PartitionHandle, guest: Guest, service: ServiceEntry,
    types: Types = (socket.SOCK_STREAM, STREAM),
) -> Iterator[tuple[hvsock.socket, GuestSocket]]:  # fmt: skip
    """A connection that the host began."""
    guest.listen(PORT, types[1])
    with connect(fabric, vm, service.id, types[0]) as near:
        yield near, guest.accept(PORT, types[1])


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes of a stream."""
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, f"the stream ended after {len(data)} of {count} bytes"
        data += piece
    return bytes(data)
