"""The class `hvsock.socket`: AF_HYPERV as CPython has it on Windows, over the fabric.

It is a subclass of the standard class, and its descriptor is an AF_UNIX socket that carries payload
alone, so send and recv are the standard ones at their full speed. What differs is how it gets connected:

- bind: the broker makes the bound socket, which takes the place of the own one (dup2).
- connect: the request fills the send buffer, so select, poll and epoll report nothing until the broker has
  decided. Until then the methods that move data are guarded (:mod:`.guards`).
- accept: what the kernel accepts is a courier that brings the connection (:mod:`.accepting`).
"""

from __future__ import annotations

import errno
import os
import select
import socket as _stdlib
import sys
import time
from typing import Any, Self

from hvsock.addresses import HV_GUID_LOOPBACK, Address, ServiceId
from hvsock.constants import (
    AF_HYPERV,
    ANSWER_GRACE_SECONDS,
    HV_PROTOCOL_RAW,
    HvsocketOption,
)
from hvsock.fabric import client, paths
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import Op, Request
from hvsock.topology.reachability import own_view

from . import accepting, connecting, guards, options, sharing
from .connecting import Pending
from .guards import MAX_SEQPACKET_BYTES
from .sockaddr import parse_sockaddr

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

__all__ = ["MAX_SEQPACKET_BYTES", "socket"]

_BUFFERS = frozenset(options.FORCED) | frozenset(options.FORCED.values())
_SEND_BUFFER = (_stdlib.SO_SNDBUF, options.FORCED[_stdlib.SO_SNDBUF])
_SHARED = (
    "_partition", "_own", "_peer", "_bound_as", "_listener_id", "_connected", "_used_up", "_options", "_buffers",
)  # fmt: skip


