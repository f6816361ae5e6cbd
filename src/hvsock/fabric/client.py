"""One request to the broker and its answer.

Nothing here keeps a connection to the broker: each request opens one, so that a broker may be killed
and started again between any two of them.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hvsock import errors, transport
from hvsock.addresses import (
    HV_GUID_WILDCARD,
    SERVICE_WILDCARD,
    Address,
    ServiceId,
    VmId,
    parse_service_id,
    parse_vm_id,
)
from hvsock.config import files
from hvsock.errors import HvsockError, NoFabricError, ProtocolError
from hvsock.transport import Transport

from . import messages, passing, paths, vsocklink
from .messages import Flag, Op, Reply, Request

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

REPLY_SECONDS: Final = 30.0
"""How long a request waits for the broker's answer; answers take milliseconds, so a broker is stuck by then."""
RETRY_SECONDS: Final = 0.005
"""Pause of a request that finds the broker's queue full."""
MINIMAL_BUFFER: Final = 0
"""SO_SNDBUF that the kernel raises to its minimum (4,608 bytes on 64-bit Linux)."""

_SOCKET_NAMES: Final[dict[int, str]] = {
    socket.SOCK_STREAM: paths.STREAM_SOCKET,
    socket.SOCK_SEQPACKET: paths.SEQPACKET_SOCKET,
}


_ERRORS: Final[dict[str, type[HvsockError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, HvsockError)
}


class Binding(NamedTuple):
    """A bound address.

    Attributes:
        descriptor: the bound socket; the caller owns it.
        listener_id: 16 bytes that name it to the broker.
        address: the bound address, with a fresh service id where none was given.
    """

    descriptor: int
    listener_id: bytes
    address: Address


def start_connect(
    connect: Callable[[str], None], send: Callable[[bytes], int], folder: str, request: Request
) -> None:
    """Send `request` (a connect) by a non-blocking AF_UNIX socket with a minimal send buffer.

    The connect is pending when this returns.

    Args:
        connect: connects that socket to a path.
        send: sends bytes on it.
        folder: the partition's folder.
        request: the connect.

    Raises:
        OSError: ENETUNREACH: no broker answers in `folder`; ENOBUFS: the broker's queue is full.
    """
    try:
        paths.at(folder, _SOCKET_NAMES[request.type], connect)
        sent = send(request.pack())
    except OSError as error:
        raise connect_error(error, folder) from None
    if sent != messages.REQUEST_BYTES:
        raise OSError(errno.ENOBUFS, "the kernel took part of a connect request")


def connect_error(error: OSError, folder: str) -> OSError:
    """`error` of a connect to a control socket, as the error of a Hyper-V socket."""
    if isinstance(error, BlockingIOError):
        return OSError(errno.ENOBUFS, "the broker's queue of new connections is full; try again")
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.EPIPE, errno.ECONNRESET):
        return OSError(errno.ENETUNREACH, f"no broker answers in {folder}; {paths.how_to_start(folder)}")
    if error.errno == errno.EACCES:
        return PermissionError(errno.EACCES, f"this user may not enter {folder}")
    return error


def bind(folder: str, type_: int, address: Address, flags: Flag = Flag.NONE) -> Binding:
    """Have the broker of the partition in `folder` make a socket that is bound to `address`.

    Raises:
        OSError: EACCES, EADDRINUSE, EADDRNOTAVAIL, ENOBUFS, ENETUNREACH, as tables in docs/reference.md say.
    """
    reply, descriptors = _ask(folder, Request(Op.BIND, address, type_, flags))
    try:
        if reply.errno:
            raise OSError(reply.errno, reply.text)
        listener_id, service_id = messages.unpack_binding(reply.body)
        if not descriptors:
            # the kernel leaves a descriptor out where this process may have no more
            raise OSError(errno.EMFILE, "the bound socket did not come along: too many open files")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return Binding(descriptors[0], listener_id, Address(address.vm_id, service_id))


def bind_device(folder: str) -> Binding:
    """Have the broker make the listener by which a device serves the VM whose folder this is.

    What connects to the VM comes to it, unless another listener in that partition takes it: couriers of
    the form :class:`.messages.DeviceCourier`, and notices (:func:`.messages.parse_device_message`). It listens
    like any other, and outlives the broker. In the host it takes what is for the host's own parent.

    Raises:
        OSError: EINVAL: the partition is a container; EADDRINUSE: a device serves it already; EACCES: it is the
            host, and this user does not administer the fabric; ENOBUFS, ENETUNREACH.
    """
    return bind(folder, socket.SOCK_STREAM, Address(HV_GUID_WILDCARD, SERVICE_WILDCARD), Flag.DEVICE)


def listen(folder: str, listener_id: bytes, backlog: int) -> None:
    """Tell the broker that connections may now be handed to a bound socket.

    Raises:
        OSError: EINVAL: the service is disabled, or the binding is gone.
    """
    reply, _ = _ask(folder, Request(Op.LISTEN, number=backlog, token=listener_id))
    if reply.errno:
        raise OSError(reply.errno, reply.text)


