"""Connects from the fabric to the guest: the device's listener, and what the broker tells it.

Each arrives in a courier, with the request still in the connection. The guest is asked; when it takes the
connection, the device says so and takes the request off, which makes the connector connected. When it does
not, the device writes a refusal and closes, as the broker does.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvsock.errors import ProtocolError
from hvsock.fabric import client, messages
from hvsock.fabric.messages import DeviceCourier, Established, Flag, Notice, NoticeKind, Reply
from hvsock.virtio.connection import Reason
from hvsock.virtio.packet import SEQPACKET, STREAM

from .ends import HostEnd, new_mark

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor
    from hvsock.virtio.muxer import Muxer

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
"""Connections to the guest that wait for the device; the kernel cuts it to net.core.somaxconn."""
ACCEPTS_PER_TURN: Final = 64
"""Couriers taken before other work has its turn."""
MAX_COURIER_DESCRIPTORS: Final = 2
"""With a courier come the connection and the end mark of a device at the other end."""
_TEXTS: Final = {
    Reason.REFUSED: (errno.ECONNREFUSED, "nothing listens there in the guest"),
    Reason.TIMED_OUT: (errno.ETIMEDOUT, "the guest did not answer within the connect time-out"),
    Reason.CANCELLED: (errno.ECONNREFUSED, "the service was disabled, or its partition removed"),
}
_OTHER_TEXT: Final = (errno.ECONNREFUSED, "the guest's sockets were reset")
_ENDED = select.EPOLLIN | select.EPOLLRDHUP


class OfferedEnd(HostEnd):
    """The host's side of a connection that the guest is asked to take."""

    __slots__ = ()

    def accept(self) -> None:
        """The guest took it: say so, and take the request off the connection."""
        assert self._mark is not None, "an offered connection has an end mark"
        with contextlib.suppress(OSError):  # the connector is gone, which shows as a hang-up
            socket.send_fds(self.sock, [Established().pack()], [self._mark])
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
        self.say(*_TEXTS.get(reason, _OTHER_TEXT))

    def say(self, code: int, text: str) -> None:
        """Write a refusal."""
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
        self._links: set[socket.socket] = set()
        self.asleep = False
        """Whether the VM is paused: the guest will answer later, or the connect times out."""
        binding = client.bind_device(folder)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, binding.descriptor)
        try:
            self._listener.setblocking(False)
            self._listener.listen(BACKLOG)
            client.listen(folder, binding.listener_id, BACKLOG)
            reactor.watch(self._listener.fileno(), select.EPOLLIN, self._accept)
        except BaseException:
            self._listener.close()
            raise

    def close(self) -> None:
        """Take nothing any more."""
        for sock in (self._listener, *self._links):
            self._reactor.forget(sock.fileno())
            sock.close()
        self._links.clear()

    def _accept(self, events: int) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                link, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("a connection to the guest waits: %s", error.strerror)
                return
            link.setblocking(False)
            self._links.add(link)
            try:
                self._reactor.watch(link.fileno(), _ENDED, functools.partial(self._read, link))
            except OSError:
                self._drop(link)

    def _read(self, link: socket.socket, events: int) -> None:
        """A message, then DONE and the end; the broker needs the message to be taken, and nothing else."""
        try:
            data, descriptors, _, _ = socket.recv_fds(
                link, messages.DEVICE_MESSAGE_BYTES, MAX_COURIER_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data or data == messages.DONE:
            self._drop(link)
            return
        try:
            message = messages.parse_device_message(data)
        except ProtocolError as error:
            log.warning("not understood: %s", error)
            _close_all(descriptors)
            self._drop(link)
            return
        if isinstance(message, Notice):
            _close_all(descriptors)
            self._muxer.cancel(message.service_id if message.kind is NoticeKind.CANCEL_SERVICE else None)
        elif descriptors:
            self._offer(message, descriptors)
        else:
            log.warning("a connection to the guest is lost: too many open files")
        self._changed()

    def _offer(self, courier: DeviceCourier, descriptors: list[int]) -> None:
        sock = socket.socket(socket.AF_UNIX, courier.type, 0, descriptors[0])
        sock.setblocking(False)
        peer_mark = descriptors[1] if len(descriptors) > 1 else None
        end = OfferedEnd(self._reactor, self._muxer, self._changed, sock, new_mark(), peer_mark)
        if not (self._muxer.attached or self.asleep):
            self._decline(end, "the VM is not running, or its driver for virtio sockets is not loaded")
            return
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
            self._decline(end, "the VM has as many connections as its device allows")
            return
        end.connection = connection
        try:
            end.watch_for_hang_up()
        except OSError:
            self._muxer.drop(connection, Reason.HOST_RESET, True)

    def _decline(self, end: OfferedEnd, text: str) -> None:
        end.say(errno.ECONNREFUSED, text)
        end.close()

    def _drop(self, link: socket.socket) -> None:
        self._links.discard(link)
        self._reactor.forget(link.fileno())
        link.close()


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
