"""The class `hvsock.socket` on a host whose VMMs end their guests' sockets in Unix sockets.

Everything that the fabric's class makes of addresses, options and pending connects is the same here. What differs
is below it: no broker is asked, a VMM's handshake makes a connection, and what is accepted comes to Unix sockets
beside the VMMs' paths. VMs and their paths are those of the configuration, and of ``unix:`` URLs.
"""

from __future__ import annotations

import errno
import os
import select
import socket as _stdlib
import sys
import time
from typing import Any, Final, Self

from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_WILDCARD,
    SERVICE_WILDCARD,
    WELL_KNOWN_VMIDS,
    Address,
    ServiceId,
    VmId,
)
from hvsock.config.settings import Vm
from hvsock.constants import AF_HYPERV, ANSWER_GRACE_SECONDS, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT
from hvsock.errors import HvsockError, UsageError
from hvsock.hybrid.connecting import HANDSHAKE_SECONDS, Attempt
from hvsock.machines import known
from hvsock.sockets import guards, options
from hvsock.sockets import socket as fabric
from hvsock.sockets.connecting import Pending
from hvsock.topology.reachability import own_view

from . import failures
from .doors import Doors, profile_of
from .greeting import Greeting

if sys.platform != "linux":
    raise ImportError("hybrid sockets need Linux, as the VMMs do")

FIRST_FREE_PORT: Final = 1 << 31
"""A bind to ServiceId zero takes a port from here on, at random: services are registered for lower ones."""


