"""The way up: where a fabric's host is a VM or a container itself, connections to its own parent.

To the broker this process is one more client, like the device of a VM: what is for the parent of the host comes to
its one listener, with the request unread. It connects to the real parent, and then takes the request off, which
makes the connector connected; or it refuses as the broker does. The rules of the outer fabric decide.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket as _stdlib
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from hvsock.addresses import HV_GUID_PARENT, Address, ServiceId, VmId, describe_vm_id
from hvsock.constants import HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, HVSOCKET_CONNECT_TIMEOUT_DEFAULT
from hvsock.errors import HvsockError, UsageError
from hvsock.fabric import messages, paths
from hvsock.fabric.couriers import Couriers
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import DeviceCourier, Established, Flag, Reply
from hvsock.fabric.reactor import Reactor, ending_by_signals
from hvsock.sockets import socket as over_fabric
from hvsock.sockets.patience import ANSWER_GRACE_SECONDS
from hvsock.sockets.socket import RETRY_SECONDS
from hvsock.sockets.vsock import ports
from hvsock.sockets.vsock import socket as over_vsock

from .complaints import Complaints
from .connection import Joined
from .process import connections_that_fit

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

if TYPE_CHECKING:
    from hvsock.fabric.messages import Notice
    from hvsock.sockets.socket import socket

log = logging.getLogger(__name__)

Way = Callable[[ServiceId], "socket"]
"""Makes a socket that is not connected yet and whose parent is the one that is meant, ready for a connect to a
service; may take a moment, and raise OSError."""

VSOCK: Final = "vsock"
UNIX: Final = "unix:"
MAX_CONNECTS: Final = 32
"""Connects under way at once, each in a thread; others wait for their turn."""
MAX_CONNECTS_OF_ONE: Final = 8
"""Connects of one partition under way at once; its others wait for them, and those of other partitions do not.
A connector chooses how long its connect may take, so without this one container would have all threads."""
MAX_CONNECTIONS_OF_ONE: Final = 512
"""Most connections of one partition, those under way among them, so that one container locks out no other."""


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
        self._offers: set[_Offered] = set()
        self._joined: set[Joined] = set()
        self._by_partition: Counter[VmId] = Counter()
        self._connecting: Counter[VmId] = Counter()
        self._waiting: defaultdict[VmId, deque[tuple[DeviceCourier, _Offered]]] = defaultdict(deque)
        self._complaints = Complaints(reactor)
        self._ending = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads = ThreadPoolExecutor(MAX_CONNECTS, "hvsock-uplink")
        try:
            self._couriers = Couriers(reactor, folder, self._take, self._heed)
        except BaseException:
            self._threads.shutdown()
            os.close(self._ending)
            raise

    def close(self) -> None:
        """Close everything; connections are reset, and connects under way refused."""
        self._couriers.close()
        os.eventfd_write(self._ending, 1)
        self._threads.shutdown(cancel_futures=True)
        os.close(self._ending)
        for offered in self._offers:
            offered.give_up()
        self._offers.clear()
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
            self._by_partition[who] += 1
            self._offers.add(offered)
            self._waiting[who].append((courier, offered))
            self._start(who)

    def _start(self, who: VmId) -> None:
        """Start what waits of one partition, as far as it may have connects under way."""
        waiting = self._waiting[who]
        while waiting and self._connecting[who] < MAX_CONNECTS_OF_ONE:
            self._connecting[who] += 1
            self._threads.submit(self._connect, *waiting.popleft())
        if not waiting:
            del self._waiting[who]

    def _connect(self, courier: DeviceCourier, offered: _Offered) -> None:
        """In a thread: connect to the real parent, and say what came of it."""
        try:
            offered.above = connected(self._way, courier, offered, self._ending)
        except (OSError, HvsockError) as error:
            code = getattr(error, "errno", None) or errno.ETIMEDOUT
            offered.refuse(code, getattr(error, "strerror", None) or str(error))
        except Exception:
            log.exception("a defect of the way up: a connection to %s is refused", courier.own.service_id)
            offered.refuse(errno.ECONNREFUSED, "the way up failed; its log says why")
        finally:
            self._reactor.call_from_thread(lambda: self._join(courier, offered))

    def _join(self, courier: DeviceCourier, offered: _Offered) -> None:
        who, above = courier.peer.vm_id, offered.above
        self._offers.discard(offered)
        _decrease(self._connecting, who)
        self._start(who)
        if above is None:
            offered.close()
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


def connected(way: Way, courier: DeviceCourier, connector: _stdlib.socket, ending: int) -> socket:
    """A connection to the real parent, for the service and within the time that a courier asks for.

    Args:
        way: where it leads.
        courier: what is asked for.
        connector: who asks; a hang-up of it ends this.
        ending: a descriptor; this ends once it can be read.

    Returns:
        It is non-blocking.

    Raises:
        OSError, HvsockError: there is none; nothing is left open.
    """
    milliseconds = courier.milliseconds or HVSOCKET_CONNECT_TIMEOUT_DEFAULT
    limit = time.monotonic() + milliseconds / 1000 + ANSWER_GRACE_SECONDS
    _pause(connector, ending, None, 0)
    sock = way(courier.own.service_id)
    try:
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, milliseconds)
        sock.setblocking(False)
        while True:
            try:
                sock.connect(Address(HV_GUID_PARENT, courier.own.service_id))
                return sock
            except OSError as error:
                if error.errno not in (errno.EINPROGRESS, errno.EALREADY, errno.ENOBUFS):
                    raise
                pending = error.errno != errno.ENOBUFS  # that is a full queue, and nothing has begun
            left = limit - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "the parent of this host did not answer")
            _pause(connector, ending, sock if pending else None, left if pending else RETRY_SECONDS)
    except BaseException:
        sock.close()
        raise


def _pause(connector: _stdlib.socket, ending: int, connecting: socket | None, seconds: float) -> None:
    """Wait until a connect is settled, `seconds` at most.

    Raises:
        OSError: ECONNABORTED: the connector has hung up; ECONNREFUSED: the way up ends.
    """
    poll = select.poll()
    poll.register(connector, 0)  # a hang-up counts in any case, and its request lies unread
    poll.register(ending, select.POLLIN)
    if connecting is not None:
        poll.register(connecting, select.POLLOUT)
    ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
    if ending in ready:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the way up ends")
    if connector.fileno() in ready:
        raise ConnectionAbortedError(errno.ECONNABORTED, "the connector has hung up")


class _Offered(_stdlib.socket):
    """The connector's connection, which is pending until :meth:`establish`.

    An end of it is graceful only if it is shut down.

    Attributes:
        above: the connection to the real parent, once there is one.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(_stdlib.AF_UNIX, _stdlib.SOCK_STREAM, 0, descriptor)
        self.setblocking(False)
        self.above: socket | None = None
        self._mark: EndMark | None = None

    def give_up(self) -> None:
        """Close it, and the connection to the real parent."""
        self.close()
        if self.above is not None:
            self.above.close()

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
