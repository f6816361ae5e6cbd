"""The class `hvsock.socket`: AF_HYPERV as CPython has it on Windows, over the fabric.

It is a subclass of the standard class, and its descriptor is an AF_UNIX socket that carries payload
alone, so send and recv are the standard ones at their full speed. What differs is how it gets connected:

- bind: the broker makes the bound socket, which takes the place of the own one (dup2).
- connect: the request fills the send buffer, so select, poll and epoll report nothing until the broker has
  decided. While the connect is pending, the methods that move data are guarded; once it is settled, the
  guards are gone.
- accept: what the kernel accepts is a courier that brings the connection.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import socket as _stdlib
import struct
import sys
import time
import weakref
from typing import Any, Final, NoReturn, Self

from hvsock.addresses import Address, ServiceId
from hvsock.constants import (
    AF_HYPERV,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_DEFAULT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HvsocketOption,
    ProtocolLevel,
)
from hvsock.errors import ProtocolError
from hvsock.fabric import client, messages, paths
from hvsock.fabric.messages import Flag, Op, Reply, Request
from hvsock.topology.reachability import own_view

from . import accepting
from .sockaddr import parse_sockaddr

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

MAX_SEQPACKET_BYTES: Final = 128 * 1024
"""Longest message on a SOCK_SEQPACKET socket; longer ones are EMSGSIZE."""
ANSWER_GRACE_SECONDS: Final = 2.0
"""How long a blocking connect waits past its time-out for the broker, which keeps that time-out itself."""
RETRY_SECONDS: Final = 0.005
"""Pause of a blocking connect while the broker's queue is full."""

_ULONG = struct.Struct("<I")
_FLAGS = {
    HvsocketOption.HVSOCKET_CONTAINER_PASSTHRU: Flag.PASSTHRU,
    HvsocketOption.HVSOCKET_CONNECTED_SUSPEND: Flag.CONNECTED_SUSPEND,
    HvsocketOption.HVSOCKET_HIGH_VTL: Flag.HIGH_VTL,
}
_GUARDED = (
    "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into",
    "send", "sendall", "sendmsg", "sendfile", "shutdown",
)  # fmt: skip
_TYPES = (_stdlib.SOCK_STREAM, _stdlib.SOCK_SEQPACKET)


class _Pending:
    """A connect that is not settled.

    Attributes:
        own, peer: the addresses that the socket has once it is connected.
        send_buffer: SO_SNDBUF as it was.
        deadline: when a blocking caller stops to wait for the broker, in seconds of time.monotonic.
    """

    __slots__ = ("deadline", "own", "peer", "send_buffer")

    def __init__(self, own: Address, peer: Address, send_buffer: int, deadline: float) -> None:
        self.own = own
        self.peer = peer
        self.send_buffer = send_buffer
        self.deadline = deadline