class socket(fabric.socket):
    """A Hyper-V socket of a host, over the hybrid sockets of its VMMs.

    It connects to VMs by their VmIds; a listener is bound to one of them, to CHILDREN or to WILDCARD, which is the
    same here: all VMs that are known when it begins to listen.

    Args:
        family, proto: as for the fabric's.
        type: SOCK_STREAM; VMMs have no other.
        fileno: a descriptor of a connection that becomes this object's own.
        partition: there are no partition folders; None.

    Raises:
        UsageError: `partition` is given.
        OSError: EAFNOSUPPORT, EPROTOTYPE, ESOCKTNOSUPPORT, EMFILE; EINVAL: the configuration cannot be used.
    """

    _greeting: Greeting | None
    _doors: Doors | None

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
            raise UsageError("VMMs know nothing of partition folders: with hybrid sockets, partition is None")
        if type != -1 and type & ~options.TYPE_FLAGS == _stdlib.SOCK_SEQPACKET:
            raise OSError(errno.ESOCKTNOSUPPORT, "hybrid sockets are streams alone, of SOCK_STREAM")
        super().__init__(family, type, proto, fileno)

    def _prepare(self, kind: int, partition: str | None) -> None:
        super()._prepare(kind, partition)
        self._greeting = self._doors = None
        # the default is longer than elsewhere: VMMs give a guest 2 s
        try:
            default = options.connect_timeout({}, round(HANDSHAKE_SECONDS * 1000))
        except OSError:
            super().close()
            raise
        self._options[HVSOCKET_CONNECT_TIMEOUT] = default

    # -- listeners

    def _bind(self, wanted: Address) -> None:
        if wanted.vm_id in WELL_KNOWN_VMIDS.values() and wanted.vm_id not in (HV_GUID_CHILDREN, HV_GUID_WILDCARD):
            raise failures.no_binding(wanted.vm_id)
        service = wanted.service_id
        if service == SERVICE_WILDCARD:
            service = ServiceId.from_port(FIRST_FREE_PORT | int.from_bytes(os.urandom(4)) >> 1)
        self._own, self._bound_as = wanted._replace(service_id=service), wanted

    def listen(self, backlog: int = 128, /) -> None:
        """Take connections; up to `backlog` of each VM wait to be accepted.

        The descriptor keeps its number, and gets something else under it, so listen before registering it with
        epoll.

        Raises:
            OSError: EINVAL: not bound, or connected; EADDRINUSE: another listens for that service, or what is at
                its path is no socket; EADDRNOTAVAIL: a VMM takes ports alone, and the service has none, or
                there is no VM; others are the file system's.
        """
        self._check_open()
        if self._own is None or self._connected or self._pending is not None:
            raise OSError(errno.EINVAL, "bind the socket before it listens, and do not connect it")
        backlog = max(0, backlog)
        if self._doors is not None:
            self._doors.listen(backlog)
            return
        try:
            doors = Doors(_that_may_connect(self._own.vm_id), self._own.service_id, backlog)
        except (OSError, HvsockError) as error:
            raise failures.of_bind(error) from None
        doors.put_under(self.fileno(), inheritable=self.get_inheritable())
        self._doors = doors
        for option, size in self._buffers.items():
            doors.set_option(_stdlib.SOL_SOCKET, option, size)

    def accept(self) -> tuple[fabric.socket, Address]:
        """Wait for a connection; returns it with the peer's address: its VM, and an id of its own.

        Raises:
            OSError: as the standard accept: BlockingIOError, TimeoutError, EINVAL, EMFILE.
        """
        self._check_open()
        if self._doors is None or self._own is None:
            raise OSError(errno.EINVAL, "the socket does not listen")
        timeout = self.gettimeout()
        limit = None if timeout is None else time.monotonic() + timeout
        while True:
            found = self._doors.accept()
            if found is not None:
                break
            if self._doors.is_shut_down:
                raise OSError(errno.EINVAL, "the listener is shut down")
            if timeout == 0:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if not _is_readable(self.fileno(), limit):
                raise TimeoutError("timed out")
        plain, vm = found
        with plain:
            own, peer = Address(vm.id, self._own.service_id), Address(vm.id, ServiceId.new())
            accepted = socket._established(plain.detach(), self._kind, own, peer)
        for option, size in self._buffers.items():
            accepted.setsockopt(_stdlib.SOL_SOCKET, option, size)
        return accepted, peer

    # -- connecting

    def _start(self, wanted: Address, timeout: float | None, limit: float | None) -> None:
        """Begin the handshake: the connect is pending then."""
        seconds = options.connect_timeout(self._options) / 1000
        try:
            vm = _that_is(wanted.vm_id)
            attempt = Attempt(vm.path or "", wanted.service_id, profile_of(vm))
        except HvsockError as error:
            raise failures.of_connect(error) from None
        send_buffer = _stdlib.socket.getsockopt(self, _stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF)
        if self._used_up:  # what is under the descriptor is left of the last handshake
            send_buffer = _stdlib.socket.getsockopt(attempt.sock, _stdlib.SOL_SOCKET, _stdlib.SO_SNDBUF)
        else:
            options.copy_settings(self, attempt.sock)
            attempt.sock.setblocking(False)
        greeting = Greeting(attempt, seconds)
        greeting.start()
        with greeting.near as near:
            os.set_blocking(near.fileno(), timeout is None)
            os.dup2(near.fileno(), self.fileno(), inheritable=self.get_inheritable())
        own_id = ServiceId.new() if self._own is None else self._own.service_id
        self._greeting = greeting
        self._pending = Pending(
            Address(own_view(wanted.vm_id), own_id),
            wanted,
            send_buffer,
            time.monotonic() + seconds + ANSWER_GRACE_SECONDS,
        )
        guards.guard_connecting(self)

    def _finish(self, events: int, failure: OSError | None = None) -> None:
        pending, greeting = self._pending, self._greeting
        if pending is None or greeting is None:
            return
        with pending.lock:
            if self._pending is None:  # another thread was faster
                return
            outcome = greeting.take() if failure is None else failure
            if outcome is None:
                outcome = OSError(errno.ECONNREFUSED, "the handshake ended with the process that began it")
            greeting.give_up()
            if isinstance(outcome, OSError):
                self._failure, self._used_up = outcome, True
            else:
                with outcome:
                    os.set_blocking(outcome.fileno(), self.gettimeout() is None)
                    os.dup2(outcome.fileno(), self.fileno(), inheritable=self.get_inheritable())
                options.set_buffer(self, _stdlib.SO_SNDBUF, pending.send_buffer)
                self._own, self._peer, self._connected = pending.own, pending.peer, True
                guards.lift(self)
            self._pending = self._greeting = None

    # -- what differs where it listens

    def shutdown(self, how: int, /) -> None:
        """As the fabric's: on a listener, end an accept that waits."""
        if self._doors is None:
            super().shutdown(how)
        else:
            self._check_open()
            self._doors.shut_down()

    def getsockopt(self, level: int, optname: int, buflen: int | None = None) -> Any:
        """As the fabric's."""
        if self._doors is None or options.is_hyperv(level, optname):
            return super().getsockopt(level, optname, buflen)
        self._check_open()
        return self._doors.get_option(level, optname, *([] if buflen is None else [buflen]))

    def setsockopt(self, level: int, optname: int, value: Any, optlen: int | None = None) -> None:
        """As the fabric's."""
        if self._doors is None or options.is_hyperv(level, optname):
            super().setsockopt(level, optname, value, optlen)
            return
        self._check_open()
        self._doors.set_option(level, optname, value, *([] if optlen is None else [optlen]))

    def close(self) -> None:
        """Close the socket, or leave that to the last of its files; a listener's files are removed."""
        super().close()
        if self.fileno() < 0:
            if self._greeting is not None:
                self._greeting.give_up()
            if self._doors is not None:
                self._doors.close()

    def detach(self) -> int:
        """Give the descriptor away; the caller owns it.

        Raises:
            OSError: EINPROGRESS: a connect is pending; EOPNOTSUPP: it listens.
        """
        self._refuse_doors()
        return super().detach()

    def dup(self) -> Self:
        """A second socket object and descriptor of the same connection.

        Raises:
            OSError: EINPROGRESS: a connect is pending; EOPNOTSUPP: it listens; EMFILE; EBADF.
        """
        self._refuse_doors()
        return super().dup()

    def __reduce__(self) -> tuple[Any, ...]:
        self._refuse_doors()
        return super().__reduce__()

    def _refuse_doors(self) -> None:
        if self._doors is not None:
            text = "a listener of hybrid sockets is several sockets and their files; share the object"
            raise OSError(errno.EOPNOTSUPP, text)