class socket(_stdlib.socket):
    """A Hyper-V socket.

    Addresses are tuples (vm_id, service_id) of GUIDs as text, in any case; results are
    :class:`hvsock.Address`. Names are looked up by :func:`hvsock.resolve`.

    Args:
        family: AF_HYPERV; -1 is the default in this and the next two.
        type: SOCK_STREAM, or SOCK_SEQPACKET (messages of 1 byte to 128 KiB, which Hyper-V itself lacks).
        proto: HV_PROTOCOL_RAW.
        fileno: a descriptor of a Hyper-V socket that becomes this object's own, instead of a new one. It
            does not carry its addresses; those are only known of sockets that are duplicated, inherited
            by fork, or sent by multiprocessing.
        partition: folder of the partition that this socket is in; by default that of the process
            (HVSOCK_PARTITION, else the host's).

    Raises:
        OSError: EAFNOSUPPORT, EPROTOTYPE (as WSAEPROTOTYPE on Windows), ESOCKTNOSUPPORT, EMFILE.
    """

    _kind: int
    _partition: str | None
    _own: Address | None
    _peer: Address | None
    _bound_as: Address | None
    """What the program asked to be bound to."""
    _listener_id: bytes | None
    """What the broker calls the bound socket."""
    _connected: bool
    _pending: Pending | None
    _failure: OSError | None
    """Of a connect; nobody was told of it yet."""
    _used_up: bool
    """The kernel's socket was connected once, and cannot be again."""
    _options: dict[HvsocketOption, int]
    _buffers: dict[int, Any]
    """Buffer sizes that the program set."""
    _mark: EndMark | None
    """Of a connection of a VM: what its device sets before it ends the stream gracefully."""

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
            checked = options.checked_type(family, type, proto)
            super().__init__(_stdlib.AF_UNIX, checked, 0)
            self._prepare(checked & ~options.TYPE_FLAGS, partition)
            return
        super().__init__(-1, -1, -1, fileno)
        kind = int(self.type)
        if self.family != _stdlib.AF_UNIX or kind not in options.TYPES:
            super().detach()
            raise OSError(errno.EAFNOSUPPORT, "descriptors of Hyper-V sockets are AF_UNIX streams or SEQPACKET")
        self._prepare(kind, partition)
        self._connected = self._has_peer()
        if not self._connected:
            self._listener_id = accepting.listener_id(super().getsockname())

    def _prepare(self, kind: int, partition: str | None) -> None:
        self._kind = kind
        self._partition = partition
        self._own = self._peer = self._bound_as = None
        self._listener_id = None
        self._connected = self._used_up = False
        self._pending = self._failure = self._mark = None
        self._options = {}
        self._buffers = {}
        if kind == _stdlib.SOCK_SEQPACKET:
            guards.guard_messages(self)

    def _send_message(self, name: str, *args: Any, **keywords: Any) -> Any:
        """Call a method that sends one message, of which the guard has seen that it is one."""
        return getattr(type(self), name)(self, *args, **keywords)

    @classmethod
    def _established(
        cls,
        descriptor: int,
        kind: int,
        own: Address,
        peer: Address,
        partition: str | None = None,
        mark: EndMark | None = None,
    ) -> Self:
        """A connection over `descriptor`, which it owns, as `mark`; blocking, or with the default time-out."""
        made = cls.__new__(cls)
        _stdlib.socket.__init__(made, _stdlib.AF_UNIX, kind, 0, descriptor)
        made.settimeout(_stdlib.getdefaulttimeout())  # the descriptor may come from a non-blocking socket
        made._prepare(kind, partition)
        made._own, made._peer, made._connected = own, peer, True
        if mark is not None:
            made._keep_mark(mark)
        return made

    # -- addresses

    def getsockname(self) -> Address:
        """The own address, once bound or connected; that of the connect while one is pending.

        Raises:
            OSError: EINVAL: neither, or the descriptor came without its address; EBADF: closed.
        """
        self._check_open()
        own = self._own if self._pending is None else self._pending.own
        if own is None:
            raise OSError(errno.EINVAL, "the socket is neither bound nor connected, or came without its address")
        return own

    def getpeername(self) -> Address:
        """The peer's address, once connected.

        Raises:
            OSError: ENOTCONN: not connected, or the descriptor came without its address; EBADF: closed.
        """
        self._check_open()
        self._look()
        if self._peer is None:
            raise _not_connected()
        return self._peer

    # -- listeners

    def bind(self, address: Any) -> None:
        """Bind to (VmId or wildcard, ServiceId); ServiceId zero takes a fresh one.

        The descriptor keeps its number and its settings, and gets another socket under it, so bind before
        registering it with epoll.

        Raises:
            TypeError, ValueError: not an address.
            OSError: EADDRNOTAVAIL: no address for a listener in this partition; EACCES: the service is
                not registered, or its settings do not let this user; EADDRINUSE; EINVAL: bound or
                connected already; ENETUNREACH: no broker.
        """
        wanted = parse_sockaddr(address, "bind")
        self._check_open()
        if self._own is not None or self._listener_id is not None or self._connected or self._pending is not None:
            raise OSError(errno.EINVAL, "the socket is bound or connected already")
        self._bind(wanted)

    def _bind(self, wanted: Address) -> None:
        binding = client.bind(self._folder(), self._kind, wanted, options.flags_of(self._options))
        with _stdlib.socket(_stdlib.AF_UNIX, self._kind, 0, binding.descriptor) as bound:
            self._replace(bound)
        self._own, self._bound_as, self._listener_id = binding.address, wanted, binding.listener_id

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
        none is lost: EMFILE comes before the connection is taken. As everywhere on Linux, closing the
        listener in another thread does not end an accept that waits; shutdown does. Where one descriptor is
        left and no more, a connection of a VM is reset, as it needs another for its end mark.

        Raises:
            OSError: as the standard accept: BlockingIOError, TimeoutError, EINVAL, EMFILE.
        """
        while True:
            accepting.spare.keep()
            with self._accept_courier() as courier:
                courier.settimeout(0)
                found = accepting.take(courier)
            if found is not None:
                break
        own, peer, flags = found.courier.own, found.courier.peer, found.courier.flags
        try:
            accepted = socket._established(found.descriptor, self._kind, own, peer, self._partition, found.mark)
        except BaseException:
            found.close()
            raise
        if flags:
            accepted._options = {option: 1 for option, flag in options.FLAGS.items() if flags & flag}
        for option, size in self._buffers.items():
            accepted.setsockopt(_stdlib.SOL_SOCKET, option, size)
        return accepted, peer

    def _accept_courier(self) -> _stdlib.socket:
        """What the kernel accepts, or EINVAL once the listener is shut down.

        The kernel says that only to those who wait in it. Who does not wait gets EAGAIN for ever, and who
        waits by poll, as with a time-out, is woken for nothing again and again.
        """
        timeout = self.gettimeout()
        ended = bool(timeout) and accepting.is_shut_down(self.fileno(), timeout or 0.0)
        if ended:
            super().settimeout(0)
        try:
            courier, _ = super().accept()
        except BlockingIOError:
            if ended or accepting.is_shut_down(self.fileno()):
                raise OSError(errno.EINVAL, "the listener is shut down") from None
            raise
        finally:
            if ended:
                super().settimeout(timeout)
        return courier

    # -- connecting

    def connect(self, address: Any) -> None:
        """Connect to (VmId, ServiceId).

        It is connected when the connection is in the listener's backlog, before accept, as with TCP.
        A non-blocking socket raises BlockingIOError (EINPROGRESS), becomes writable when it is connected,
        and tells by SO_ERROR why it is not. After a refusal it can connect again; then another socket
        is under the same descriptor, so register it with epoll anew.

        Raises:
            TypeError, ValueError: not an address.
            OSError: ECONNREFUSED, EACCES, EADDRNOTAVAIL, EHOSTUNREACH, EINVAL, EPROTOTYPE: as decided
                by the rules; ETIMEDOUT: the backlog was full for HVSOCKET_CONNECT_TIMEOUT; ENETUNREACH:
                no broker; ENOBUFS: its queue is full; EISCONN; EALREADY; TimeoutError: by settimeout,
                and the connect is still pending.
        """
        wanted = parse_sockaddr(address, "connect")
        self._check_open()
        timeout = self.gettimeout()
        if self._pending is not None:
            if timeout is None:
                self._wait(None)
            elif not self._look():
                raise BlockingIOError(errno.EALREADY, os.strerror(errno.EALREADY))
            self._raise_failure()
            return
        if self._connected:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
        self._raise_failure()
        limit = None if timeout is None else time.monotonic() + timeout
        self._start(wanted, timeout, limit)
        if timeout == 0:
            raise BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))
        self._wait(limit if limit is None else max(0.0, limit - time.monotonic()))
        self._raise_failure()

    def connect_ex(self, address: Any) -> int:
        """As :meth:`connect`, but the errno is the result; 0 is success."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EAGAIN  # a time-out by settimeout has no errno
        return 0

    def _start(self, wanted: Address, timeout: float | None, limit: float | None) -> None:
        """Send the request: the connect is pending then."""
        milliseconds = options.connect_timeout(self._options)
        deadline = time.monotonic() + milliseconds / 1000
        if self._used_up:
            self._renew()
        token = os.urandom(16)
        own_id = ServiceId.from_bytes_le(token) if self._own is None else self._own.service_id
        flags = options.flags_of(self._options)
        request = Request(Op.CONNECT, wanted, self._kind, flags, milliseconds, token)
        send_buffer = super().getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF)
        super().setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF, client.MINIMAL_BUFFER)
        try:
            self._send_request(request, timeout, limit, deadline)
        except BaseException:
            options.set_buffer(self, _stdlib.SO_SNDBUF, send_buffer)
            self._used_up = self._has_peer()
            raise
        self._pending = Pending(
            Address(own_view(wanted.vm_id), own_id), wanted, send_buffer, deadline + ANSWER_GRACE_SECONDS
        )
        guards.guard_connecting(self)

    def _send_request(self, request: Request, timeout: float | None, limit: float | None, deadline: float) -> None:
        if timeout != 0:
            super().settimeout(0)
        try:
            while True:
                try:
                    client.start_connect(super().connect, super().send, self._folder(), request)
                    return
                except OSError as error:
                    if error.errno != errno.ENOBUFS or timeout == 0:
                        raise
                now = time.monotonic()
                if limit is not None and now >= limit:
                    raise TimeoutError("timed out")
                if now >= deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "the broker's queue was full until the connect time-out")
                time.sleep(client.RETRY_SECONDS)
        finally:
            if timeout != 0:
                super().settimeout(timeout)

    def _look(self, seconds: float = 0.0) -> bool:
        """Whether no connect is pending any more; waits for up to `seconds`."""
        if self._pending is not None:
            self._check_open()
            events = connecting.settled(self.fileno(), seconds)
            if events is None:
                return False
            self._finish(events)
        return True

    def _wait(self, timeout: float | None) -> None:
        """Wait until the pending connect is settled, `timeout` seconds at most (None: by its deadline).

        Raises:
            TimeoutError: `timeout` is over, and the connect is still pending.
        """
        pending = self._pending
        if pending is None:
            return
        patience = max(0.0, pending.deadline - time.monotonic())
        if self._look(patience if timeout is None else min(timeout, patience)):
            return
        if timeout is not None and timeout < patience:
            raise TimeoutError("timed out")
        self._finish(select.POLLERR, OSError(errno.ETIMEDOUT, "the broker or the VM's device did not answer"))
        super().shutdown(_stdlib.SHUT_RDWR)  # should it go on, nobody gets half a connection

    def _finish(self, events: int, failure: OSError | None = None) -> None:
        """The pending connect is settled: the send buffer gets its size back, and the guards go or bite."""
        pending = self._pending
        if pending is None:
            return
        with pending.lock:
            if self._pending is None:  # another thread was faster
                return
            options.set_buffer(self, _stdlib.SO_SNDBUF, pending.send_buffer)
            mark = None
            if events & select.POLLERR:  # closed with the request unread
                failure = failure or connecting.refusal(self)
            elif pending.peer.vm_id != HV_GUID_LOOPBACK:  # behind everything else there may be a VM
                try:
                    mark = connecting.end_mark(self)
                except OSError as error:
                    failure = error
                    super().shutdown(_stdlib.SHUT_RDWR)
            if failure is not None:
                self._used_up = True
                self._failure = failure
            else:
                self._own, self._peer, self._connected = pending.own, pending.peer, True
                guards.lift(self)
                if self._kind == _stdlib.SOCK_SEQPACKET:
                    guards.guard_messages(self)
                if mark is not None:
                    self._keep_mark(mark)
            self._pending = None

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _require_connection(self) -> None:
        """Wait for a pending connect as long as the socket's time-out says.

        Raises:
            OSError: why it failed, the first time; then ENOTCONN. BlockingIOError, TimeoutError: pending.
        """
        self._check_open()
        timeout = self.gettimeout()
        if timeout != 0:
            self._wait(timeout)
        elif not self._look():
            raise BlockingIOError(errno.EAGAIN, "the connect is pending")
        self._raise_failure()
        if not self._connected:
            raise _not_connected()

    # -- data: what differs from the standard methods

    def shutdown(self, how: int, /) -> None:
        """End sending, receiving or both; on a listener, end an accept that waits.

        Raises:
            OSError: ENOTCONN: neither connected nor listening, or the connect is pending.
        """
        self._look()
        if not self._connected and not super().getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_ACCEPTCONN):
            raise _not_connected()
        super().shutdown(how)
        if how != _stdlib.SHUT_WR:
            guards.lift_end(self)  # the end of what comes in is this one's own doing now

    def _keep_mark(self, mark: EndMark) -> None:
        self._mark = mark
        guards.guard_end(self)

    def _ended_ungracefully(self) -> bool:
        """Whether nothing more comes in, and the device did not mark that; to be asked after an empty recv."""
        descriptor = self.fileno()
        if self._mark is None or self._mark.is_set() or descriptor < 0 or not connecting.readable(descriptor):
            return False
        return not super().recv(1, _stdlib.MSG_PEEK | _stdlib.MSG_DONTWAIT)  # it may have asked for no bytes

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Address | None]:
        """As recv, with the peer's address."""
        return self.recv(bufsize, flags), self._peer

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Address | None]:
        """As recv_into, with the peer's address."""
        return self.recv_into(buffer, nbytes, flags), self._peer

    def sendto(self, data: Any, *flags_and_address: Any) -> int:
        """As send; the address is looked at and has no meaning, as with any connected stream."""
        if not 1 <= len(flags_and_address) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({1 + len(flags_and_address)} given)")
        *flags, address = flags_and_address
        parse_sockaddr(address, "sendto")
        return self.send(data, *flags)

    # -- options

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        """As the standard one, and the HVSOCKET_* options at level HV_PROTOCOL_RAW (ULONG)."""
        if options.is_hyperv(level, optname):
            self._check_open()
            return options.get(self._options, optname, buflen)
        if level == _stdlib.SOL_SOCKET:
            if optname == _stdlib.SO_ERROR:
                self._look()
                if self._pending is not None:
                    return options.as_asked(0, buflen)
                failure, self._failure = self._failure, None
                if failure is not None:
                    return options.as_asked(failure.errno or errno.ECONNREFUSED, buflen)
            elif optname == _stdlib.SO_SNDBUF and not self._look():
                assert self._pending is not None
                return options.as_asked(self._pending.send_buffer, buflen)
        return super().getsockopt(level, optname) if buflen is None else super().getsockopt(level, optname, buflen)

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """As the standard one, and the HVSOCKET_* options at level HV_PROTOCOL_RAW.

        They count for the connects and binds after. HVSOCKET_CONNECT_TIMEOUT is in milliseconds; 0 is
        the default of 2,000, and over 300,000 is EINVAL. Buffer sizes of a listener are those of what it
        accepts.
        """
        if options.is_hyperv(level, optname):
            self._check_open()
            option, number = options.checked(optname, value)
            self._options[option] = number
            return
        if level == _stdlib.SOL_SOCKET and optname in _BUFFERS:
            if optname in _SEND_BUFFER and not self._look():
                assert self._pending is not None
                self._pending.send_buffer = options.would_be(optname, value)
            else:
                super().setsockopt(level, optname, value)
            self._buffers[optname] = value
        elif optlen is None:
            super().setsockopt(level, optname, value)
        else:
            super().setsockopt(level, optname, value, optlen)

    # -- descriptors

    def close(self) -> None:
        """Close the socket, or leave that to the last of its files. Calling this twice is fine."""
        super().close()
        if self._mark is not None and self.fileno() < 0:
            self._mark.close()

    def detach(self) -> int:
        """Give the descriptor away; the caller owns it.

        Of a connection of a VM, a bare descriptor does not tell a reset from an end of stream.

        Raises:
            OSError: EINPROGRESS: a connect is pending, and only this object can tell how it ends.
        """
        if self.fileno() >= 0:
            self._require_settled()
        descriptor = super().detach()
        if self._mark is not None:
            self._mark.close()
        return descriptor

    def dup(self) -> Self:
        """A second socket object and descriptor of the same socket, with the same addresses.

        Raises:
            OSError: EINPROGRESS: a connect is pending; EMFILE; EBADF.
        """
        self._require_settled()
        descriptor = _stdlib.dup(self.fileno())
        twin = self.__class__(AF_HYPERV, self._kind, HV_PROTOCOL_RAW, fileno=descriptor)
        twin.settimeout(self.gettimeout())
        twin._share(self._shared())
        if self._mark is not None:
            try:
                twin._keep_mark(self._mark.dup())
            except BaseException:
                twin.close()
                raise
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return sharing.reduce(self)

    def _shared(self) -> dict[str, Any]:
        """What another object for the same socket has to know."""
        shared = {name: self.__dict__[name] for name in _SHARED}
        return {**shared, "_options": dict(self._options), "_buffers": dict(self._buffers)}

    def _share(self, shared: dict[str, Any]) -> None:
        self.__dict__.update(shared)

    def _require_settled(self) -> None:
        self._check_open()
        if not self._look():
            raise OSError(errno.EINPROGRESS, "a connect is pending; wait until it is settled")

    def _renew(self) -> None:
        """Put a fresh socket under the descriptor: one that was connected once cannot be again."""
        with _stdlib.socket(_stdlib.AF_UNIX, self._kind) as fresh:
            self._replace(fresh)
        self._own = self._listener_id = None
        if self._bound_as is not None:
            self._bind(self._bound_as)
        self._used_up = False

    def _replace(self, other: _stdlib.socket) -> None:
        """Put the socket of `other` under the own descriptor, with its settings."""
        options.copy_settings(self, other)
        os.dup2(other.fileno(), self.fileno(), inheritable=self.get_inheritable())

    # -- small things

    def _has_peer(self) -> bool:
        """Whether the kernel's socket is connected to another, be it a broker's."""
        try:
            super().getpeername()
        except OSError:
            return False
        return True

    def _folder(self) -> str:
        return self._partition or paths.partition_folder()

    def _check_open(self) -> None:
        if self.fileno() < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))


socket.__module__ = "hvsock"  # where programs find it; repr and pickle say so


def _not_connected() -> OSError:
    return OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
