"""The class `hvsock.socket` in a guest: its descriptor is an AF_VSOCK socket, and the kernel's own rules hold.

Everything that the fabric's class makes of addresses, options and pending connects is the same here. What
differs is below it: no broker is asked, and no courier brings a connection.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as _stdlib
import sys
import time
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, NoReturn

from hvsock.addresses import HV_GUID_WILDCARD, Address, ServiceId
from hvsock.constants import (
    AF_HYPERV,
    ANSWER_GRACE_SECONDS,
    HV_PROTOCOL_RAW,
)
from hvsock.errors import UsageError
from hvsock.sockets import guards, options
from hvsock.sockets import socket as fabric
from hvsock.sockets.connecting import Pending
from hvsock.topology.reachability import own_view

from . import addressing, failures, messages, ports

if sys.platform != "linux":
    raise ImportError("AF_VSOCK is in Linux guests")

_CONNECT_TIMEOUT: Final = 6  # SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD of linux/vm_sockets.h, with two longs
_BUFFERS: Final = (
    _stdlib.SO_VM_SOCKETS_BUFFER_MAX_SIZE,
    _stdlib.SO_VM_SOCKETS_BUFFER_MIN_SIZE,
    _stdlib.SO_VM_SOCKETS_BUFFER_SIZE,
)
"""In the order in which they have to be set: the largest size first."""
_BUFFER_SIZE_BYTES: Final = 8
_SENDERS: Final = ("send", "sendall", "sendmsg", "sendfile")


class socket(fabric.socket):
    """A Hyper-V socket of a Linux guest.

    PARENT is the host (CID 2), LOOPBACK this machine (CID 1, with the module vsock_loopback), and another
    guest is ``VmId.from_cid(CID)``. A ServiceId outside the vsock template is looked up at the host, once,
    for its port alias.

    Args:
        family, type, proto: as for the fabric's.
        fileno: a descriptor of an AF_VSOCK socket, or of an end of :func:`hvsock.socketpair`, that becomes
            this object's own. It shows ports where the program that made it may have named services, and as
            a listener it takes connections from everywhere.
        partition: there are no partition folders in a guest; None.

    Raises:
        UsageError: `partition` is given.
        OSError: EAFNOSUPPORT, EPROTOTYPE, ESOCKTNOSUPPORT, EMFILE.
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
        if partition is not None:
            raise UsageError("a guest speaks for itself: with the vsock transport, sockets take no partition")
        if fileno is None:
            checked = options.checked_type(family, type, proto)
            try:
                _stdlib.socket.__init__(self, _stdlib.AF_VSOCK, checked, 0)
            except OSError as error:
                raise failures.of_creation(error) from None
            self._prepare(checked & ~options.TYPE_FLAGS, None)
            return
        _stdlib.socket.__init__(self, -1, -1, -1, fileno)
        kind = int(self.type)
        if self.family not in (_stdlib.AF_VSOCK, _stdlib.AF_UNIX) or kind not in options.TYPES:
            _stdlib.socket.detach(self)
            raise OSError(errno.EAFNOSUPPORT, "descriptors of this transport are AF_VSOCK streams or SEQPACKET")
        self._prepare(kind, None)
        self._connected = self._has_peer()
        if self.family == _stdlib.AF_VSOCK:
            self._read_addresses()

    def _read_addresses(self) -> None:
        """Take the addresses that the kernel knows."""
        cid, port = _stdlib.socket.getsockname(self)
        if port != ports.PORT_ANY:
            self._own = Address(addressing.seen_as(cid), ServiceId.from_port(port))
        if self._connected:
            self._peer = _address(_stdlib.socket.getpeername(self))
            self._own = Address(own_view(self._peer.vm_id), ServiceId.from_port(port))

    # -- listeners

    def _bind(self, wanted: Address) -> None:
        cid = addressing.to_bind(wanted.vm_id)
        port = ports.to_bind(wanted.service_id)
        try:
            _stdlib.socket.bind(self, (cid, port))
        except OSError as error:
            raise failures.of_bind(error, wanted) from None
        service_id = wanted.service_id
        if port == ports.PORT_ANY:
            service_id = ServiceId.from_port(_stdlib.socket.getsockname(self)[1])
        self._own, self._bound_as = Address(wanted.vm_id, service_id), wanted

    def listen(self, backlog: int = 128, /) -> None:
        """Take connections; up to `backlog` wait to be accepted, and more are refused.

        Raises:
            OSError: EINVAL: not bound, or connected.
        """
        self._check_open()
        if self._own is None:
            raise OSError(errno.EINVAL, "bind the socket before it listens")
        _stdlib.socket.listen(self, backlog)

    def accept(self) -> tuple[fabric.socket, Address]:
        """Wait for a connection; returns it with the peer's address.

        The kernel takes connections from everywhere. Those that the binding does not are closed here.

        Raises:
            OSError: as the standard accept: BlockingIOError, TimeoutError, EINVAL, EMFILE.
        """
        bound = HV_GUID_WILDCARD if self._own is None else self._own.vm_id
        timeout = self.gettimeout()
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            plain, (cid, port) = _stdlib.socket.accept(self)
            if addressing.takes(bound, cid):
                break
            plain.close()
            if timeout and limit is not None and time.monotonic() >= limit:
                raise TimeoutError("timed out")
        with plain:
            accepted = socket(fileno=plain.detach())
        accepted.settimeout(_stdlib.getdefaulttimeout())
        peer = accepted._peer = _address((cid, port))
        assert self._own is not None
        accepted._own = Address(own_view(peer.vm_id), self._own.service_id)
        return accepted, peer

    # -- connecting

    def _start(self, wanted: Address, timeout: float | None, limit: float | None) -> None:
        """Begin a connect, which the kernel ends: it keeps HVSOCKET_CONNECT_TIMEOUT itself."""
        cid, port = addressing.destination(wanted.vm_id), ports.of(wanted.service_id)
        milliseconds = options.connect_timeout(self._options)
        if self._used_up:
            self._renew()
        seconds, rest = divmod(milliseconds, 1000)
        self.setsockopt(_stdlib.AF_VSOCK, _CONNECT_TIMEOUT, messages.TIMEVAL.pack(seconds, rest * 1000))
        deadline = time.monotonic() + milliseconds / 1000 + ANSWER_GRACE_SECONDS
        if timeout != 0:
            _stdlib.socket.settimeout(self, 0)
        try:  # never waiting in the kernel: a signal would end such a connect
            code = _stdlib.socket.connect_ex(self, (cid, port))
        finally:
            if timeout != 0:
                _stdlib.socket.settimeout(self, timeout)
        if code not in (0, errno.EINPROGRESS):
            raise failures.of_connect(code, cid)
        own_port = _stdlib.socket.getsockname(self)[1]
        own_id = ServiceId.from_port(own_port) if self._own is None else self._own.service_id
        send_buffer = _stdlib.socket.getsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF)
        self._pending = Pending(Address(own_view(wanted.vm_id), own_id), wanted, send_buffer, deadline)
        guards.guard_connecting(self)

    def _finish(self, events: int, failure: OSError | None = None) -> None:
        pending = self._pending
        if pending is None:
            return
        with pending.lock:
            if self._pending is None:  # another thread was faster
                return
            options.set_buffer(self, _stdlib.SO_SNDBUF, pending.send_buffer)
            code = _stdlib.socket.getsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_ERROR)
            if failure is not None or code:
                self._used_up = True
                self._failure = failure or failures.of_connect(code, addressing.destination(pending.peer.vm_id))
            else:
                self._own, self._peer, self._connected = pending.own, pending.peer, True
                guards.lift(self)
                if self._kind == _stdlib.SOCK_SEQPACKET:
                    guards.guard_messages(self)
            self._pending = None

    def _renew(self) -> None:
        """Put a fresh socket under the descriptor: after a connect in vain the kernel's takes no other."""
        with (
            _stdlib.socket(_stdlib.AF_VSOCK, self._kind) as fresh,
            _with_any_option(self) as old,
            _with_any_option(fresh) as new,
        ):
            options.copy_settings(old, new)
            for option in _BUFFERS:
                size = old.getsockopt(_stdlib.AF_VSOCK, option, _BUFFER_SIZE_BYTES)
                new.setsockopt(_stdlib.AF_VSOCK, option, size)
            os.dup2(fresh.fileno(), self.fileno(), inheritable=self.get_inheritable())
        self._own = None
        if self._bound_as is not None:
            self._bind(self._bound_as)
        self._used_up = False

    # -- data

    def _send_message(self, name: str, *args: Any, **keywords: Any) -> Any:
        timeout = self.gettimeout()
        if timeout is None or self.family != _stdlib.AF_VSOCK:
            return super()._send_message(name, *args, **keywords)
        return messages.send(self, timeout, name, *args, **keywords)

    def shutdown(self, how: int, /) -> None:
        """End sending, receiving or both; a listener has nothing to shut down.

        Raises:
            OSError: ENOTCONN: not connected, or the connect is pending.
        """
        super().shutdown(how)
        if how != _stdlib.SHUT_RD and self.family == _stdlib.AF_VSOCK:
            # to poll the socket is not writable from now on, so a send with a time-out would wait for that
            me = weakref.ref(self)
            self.__dict__.update({name: partial(_send_after_shutdown, me) for name in _SENDERS})

    # -- options

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        """As the fabric's."""
        if buflen is None or options.is_hyperv(level, optname):
            return super().getsockopt(level, optname, buflen)
        if (level, optname) == (_stdlib.SOL_SOCKET, _stdlib.SO_ERROR):
            return options.as_asked(super().getsockopt(level, optname), buflen)
        self._check_open()
        with _with_any_option(self) as plain:
            return plain.getsockopt(level, optname, buflen)

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """As the fabric's; buffer sizes are those of level AF_VSOCK (vsock(7)), others have no effect."""
        if isinstance(value, int) or options.is_hyperv(level, optname):
            super().setsockopt(level, optname, value)
            return
        self._check_open()
        with _with_any_option(self) as plain:
            if optlen is None:
                plain.setsockopt(level, optname, value)
            else:
                plain.setsockopt(level, optname, value, optlen)


socket.__module__ = "hvsock"  # where programs of a guest find it


def _send_after_shutdown(me: weakref.ref[socket], *_: Any, **__: Any) -> NoReturn:
    sock = me()
    code = errno.EBADF if sock is None or sock.fileno() < 0 else errno.EPIPE
    raise OSError(code, os.strerror(code))


@contextlib.contextmanager
def _with_any_option(sock: _stdlib.socket) -> Iterator[_stdlib.socket]:
    """`sock` as an object that has every option: those of AF_VSOCK sockets are 64-bit integers to CPython."""
    # an object that is made non-blocking leaves the descriptor as it is
    plain = _stdlib.socket(_stdlib.AF_UNIX, _stdlib.SOCK_STREAM | _stdlib.SOCK_NONBLOCK, 0, sock.fileno())
    try:
        yield plain
    finally:
        plain.detach()


def _address(pair: tuple[int, int]) -> Address:
    """The address of a peer that the kernel shows as `pair`."""
    cid, port = pair
    return Address(addressing.seen_as(cid), ServiceId.from_port(port))
