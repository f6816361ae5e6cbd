"""Connects from the fabric to the guest: the device's listener, and what the broker tells it.

Each arrives in a courier, with the request still in the connection. The guest is asked; when it takes the
connection, the device says so and takes the request off, which makes the connector connected. When it does
not, the device writes a refusal and closes, as the broker does.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvsock.addresses import ServiceId
from hvsock.fabric import messages
from hvsock.fabric.couriers import Couriers
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import DeviceCourier, Established, Flag, Notice, NoticeKind, Reply
from hvsock.virtio.connection import Reason
from hvsock.virtio.packet import SEQPACKET, STREAM

from .ends import HostEnd

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor
    from hvsock.virtio.muxer import Muxer

_TEXTS: Final = {
    Reason.REFUSED: (errno.ECONNREFUSED, "nothing listens there in the guest"),
    Reason.TIMED_OUT: (errno.ETIMEDOUT, "the guest did not answer within the connect time-out"),
    Reason.CANCELLED: (errno.ECONNREFUSED, "the service was disabled, or its partition removed"),
}
_OTHER_TEXT: Final = (errno.ECONNREFUSED, "the guest's sockets were reset")
_NOT_UP: Final = "the VM is not running, or its driver for virtio sockets is not loaded"


class OfferedEnd(HostEnd):
    """The host's side of a connection that the guest is asked to take."""

    __slots__ = ()

    def accept(self) -> None:
        """The guest took it: say so, and take the request off the connection."""
        assert self._mark is not None, "an offered connection has an end mark"
        assert self.connection is not None, "it is offered"
        established = Established(service_id=ServiceId(self.connection.service))
        with contextlib.suppress(OSError):  # the connector is gone, which shows as a hang-up
            socket.send_fds(self.sock, [established.pack()], [self._mark.fileno()])
            self.sock.recv(messages.REQUEST_BYTES)
        with contextlib.suppress(OSError):  # it is watched already, so nothing is short
            self.watch()

    def watch_for_hang_up(self) -> None:
        """While the guest is asked, the request lies unread, and the connector's end alone matters.

        Raises:
            OSError: the user watches too many descriptors.
        """
        self._reactor.watch(self.sock.fileno(), select.EPOLLRDHUP, self._left)

    def _left(self, events: int) -> None:
        if self.connection is not None:
            self._muxer.hung_up(self.connection)
            self._changed()

    def refuse(self, reason: Reason) -> None:
        """The guest did not take it: write why; the request stays unread."""
        self._say(*_TEXTS.get(reason, _OTHER_TEXT))

    def decline(self, code: int, text: str) -> None:
        """The guest is not even asked: say why, and close."""
        self._say(code, text)
        self.close()

    def _say(self, code: int, text: str) -> None:
        with contextlib.suppress(OSError):
            self.sock.send(Reply.refuse(code, text).pack())


class Offers:
    """The device's listener in its partition.

    Args:
        reactor: watches the descriptors.
        muxer: asks the guest.
        folder: the VM's partition folder.
        changed: called when the muxer was told something.

    Raises:
        OSError: the broker refuses the binding; EADDRINUSE: the VM has another device.
    """

    def __init__(self, reactor: Reactor, muxer: Muxer, folder: str, changed: Callable[[], None]) -> None:
        self._reactor = reactor
        self._muxer = muxer
        self._changed = changed
        self.asleep = False
        """Whether the VM is paused: the guest will answer later, or the connect times out."""
        self._couriers = Couriers(reactor, folder, self._take, self._heed)

    def close(self) -> None:
        """Take nothing any more."""
        self._couriers.close()

    def _heed(self, notice: Notice) -> None:
        self._muxer.cancel(notice.service_id if notice.kind is NoticeKind.CANCEL_SERVICE else None)
        self._changed()

    def _take(self, courier: DeviceCourier, descriptors: list[int], cut: bool) -> None:
        """A connection that came: its socket, and from another device its end mark."""
        sock = socket.socket(socket.AF_UNIX, courier.type, 0, descriptors[0])
        sock.setblocking(False)
        peer_mark = EndMark.received(descriptors[1]) if len(descriptors) > 1 else None
        try:
            mark = None if cut or _lacks(courier, peer_mark) else EndMark.new()
        except OSError:
            mark = None
        end = OfferedEnd(self._reactor, self._muxer, self._changed, sock, mark, peer_mark)
        if mark is None:
            end.decline(errno.ENOBUFS, "the VM's device is short of descriptors")
        elif not (self._muxer.attached or self.asleep):
            end.decline(errno.ECONNREFUSED, _NOT_UP)
        else:
            self._offer(courier, end)
        self._changed()

    def _offer(self, courier: DeviceCourier, end: OfferedEnd) -> None:
        """Ask the guest."""
        connection = self._muxer.offer(
            end,
            courier.port,
            peer_cid=courier.source_cid,
            type_=STREAM if courier.type == socket.SOCK_STREAM else SEQPACKET,
            seconds=courier.milliseconds / 1000,
            service=courier.own.service_id,
            survives_pause=bool(courier.flags & Flag.CONNECTED_SUSPEND),
        )
        if connection is None:
            end.decline(errno.ECONNREFUSED, "the VM has as many connections as its device allows")
            return
        end.connection = connection
        try:
            end.watch_for_hang_up()
        except OSError:
            self._muxer.drop(connection, Reason.HOST_RESET, True)


def _lacks(courier: DeviceCourier, peer_mark: EndMark | None) -> bool:
    """Whether an end mark should have come along, and none did."""
    return bool(courier.flags & Flag.END_MARK) and peer_mark is None