def call(folder: str | None, method: str, *, within: float | None = None, **parameters: Any) -> Any:
    """Call a method of the broker (see :mod:`hvsock.fabric.broker.calls`) and return its result.

    Args:
        folder: the partition's folder, which says who asks; None to ask the host of this guest, whatever the
            transport of the process.
        method: the method's name.
        within: seconds for all of it; None for :data:`REPLY_SECONDS`. No method has a parameter of that name.
        parameters: what JSON takes, at most :data:`messages.MAX_CALL_BYTES` in all.

    Raises:
        UsageError: the parameters are longer than that.
        NoFabricError: no broker answers.
        HvsockError: what the broker refused, by the class of :mod:`hvsock.errors`.
    """
    request = Request(Op.CALL, call={"method": method, **parameters})
    try:
        request.pack()
    except ValueError as error:
        raise errors.UsageError(str(error)) from None
    try:
        reply, descriptors = _ask(folder, request, within)
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.ETIMEDOUT, errno.ENOBUFS):
            raise NoFabricError(error.strerror or str(error)) from None
        raise
    for descriptor in descriptors:
        os.close(descriptor)
    if reply.errno == errno.EPROTO:
        raise ProtocolError(reply.text)
    try:
        value = json.loads(reply.body)
        if not reply.errno:
            return value
        raise _ERRORS.get(value["error"], HvsockError)(value["text"])
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, HvsockError):
            raise
        raise ProtocolError(f"the broker's reply to {method!r} is none") from None


class _Way(NamedTuple):
    """How a request reaches a broker.

    Attributes:
        family: of the socket.
        broker: who answers, in words.
        connect: connects such a socket.
        error: the error of such a connection, as that of a Hyper-V socket.
    """

    family: int
    broker: str
    connect: Callable[[socket.socket], None]
    error: Callable[[OSError], OSError]


def _way(folder: str | None) -> _Way:
    """The way to the broker of the partition in `folder`, or out of a guest, which has no folders.

    A host of kernel vsock has nobody above it.
    """
    if folder is None or (transport.chosen() is Transport.VSOCK and files.settings().guests is None):
        return _Way(socket.AF_VSOCK, "the host", vsocklink.connect, vsocklink.connect_error)
    return _Way(
        socket.AF_UNIX,
        f"the broker in {folder}",
        lambda link: paths.at(folder, paths.STREAM_SOCKET, link.connect),
        lambda error: connect_error(error, folder),
    )


class _Limit:
    """The time until which all steps of one request have to be done.

    Args:
        seconds: until then.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether that time has come."""
        return time.monotonic() >= self._deadline

    @property
    def left(self) -> float:
        """Seconds, more than zero.

        Raises:
            TimeoutError: none are left.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _ask(folder: str | None, request: Request, within: float | None = None) -> tuple[Reply, list[int]]:
    """Send one request and read its reply, with the descriptors that came along (close-on-exec, the caller's)."""
    way = _way(folder)
    limit = _Limit(REPLY_SECONDS if within is None else within)
    try:
        link = socket.socket(way.family, socket.SOCK_STREAM)
    except OSError as error:
        raise way.error(error) from None
    with link:
        link.settimeout(limit.seconds)
        try:
            while True:
                try:
                    way.connect(link)
                    break
                except BlockingIOError:  # the broker's queue is full
                    if limit.is_over:
                        raise
                time.sleep(RETRY_SECONDS)
            link.settimeout(limit.left)
            link.sendall(request.pack())
            link.settimeout(limit.left)
            head, descriptors, _ = passing.receive(link, messages.REPLY_HEADER_BYTES, 1)
        except TimeoutError:
            raise _no_answer(way, limit) from None
        except OSError as error:
            raise way.error(error) from None
        try:
            if not head:
                raise OSError(errno.ENETUNREACH, f"{way.broker} ended before it answered")
            head += _receive_exactly(link, messages.REPLY_HEADER_BYTES - len(head), limit)
            code, length = messages.parse_reply_header(head)
            body = _receive_exactly(link, length, limit)
        except BaseException as error:
            for descriptor in descriptors:
                os.close(descriptor)
            if isinstance(error, TimeoutError):
                raise _no_answer(way, limit) from None
            raise
        return Reply(code, body), descriptors


def _no_answer(way: _Way, limit: _Limit) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"{way.broker} did not answer in {limit.seconds:g} s")


def _receive_exactly(link: socket.socket, length: int, limit: _Limit) -> bytes:
    body = bytearray(length)
    view = memoryview(body)
    while view:
        link.settimeout(limit.left)
        received = link.recv_into(view)
        if not received:
            raise ProtocolError(f"the broker's reply ended {len(view)} bytes early")
        view = view[received:]
    return bytes(body)


def resolve(address: tuple[str, str], folder: str | None = None) -> Address:
    """The address that somebody wrote, with names looked up by the broker.

    Args:
        address: VM and SERVICE. VM is a GUID, a word (parent, children, loopback, any, silohost) or a partition's
            name; SERVICE is a GUID, a port or a service's name.
        folder: the partition's folder that is asked; by default that of this process.

    Raises:
        NotFoundError: no partition or service has that name.
        NoFabricError: there is a name to look up and no broker answers.
    """
    vm, service = address
    vm_id, service_id = parse_vm_id(vm), parse_service_id(service)
    if vm_id is not None and service_id is not None:
        return Address(vm_id, service_id)
    found = call(
        folder or paths.partition_folder(),
        "resolve",
        vm=None if vm_id is not None else vm,
        service=None if service_id is not None else service,
    )
    return Address(
        VmId(found["vm_id"]) if vm_id is None else vm_id,
        ServiceId(found["service_id"]) if service_id is None else service_id,
    )
