"""The way up: where a fabric's host is a VM or a container itself, connections to its own parent.

To the broker this process is one more client, like the device of a VM: what is for the parent of the host comes to
its one listener, with the request unread. It connects to the real parent, and then takes the request off, which
makes the connector connected; or it refuses as the broker does. The rules of the outer fabric decide.

Threads only begin connects. What then takes its time, as a parent that does not answer, holds none of them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket as _stdlib
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from hvsock.addresses import HV_GUID_PARENT, Address, ServiceId, VmId, describe_vm_id
from hvsock.constants import (
    ANSWER_GRACE_SECONDS,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_DEFAULT,
)
from hvsock.errors import HvsockError, UsageError
from hvsock.fabric import messages, paths
from hvsock.fabric.client import RETRY_SECONDS
from hvsock.fabric.couriers import Couriers
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import DeviceCourier, Established, Flag, Reply
from hvsock.fabric.reactor import Reactor, ending_by_signals
from hvsock.sockets import socket as over_fabric
from hvsock.sockets.vsock import ports
from hvsock.sockets.vsock import socket as over_vsock

from .complaints import Complaints
from .connection import Joined
from .process import connections_that_fit

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

if TYPE_CHECKING:
    from hvsock.fabric.messages import Notice
    from hvsock.fabric.reactor import Timer
    from hvsock.sockets.socket import socket

log = logging.getLogger(__name__)

Way = Callable[[ServiceId], "socket"]
"""Makes a socket that is not connected yet and whose parent is the one that is meant, ready for a connect to a
service; may take a moment, of seconds at most, and raise OSError."""

VSOCK: Final = "vsock"
UNIX: Final = "unix:"
MAX_BEGUN_AT_ONCE: Final = 8
"""Connects that are begun at once, each in a thread; others wait for the moment that it takes."""
MAX_CONNECTS_OF_ONE: Final = 8
"""Connects of one partition under way at once; its others wait for them, and those of other partitions do not.
A connector chooses how long its connect may take, and the parent may keep only so many waiting."""
MAX_CONNECTIONS_OF_ONE: Final = 512
"""Most connections of one partition, those under way among them, so that one container locks out no other."""

_UNDER_WAY: Final = {errno.EINPROGRESS, errno.EALREADY, errno.ENOBUFS}


def way_of(text: str) -> Way:
    """The way that `text` spells: ``vsock``, or ``unix:`` and the folder of this machine's partition.

    Raises:
        UsageError: it spells none.
    """
    if text == VSOCK:
        return _vsock
    folder = text.removeprefix(UNIX)
    if folder == text or not os.path.isabs(folder):
        raise UsageError(f"{text!r} is no way up: it is vsock, or unix: and the full path of a partition's folder")
    return lambda service_id: over_fabric.socket(partition=folder)


def _vsock(service_id: ServiceId) -> socket:
    ports.learn(service_id)
    return over_vsock.socket()


def serve(way: Way, on_ready: Callable[[], None]) -> None:
    """Be the way up of the fabric whose host this process speaks for, until SIGTERM or SIGINT.

    Args:
        way: where it leads.
        on_ready: called once connections come here.

    Raises:
        OSError: ENETUNREACH: no broker answers; EADDRINUSE: there is one already; EACCES: this user may not.
    """
    reactor = Reactor()
    try:
        uplink = Uplink(reactor, paths.host_folder(paths.fabric_folder()), way, connections_that_fit())
        try:
            with ending_by_signals(reactor, reactor.stop):
                on_ready()
                reactor.run()
        finally:
            uplink.close()
    finally:
        reactor.close()


class Uplink:
    """The connections of one way up. All methods are for the reactor's thread.

    Args:
        reactor: watches everything.
        folder: the folder of the host's partition.
        way: where it leads.
        most: most connections at once.

    Raises:
        OSError: as :class:`hvsock.fabric.couriers.Couriers` says.
    """

    def __init__(self, reactor: Reactor, folder: str, way: Way, most: int) -> None:
        self._reactor = reactor
        self._way = way
        self._most = most
        self._connects: set[_Connect] = set()
        self._joined: set[Joined] = set()
        self._by_partition: Counter[VmId] = Counter()
        self._connecting: Counter[VmId] = Counter()
        self._waiting: defaultdict[VmId, deque[_Connect]] = defaultdict(deque)
        self._complaints = Complaints(reactor)
        self._threads = ThreadPoolExecutor(MAX_BEGUN_AT_ONCE, "hvsock-uplink")
        try:
            self._couriers = Couriers(reactor, folder, self._take, self._heed)
        except BaseException:
            self._threads.shutdown()
            raise

    def close(self) -> None:
        """Close everything; connections are reset, and connects under way refused."""
        self._couriers.close()
        self._threads.shutdown(cancel_futures=True)
        for connect in self._connects:
            connect.give_up()
        self._connects.clear()
        for joined in self._joined:
            joined.close()
        self._joined.clear()

    def _heed(self, notice: Notice) -> None:
        """What is disabled inside has nothing to do with what the outer fabric serves."""

    def _take(self, courier: DeviceCourier, descriptors: list[int], cut: bool) -> None:
        offered = _Offered(descriptors[0])
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        who = courier.peer.vm_id
        if cut or courier.flags & Flag.END_MARK:
            offered.refuse(errno.EINVAL, "the way up takes no connections of a device")
        elif courier.type != _stdlib.SOCK_STREAM:
            offered.refuse(errno.EPROTOTYPE, "the way up takes SOCK_STREAM alone")
        elif self._by_partition.total() >= self._most or self._by_partition[who] >= MAX_CONNECTIONS_OF_ONE:
            self._complaints.say(
                "the way up", f"a connection of {describe_vm_id(who)} is refused: there are too many"
            )
            offered.refuse(errno.ECONNREFUSED, "the way up has as many connections as it may have")
        else:
            connect = _Connect(self._reactor, self._threads, self._way, courier, offered, self._join)
            self._by_partition[who] += 1
            self._connects.add(connect)
            self._waiting[who].append(connect)
            self._start(who)

    def _start(self, who: VmId) -> None:
        """Start what waits of one partition, as far as it may have connects under way."""
        waiting = self._waiting[who]
        while waiting and self._connecting[who] < MAX_CONNECTS_OF_ONE:
            self._connecting[who] += 1
            waiting.popleft().start()
        if not waiting:
            del self._waiting[who]

    def _join(self, connect: _Connect) -> None:
        courier, offered, above = connect.courier, connect.offered, connect.above
        who = courier.peer.vm_id
        self._connects.discard(connect)
        _decrease(self._connecting, who)
        self._start(who)
        if above is None:
            _decrease(self._by_partition, who)
            return
        try:
            offered.establish(courier)
        except OSError as error:
            offered.refuse(errno.ECONNREFUSED, error.strerror or str(error))
            above.close()
            _decrease(self._by_partition, who)
            return

        def ended(joined: Joined) -> None:
            self._joined.discard(joined)
            _decrease(self._by_partition, who)

        try:
            self._joined.add(Joined(self._reactor, above, offered, ended))
        except OSError as error:  # both are closed
            _decrease(self._by_partition, who)
            self._complaints.say("the way up", f"a connection is closed: {error.strerror}")


def _decrease(counter: Counter[VmId], who: VmId) -> None:
    counter[who] -= 1
    if counter[who] <= 0:
        del counter[who]


class _Connect:
    """A connect to the real parent, for the service and within the time that a courier asks for.

    A thread begins it, since a way may have to ask somebody, which takes seconds at worst; then the reactor
    watches it. What is not said to be in a thread is for the reactor's.

    Args:
        reactor: watches it.
        threads: where it begins.
        way: where it leads.
        courier: what is asked for.
        offered: who asks; a hang-up of it ends this.
        on_end: called once it is settled, and never after :meth:`give_up`. Where it failed, `offered` was told and
            is closed.

    Attributes:
        courier, offered: as above.
        above: the connection to the real parent, non-blocking; None while there is none.
    """

    def __init__(
        self,
        reactor: Reactor,
        threads: ThreadPoolExecutor,
        way: Way,
        courier: DeviceCourier,
        offered: _Offered,
        on_end: Callable[[_Connect], None],
    ) -> None:
        self.courier = courier
        self.offered = offered
        self.above: socket | None = None
        self._reactor = reactor
        self._threads = threads
        self._way = way
        self._on_end = on_end
        self._sock: socket | None = None
        self._code = 0
        self._failure: tuple[int, str] | None = None
        self._in_thread = False
        self._milliseconds = courier.milliseconds or HVSOCKET_CONNECT_TIMEOUT_DEFAULT
        self._timers: list[Timer] = []

    def start(self) -> None:
        """Begin it."""
        limit = self._milliseconds / 1000 + ANSWER_GRACE_SECONDS
        self._timers.append(self._reactor.after(limit, self._is_late))
        try:  # its request lies unread, so nothing but a hang-up is looked for
            self._reactor.watch(self.offered.fileno(), 0, self._has_hung_up)
        except OSError as error:
            self._fail(errno.ECONNREFUSED, f"the way up: {error.strerror}")
        else:
            self._begin()

    def give_up(self) -> None:
        """Refuse it, at the end of all; no thread is at it any more."""
        self.offered.refuse(errno.ECONNREFUSED, "the way up ends")
        if self._sock is not None:
            self._sock.close()

    def _begin(self) -> None:
        def begin() -> None:
            self._try()
            self._reactor.call_from_thread(self._go_on)

        self._in_thread = True
        self._threads.submit(begin)

    def _try(self) -> None:
        """In a thread, and then in the reactor's: begin to connect, or see how that went."""
        try:
            if self._sock is None:
                self._sock = self._way(self.courier.own.service_id)
                self._sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, self._milliseconds)
                self._sock.setblocking(False)
            self._sock.connect(Address(HV_GUID_PARENT, self.courier.own.service_id))
            self._code = 0
        except (OSError, HvsockError) as error:
            self._code = getattr(error, "errno", None) or errno.ETIMEDOUT
            if self._code not in _UNDER_WAY:
                self._failure = self._code, getattr(error, "strerror", None) or str(error)
        except Exception:
            log.exception("a defect of the way up: a connection to %s is refused", self.courier.own.service_id)
            self._failure = errno.ECONNREFUSED, "the way up failed; its log says why"

    def _go_on(self) -> None:
        self._in_thread = False
        sock = self._sock
        if self._failure is not None or sock is None or not self._code:
            self._end()
        elif self._code == errno.ENOBUFS:  # a full queue, and nothing has begun
            self._timers.append(self._reactor.after(RETRY_SECONDS, self._begin))
        else:
            try:
                self._reactor.watch(sock.fileno(), select.EPOLLOUT, self._is_settled)
            except OSError as error:
                self._fail(errno.ECONNREFUSED, f"the way up: {error.strerror}")

    def _is_settled(self, _: int) -> None:
        if self._sock is not None:
            self._reactor.forget(self._sock.fileno())
        self._try()
        self._go_on()

    def _is_late(self) -> None:
        self._fail(errno.ETIMEDOUT, "the parent of this host did not answer")

    def _has_hung_up(self, _: int) -> None:
        self._reactor.forget(self.offered.fileno())
        self._fail(errno.ECONNABORTED, "the connector has hung up")

    def _fail(self, code: int, text: str) -> None:
        self._failure = code, text
        if not self._in_thread:  # else once that is over
            self._end()

    def _end(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._reactor.forget(self.offered.fileno())
        if self._sock is not None:
            self._reactor.forget(self._sock.fileno())
        if self._failure is None:
            self.above = self._sock
        else:
            self.offered.refuse(*self._failure)
            if self._sock is not None:
                self._sock.close()
        self._on_end(self)


class _Offered(_stdlib.socket):
    """The connector's connection, which is pending until :meth:`establish`.

    An end of it is graceful only if it is shut down.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(_stdlib.AF_UNIX, _stdlib.SOCK_STREAM, 0, descriptor)
        self.setblocking(False)
        self._mark: EndMark | None = None

    def establish(self, courier: DeviceCourier) -> None:
        """Make it connected.

        Raises:
            OSError: the connector is gone, or descriptors are short.
        """
        self._mark = EndMark.new()
        established = Established(service_id=courier.own.service_id)
        _stdlib.send_fds(self, [established.pack()], [self._mark.fileno()])
        self.recv(messages.REQUEST_BYTES)

    def refuse(self, code: int, text: str) -> None:
        """Say why it is not connected, and close it."""
        with contextlib.suppress(OSError):
            self.send(Reply.refuse(code, text).pack())
        self.close()

    def shutdown(self, how: int) -> None:
        """End the stream gracefully."""
        if self._mark is not None and how != _stdlib.SHUT_RD:
            self._mark.set()
        super().shutdown(how)

    def close(self) -> None:
        """Close it; what was not shut down by then is a reset."""
        super().close()
        if self._mark is not None:
            self._mark.close()