class socket(_stdlib.socket):
    """A Hyper-V socket.

    Addresses are tuples (vm_id, service_id) of GUIDs as text, in any case; results are
    :class:`hvsock.Address`. Names are looked up by :func:`hvsock.resolve`.

    Args:
        family: AF_HYPERV.
        type: SOCK_STREAM, or SOCK_SEQPACKET (messages of 1 byte to 128 KiB, which Hyper-V itself lacks).
        proto: HV_PROTOCOL_RAW.
        fileno: an AF_UNIX descriptor that becomes this socket's own, instead of a new one.
        partition: folder of the partition that this socket is in; by default that of the process
            (HVSOCK_PARTITION, else the host's).

    Raises:
        OSError: EAFNOSUPPORT, EPROTOTYPE (as WSAEPROTOTYPE on Windows), ESOCKTNOSUPPORT, EMFILE.
    """

    def __init__(
        self,
        family: int = AF_HYPERV,
        type: int = _stdlib.SOCK_STREAM,
        proto: int = HV_PROTOCOL_RAW,
        fileno: int | None = None,
        *,
        partition: str | None = None,
    ) -> None:
        if fileno is None:
            _check_arguments(family, type, proto)
            super().__init__(_stdlib.AF_UNIX, type, 0)
        else:
            super().__init__(-1, -1, -1, fileno)
            if self.family != _stdlib.AF_UNIX:
                self.detach()
                raise OSError(errno.EAFNOSUPPORT, "descriptors of Hyper-V sockets are AF_UNIX sockets")
        self._partition = partition
        self._own: Address | None = None
        self._peer: Address | None = None
        self._listener_id: bytes | None = None
        self._pending: _Pending | None = None
        self._refused = False
        self._options: dict[HvsocketOption, int] = {}
        if self.type == _stdlib.SOCK_SEQPACKET:
            self._guard_messages()

    # -- addresses

    def getsockname(self) -> Address:
        """The own address, once bound or connected.

        Raises:
            OSError: EINVAL: neither; EBADF: closed.
        """
        self._check_open()
        if self._own is None:
            raise OSError(errno.EINVAL, "the socket is neither bound nor connected")
        return self._own

    def getpeername(self) -> Address:
        """The peer's address, once connected.

        Raises:
            OSError: ENOTCONN; EBADF: closed.
        """
        self._check_open()
        if self._pending is not None:
            self._settle(None)
        if self._peer is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._peer

    # -- listeners

    def bind(self, address: Any) -> None:
        """Bind to (VmId or wildcard, ServiceId); ServiceId zero takes a fresh one.

        The descriptor keeps its number and gets another socket under it, so bind before registering it
        with epoll. SO_SNDBUF and SO_RCVBUF are kept.

        Raises:
            TypeError, ValueError: not an address.
            OSError: EADDRNOTAVAIL: no address for a listener in this partition; EACCES: the service is
                not registered, or its settings do not let this user; EADDRINUSE; EINVAL: bound already;
                ENETUNREACH: no broker.
        """
        wanted = parse_sockaddr(address, "bind")
        self._check_open()
        if self._own is not None:
            raise OSError(errno.EINVAL, "the socket is bound already")
        binding = client.bind(self._folder(), self.type, wanted, self._flags())
        try:
            self._replace(binding.descriptor)
        finally:
            os.close(binding.descriptor)
        self._own, self._listener_id = binding.address, binding.listener_id

    def listen(self, backlog: int = 128, /) -> None:
        """Take connections; up to `backlog` wait to be accepted (Linux cuts it to net.core.somaxconn).

        Raises:
            OSError: EINVAL: not bound, or the service is disabled; ENETUNREACH: no broker.
        """
        self._check_open()
        if self._listener_id is None:
            raise OSError(errno.EINVAL, "bind the socket before it listens")
        accepting.spare.keep()
        super().listen(backlog)
        client.listen(self._folder(), self._listener_id, max(0, backlog))

    def accept(self) -> tuple[socket, Address]:
        """Wait for a connection; returns it with the peer's address.

        A connection whose broker died on the way is finished here or skipped. Without a free descriptor
        none is lost: EMFILE comes before the connection is taken.

        Raises:
            OSError: as the standard accept: BlockingIOError, TimeoutError, EINVAL, EMFILE.
        """
        while True:
            accepting.spare.keep()
            courier, _ = super().accept()
            with courier:
                found = accepting.take(courier)
            if found is None:
                continue
            accepted = socket(fileno=found.descriptor, partition=self._partition)
            if _stdlib.getdefaulttimeout() is None and self.gettimeout():
                accepted.setblocking(True)
            accepted._own, accepted._peer = found.courier.own, found.courier.peer
            for option, flag in _FLAGS.items():
                if found.courier.flags & flag:
                    accepted._options[option] = 1
            return accepted, found.courier.peer

    # -- connecting

    def connect(self, address: Any) -> None:
        """Connect to (VmId, ServiceId).

        It is connected when the connection is in the listener's backlog, before accept, as with TCP.
        A non-blocking socket raises BlockingIOError (EINPROGRESS), becomes writable when it is connected,
        and tells by SO_ERROR why it is not.

        Raises:
            TypeError, ValueError: not an address.
            OSError: ECONNREFUSED, EACCES, EADDRNOTAVAIL, EHOSTUNREACH, EINVAL, EPROTOTYPE: as decided
                by the rules; ETIMEDOUT: the backlog was full for HVSOCKET_CONNECT_TIMEOUT; ENETUNREACH:
                no broker; ENOBUFS: its queue is full; EISCONN; EALREADY; TimeoutError: by settimeout.
        """
        wanted = parse_sockaddr(address, "connect")
        self._check_open()
        timeout = self.gettimeout()
        if self._pending is None:
            self._start(wanted, timeout)
        elif timeout == 0:
            if self._poll() is None:
                raise BlockingIOError(errno.EALREADY, os.strerror(errno.EALREADY))
            self._settle(None)
            return
        if timeout == 0:
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        self._settle(timeout)

    def connect_ex(self, address: Any) -> int:
        """As :meth:`connect`, but the errno is the result; 0 is success."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EAGAIN  # a time-out by settimeout has no errno
        return 0

    def _start(self, wanted: Address, timeout: float | None) -> None:
        if self._peer is not None:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        milliseconds = self._options.get(HVSOCKET_CONNECT_TIMEOUT) or HVSOCKET_CONNECT_TIMEOUT_DEFAULT
        deadline = time.monotonic() + milliseconds / 1000 + ANSWER_GRACE_SECONDS
        if self._refused:
            self._renew()
        token = os.urandom(16)
        own_id = ServiceId.from_bytes_le(token) if self._own is None else self._own.service_id
        own_vm = own_view(wanted.vm_id)
        request = Request(Op.CONNECT, wanted, self.type, self._flags(), milliseconds, token)
        send_buffer = super().getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF)
        super().setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF, client.MINIMAL_BUFFER)
        if timeout != 0:
            super().settimeout(0)
        try:
            while True:
                try:
                    client.start_connect(super().connect, super().send, self._folder(), request)
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS or timeout == 0 or time.monotonic() > deadline:
                        raise
                time.sleep(RETRY_SECONDS)
        except BaseException:
            super().setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF, send_buffer // 2)
            raise
        finally:
            if timeout != 0:
                super().settimeout(timeout)
        self._pending = _Pending(Address(own_vm, own_id), wanted, send_buffer, deadline)
        if timeout == 0:
            self._guard_pending()

    def _poll(self, seconds: float = 0.0) -> int | None:
        """The events of a pending connect that is settled, or None while it is not."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLOUT)
        for _, events in poll.poll(seconds * 1000):
            return events
        return None

    def _settle(self, timeout: float | None) -> None:
        """Wait until the pending connect is settled, `timeout` seconds at most (None: by its deadline).

        Raises:
            OSError: the refusal; TimeoutError: `timeout` is over, and the connect is still pending.
        """
        pending = self._pending
        assert pending is not None
        now = time.monotonic()
        patience = max(0.0, pending.deadline - now)
        events = self._poll(patience if timeout is None else min(timeout, patience))
        if events is None:
            if time.monotonic() < pending.deadline:
                self._guard_pending()
                raise TimeoutError("timed out")
            self._forget_pending()
            self._refused = True
            raise TimeoutError(errno.ETIMEDOUT, "the broker did not answer")
        self._complete(pending, events)

    def _complete(self, pending: _Pending, events: int) -> None:
        self._forget_pending()
        if events & select.POLLERR:  # closed with the request unread
            self._refused = True
            raise self._refusal()
        self._own, self._peer = pending.own, pending.peer

    def _refusal(self) -> OSError:
        """The error that the broker wrote before it closed."""
        lost = OSError(errno.ECONNREFUSED, "the broker ended while the connect was pending")
        try:
            data = _stdlib.socket.recv(
                self, messages.REPLY_HEADER_BYTES + messages.MAX_REFUSAL_BYTES, _stdlib.MSG_DONTWAIT
            )
        except OSError:
            return lost
        try:
            code, _ = messages.parse_reply_header(data[: messages.REPLY_HEADER_BYTES])
        except ProtocolError:
            return lost
        return OSError(code, Reply(code, data[messages.REPLY_HEADER_BYTES :]).text)

    def _pending_error(self) -> int:
        """SO_ERROR of a pending connect: 0 while it is pending and when it is connected."""
        assert self._pending is not None
        events = self._poll()
        if events is None:
            return 0
        try:
            self._complete(self._pending, events)
        except OSError as error:
            return error.errno or errno.ECONNREFUSED
        return 0

    # -- guards: methods that stand before the standard ones for a time

    def _guard_pending(self) -> None:
        me = weakref.ref(self)
        for name in _GUARDED:
            self.__dict__[name] = functools.partial(_when_settled, me, name)

    def _forget_pending(self) -> None:
        """The connect is settled, either way: give the send buffer its size back and lift the guards."""
        if self._pending is not None:
            super().setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF, self._pending.send_buffer // 2)
        self._pending = None
        for name in _GUARDED:
            self.__dict__.pop(name, None)
        if self.type == _stdlib.SOCK_SEQPACKET:
            self._guard_messages()

    def _guard_messages(self) -> None:
        me = weakref.ref(self)
        for name in ("send", "sendall", "sendmsg"):
            self.__dict__[name] = functools.partial(_send_message, me, name)

    # -- options

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        """As the standard one, and the HVSOCKET_* options at level HV_PROTOCOL_RAW (ULONG)."""
        if isinstance(level, ProtocolLevel) or isinstance(optname, HvsocketOption):
            self._check_open()
            option = _option(optname)
            default = HVSOCKET_CONNECT_TIMEOUT_DEFAULT if option == HVSOCKET_CONNECT_TIMEOUT else 0
            value = self._options.get(option, default)
            return value if buflen is None else _ULONG.pack(value)[:buflen]
        if self._pending is not None and (level, optname) == (_stdlib.SOL_SOCKET, _stdlib.SO_ERROR):
            return self._pending_error()
        return super().getsockopt(level, optname) if buflen is None else super().getsockopt(level, optname, buflen)

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """As the standard one, and the HVSOCKET_* options at level HV_PROTOCOL_RAW.

        They count for the connects and binds after. HVSOCKET_CONNECT_TIMEOUT is in milliseconds; 0 is
        the default of 2,000, and over 300,000 is EINVAL.
        """
        if isinstance(level, ProtocolLevel) or isinstance(optname, HvsocketOption):
            self._check_open()
            option, number = _option(optname), _ulong(value)
            if option == HVSOCKET_CONNECT_TIMEOUT and number > HVSOCKET_CONNECT_TIMEOUT_MAX:
                raise OSError(
                    errno.EINVAL, f"HVSOCKET_CONNECT_TIMEOUT is at most {HVSOCKET_CONNECT_TIMEOUT_MAX} ms"
                )
            self._options[option] = number
        elif optlen is None:
            super().setsockopt(level, optname, value)
        else:
            super().setsockopt(level, optname, value, optlen)

    # -- descriptors

    def detach(self) -> int:
        """Give the descriptor away; the caller owns it.

        Settle a pending connect first: this object restores the send buffer when it learns the outcome.
        """
        if self._pending is not None:
            self._pending_error()
        return super().detach()

    def dup(self) -> Self:
        """A second socket object and descriptor of the same socket, with the same addresses.

        Raises:
            OSError: EINPROGRESS: a connect is pending; EMFILE; EBADF.
        """
        if self._pending is not None:
            self._pending_error()
            if self._pending is not None:
                raise OSError(errno.EINPROGRESS, "a connect is pending; duplicate the socket when it is settled")
        descriptor = _stdlib.dup(self.fileno())
        twin = self.__class__(fileno=descriptor, partition=self._partition)
        twin.settimeout(self.gettimeout())
        twin._own, twin._peer, twin._listener_id = self._own, self._peer, self._listener_id
        twin._options = dict(self._options)
        return twin

    def _renew(self) -> None:
        """Put a fresh socket under the descriptor: after a refusal the kernel's own cannot connect again."""
        with _stdlib.socket(_stdlib.AF_UNIX, self.type) as fresh:
            self._replace(fresh.fileno())
        self._refused = False

    def _replace(self, descriptor: int) -> None:
        """Put the socket of `descriptor` under the own descriptor, with its settings."""
        sizes = {
            option: super(socket, self).getsockopt(_stdlib.SOL_SOCKET, option)
            for option in (_stdlib.SO_SNDBUF, _stdlib.SO_RCVBUF)
        }
        os.dup2(descriptor, self.fileno(), inheritable=self.get_inheritable())
        for option, size in sizes.items():
            if super().getsockopt(_stdlib.SOL_SOCKET, option) != size:
                super().setsockopt(_stdlib.SOL_SOCKET, option, size // 2)
        super().settimeout(self.gettimeout())

    # -- small things

    def _folder(self) -> str:
        return self._partition or paths.partition_folder()

    def _flags(self) -> Flag:
        flags = Flag.NONE
        for option, flag in _FLAGS.items():
            if self._options.get(option):
                flags |= flag
        return flags

    def _check_open(self) -> None:
        if self.fileno() < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _when_settled(me: weakref.ref[socket], name: str, /, *args: Any, **keywords: Any) -> Any:
    """Guard of a socket whose connect is pending: call the method once it is settled."""
    sock = me()
    assert sock is not None, "a method is called on an object that lives"
    if sock._pending is not None:
        if sock.fileno() >= 0 and sock._poll() is None and sock.gettimeout() == 0:
            raise BlockingIOError(errno.EAGAIN, "the connect is pending")
        sock._check_open()
        sock._settle(sock.gettimeout())
    return getattr(sock, name)(*args, **keywords)


def _send_message(me: weakref.ref[socket], name: str, data: Any, /, *args: Any) -> Any:
    """Guard of a SOCK_SEQPACKET socket: messages have 1 byte to 128 KiB."""
    sock = me()
    assert sock is not None, "a method is called on an object that lives"
    parts = data if name == "sendmsg" else [data]
    length = sum(memoryview(part).nbytes for part in parts)
    if length == 0:
        raise OSError(errno.EINVAL, "a message has at least one byte")
    if length > MAX_SEQPACKET_BYTES:
        raise OSError(errno.EMSGSIZE, f"a message has at most {MAX_SEQPACKET_BYTES} bytes, not {length}")
    return getattr(_stdlib.socket, name)(sock, parts if name == "sendmsg" else data, *args)


def _check_arguments(family: int, type_: int, proto: int) -> None:
    if family != AF_HYPERV:
        raise OSError(errno.EAFNOSUPPORT, "hvsock makes AF_HYPERV sockets; others are in the socket module")
    if proto != HV_PROTOCOL_RAW:
        raise OSError(errno.EPROTOTYPE, f"unsupported AF_HYPERV protocol: {proto}")
    if type_ & ~(_stdlib.SOCK_NONBLOCK | _stdlib.SOCK_CLOEXEC) not in _TYPES:
        raise OSError(errno.ESOCKTNOSUPPORT, "AF_HYPERV has SOCK_STREAM, and here SOCK_SEQPACKET too")


def _option(optname: int) -> HvsocketOption:
    try:
        return HvsocketOption(optname)
    except ValueError:
        _no_option(optname)


def _no_option(optname: int) -> NoReturn:
    raise OSError(errno.ENOPROTOOPT, f"HV_PROTOCOL_RAW has no option {optname}")


def _ulong(value: object) -> int:
    if isinstance(value, (bytes, bytearray, memoryview)) and len(value) == _ULONG.size:
        number: int = _ULONG.unpack(value)[0]
        return number
    if isinstance(value, int) and 0 <= value < 1 << 32:
        return value
    raise OSError(errno.EINVAL, "options of HV_PROTOCOL_RAW are ULONG: an integer from 0, or its 4 bytes")
