"""The class `hvsock.socket` on Windows: CPython's own AF_HYPERV socket with the interface of the fabric's.

The kernel's rules hold, and data go through the standard methods untouched. What this class adds to them:
addresses are :class:`hvsock.Address`, errors have the errno names and texts of the other transports, options have
the names that CPython lacks, and an accepted socket says the service that it was accepted for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as _stdlib
import struct
from collections.abc import Iterator
from typing import Any, Final, Self

from hvsock.addresses import SERVICE_WILDCARD, Address, ServiceId, VmId
from hvsock.constants import (
    AF_HYPERV,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_DEFAULT,
    HVSOCKET_CONNECTED_SUSPEND,
)
from hvsock.errors import UsageError
from hvsock.sockets.sockaddr import parse_sockaddr

from . import failures

__all__ = ["socket"]

_ULONG: Final = struct.Struct("<I")


class socket(_stdlib.socket):
    """A Hyper-V socket of Windows.

    Addresses are tuples (vm_id, service_id) of GUIDs as text, in any case; results are
    :class:`hvsock.Address`. Names are looked up by :func:`hvsock.resolve`.

    Args:
        family: AF_HYPERV; -1 is the default in this and the next two.
        type: SOCK_STREAM; Windows has no other.
        proto: HV_PROTOCOL_RAW.
        fileno: a handle of a Hyper-V socket that becomes this object's own, instead of a new one.
        partition: there are no partition folders on Windows; None.

    Raises:
        UsageError: `partition` is given.
        OSError: EAFNOSUPPORT: another family, this is not Windows, or Python is older than 3.12; EPROTOTYPE;
            ESOCKTNOSUPPORT; EMFILE.
    """

    _accepted_for: ServiceId | None
    """Of an accepted socket: what its listener is bound to. Windows may show another one."""
    _options: dict[int, int]
    """What was set through this object: Windows documents no way to read these options."""

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
            raise UsageError("Windows has no partition folders: with the hyperv transport, partition is None")
        if not hasattr(_stdlib, "AF_HYPERV"):
            raise OSError(errno.EAFNOSUPPORT, "AF_HYPERV needs Windows, and Python 3.12 or newer")
        if family not in (AF_HYPERV, -1):
            text = "hvsock makes AF_HYPERV sockets; others are in the socket module"
            raise failures.made(errno.EAFNOSUPPORT, "EAFNOSUPPORT", text)
        if proto not in (HV_PROTOCOL_RAW, -1):
            raise failures.made(errno.EPROTOTYPE, "EPROTOTYPE", f"unsupported AF_HYPERV protocol: {proto}")
        if type not in (_stdlib.SOCK_STREAM, -1):
            raise failures.made(
                errno.ESOCKTNOSUPPORT, "ESOCKTNOSUPPORT", "on Windows AF_HYPERV has SOCK_STREAM alone"
            )
        self._accepted_for = None
        self._options = {}
        try:
            # the protocol in any case: CPython takes that of a handle for 0, and then no address for a valid one
            super().__init__(AF_HYPERV, _stdlib.SOCK_STREAM, int(HV_PROTOCOL_RAW), fileno)
        except OSError as error:
            raise failures.of(error, "socket") from None
        if fileno is not None:
            self._check_family()

    def _check_family(self) -> None:
        """Refuse a handle of another family, which stays its owner's."""
        try:
            name = super().getsockname()
        except OSError:  # neither bound nor connected
            return
        try:
            _address(name)
        except (TypeError, ValueError):
            super().detach()
            text = "handles of this transport are AF_HYPERV streams"
            raise failures.made(errno.EAFNOSUPPORT, "EAFNOSUPPORT", text) from None

    @contextlib.contextmanager
    def _explaining(self, step: str, address: Address | None = None) -> Iterator[None]:
        """Errors of Winsock inside are raised as the other transports have them."""
        try:
            yield
        except OSError as error:
            if self.fileno() < 0:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
            raise failures.of(error, step, address) from None

    # -- addresses

    def getsockname(self) -> Address:
        """The own address, once bound or connected.

        Raises:
            OSError: EINVAL: neither; EBADF: closed.
        """
        with self._explaining("getsockname"):
            own = _address(super().getsockname())
        return own if self._accepted_for is None else own._replace(service_id=self._accepted_for)

    def getpeername(self) -> Address:
        """The peer's address, once connected.

        Raises:
            OSError: ENOTCONN; EBADF: closed.
        """
        with self._explaining("getpeername"):
            return _address(super().getpeername())

    # -- listeners

    def bind(self, address: Any) -> None:
        """Bind to (VmId or wildcard, ServiceId); ServiceId zero takes a fresh one.

        Raises:
            TypeError, ValueError: not an address.
            OSError: EACCES: the service is not registered, or this user may not; EADDRINUSE; EADDRNOTAVAIL;
                EINVAL: bound or connected already.
        """
        wanted = parse_sockaddr(address, "bind")
        if wanted.service_id == SERVICE_WILDCARD:
            wanted = wanted._replace(service_id=ServiceId.new())
        with self._explaining("bind", wanted):
            super().bind(_plain(wanted))

    def listen(self, backlog: int = 128, /) -> None:
        """Take connections; up to `backlog` wait to be accepted.

        Raises:
            OSError: EINVAL: not bound, or the service is disabled.
        """
        with self._explaining("listen"):
            super().listen(max(0, backlog))

    def accept(self) -> tuple[socket, Address]:
        """Wait for a connection; returns it with the peer's address.

        Raises:
            OSError: as the standard accept: BlockingIOError, TimeoutError, EINVAL; EBADF: closed, be it by another
                thread meanwhile.
        """
        with self._explaining("accept"):
            plain, peer = super().accept()
            with plain:
                accepted = socket(fileno=plain.fileno())
                plain.detach()
        try:
            accepted.settimeout(_stdlib.getdefaulttimeout())  # Windows hands a listener's non-blocking mode down
            accepted._accepted_for = self.getsockname().service_id
            if self._options.get(HVSOCKET_CONNECTED_SUSPEND):
                accepted.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 1)
        except BaseException:
            accepted.close()
            raise
        return accepted, _address(peer)

    # -- connecting

    def connect(self, address: Any) -> None:
        """Connect to (VmId, ServiceId).

        A non-blocking socket raises BlockingIOError (EINPROGRESS).

        Raises:
            TypeError, ValueError: not an address.
            OSError: ECONNREFUSED, EACCES, EADDRNOTAVAIL, ENETUNREACH, ENETDOWN, EINVAL, as Windows decides;
                ETIMEDOUT: by HVSOCKET_CONNECT_TIMEOUT; EISCONN; EALREADY; TimeoutError: by settimeout.
        """
        wanted = parse_sockaddr(address, "connect")
        with self._explaining("connect", wanted):
            super().connect(_plain(wanted))

    def connect_ex(self, address: Any) -> int:
        """As :meth:`connect`, but the errno is the result; 0 is success."""
        try:
            self.connect(address)
        except OSError as error:
            return error.errno or errno.EAGAIN  # a time-out by settimeout has no errno
        return 0

    # -- data

    def shutdown(self, how: int, /) -> None:
        """End sending, receiving or both.

        Raises:
            OSError: ENOTCONN; EBADF: closed.
        """
        with self._explaining("shutdown"):
            super().shutdown(how)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Address | None]:
        """As recv, with the peer's address, which Winsock leaves out for streams."""
        return self.recv(bufsize, flags), self._peer_or_none()

    def recvfrom_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Address | None]:
        """As recv_into, with the peer's address."""
        return self.recv_into(buffer, nbytes, flags), self._peer_or_none()

    def _peer_or_none(self) -> Address | None:
        try:
            return self.getpeername()
        except OSError:
            return None

    # -- options

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        """As the standard one; at level HV_PROTOCOL_RAW what was set here, else what Windows says."""
        value = self._options.get(int(optname)) if level == HV_PROTOCOL_RAW else None
        if value is not None:
            return value if buflen is None else _ULONG.pack(value)[:buflen]
        with self._explaining("getsockopt"):
            return (
                super().getsockopt(level, optname)
                if buflen is None
                else super().getsockopt(level, optname, buflen)
            )

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """As the standard one, and the HVSOCKET_* options at level HV_PROTOCOL_RAW.

        Those are ULONG: an integer, or its 4 bytes. HVSOCKET_CONNECT_TIMEOUT is in milliseconds; 0 is the default
        of 2,000. HVSOCKET_CONNECTED_SUSPEND of a listener goes to what it accepts.

        Raises:
            OSError: ENOPROTOOPT: Windows of this build has no such option; EINVAL: out of range.
        """
        if level == HV_PROTOCOL_RAW and value is not None:
            number = _number(value)
            if optname == HVSOCKET_CONNECT_TIMEOUT and not number:
                number = HVSOCKET_CONNECT_TIMEOUT_DEFAULT
            with self._explaining("setsockopt"):
                super().setsockopt(int(level), int(optname), _ULONG.pack(number))
            self._options[int(optname)] = number
            return
        with self._explaining("setsockopt"):
            if optlen is None:
                super().setsockopt(level, optname, value)
            else:
                super().setsockopt(level, optname, value, optlen)

    # -- handles

    def dup(self) -> Self:
        """A second socket object and handle of the same socket.

        Raises:
            OSError: EMFILE; EBADF.
        """
        with self._explaining("dup"):
            twin = super().dup()
        twin._accepted_for = self._accepted_for
        twin._options = dict(self._options)
        return twin


socket.__module__ = "hvsock"  # where programs of Windows find it


def _address(pair: Any) -> Address:
    """The address that CPython shows as `pair`.

    Raises:
        TypeError, ValueError: it is one of another family.
    """
    vm_id, service_id = pair
    if not isinstance(vm_id, str) or not isinstance(service_id, str):
        raise TypeError("not the address of a Hyper-V socket")
    return Address(VmId(vm_id), ServiceId(service_id))


def _plain(address: Address) -> tuple[str, str]:
    return str(address.vm_id), str(address.service_id)


def _number(value: Any) -> int:
    """The value of an option.

    Raises:
        TypeError: neither an integer nor bytes.
        OSError: EINVAL: no ULONG.
    """
    if isinstance(value, int):
        number = int(value)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        number = _ULONG.unpack(value)[0] if len(value) == _ULONG.size else -1
    else:
        raise TypeError(f"options of HV_PROTOCOL_RAW are integers or bytes, not {type(value).__name__}")
    if not 0 <= number < 1 << 32:
        text = "options of HV_PROTOCOL_RAW are ULONG: an integer from 0, or its 4 bytes"
        raise failures.made(errno.EINVAL, "EINVAL", text)
    return number