socket.__module__ = "hvsock"  # where programs find it


def _that_is(vm_id: VmId) -> Vm:
    """The VM to connect to.

    Raises:
        OSError: EADDRNOTAVAIL: a word that stands for no VM; EHOSTUNREACH: there is none, or it has no path.
    """
    vm = known.with_id(vm_id) or (known.with_cid(vm_id.cid) if vm_id.cid is not None else None)
    if vm is not None and vm.path is None:
        raise failures.no_path(vm, known.where_to_write("vms"))
    if vm is not None:
        return vm
    if vm_id in WELL_KNOWN_VMIDS.values():
        raise failures.no_destination(vm_id)
    raise failures.unknown(vm_id, known.where_to_write("vms"))


def _that_may_connect(vm_id: VmId) -> list[Vm]:
    """The VMs that a listener takes connections from.

    Raises:
        OSError: EADDRNOTAVAIL: there is none.
    """
    if vm_id in (HV_GUID_CHILDREN, HV_GUID_WILDCARD):
        found = [vm for vm in known.vms() if vm.path is not None and not known.is_gone(vm)]
    else:
        found = [_that_is(vm_id)]
    if not found:
        raise failures.no_vms(known.where_to_write("vms"))
    return found


def _is_readable(descriptor: int, limit: float | None) -> bool:
    """Whether a descriptor is readable before `limit`, in seconds of time.monotonic."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if limit is None else max(0.0, limit - time.monotonic()) * 1000))
