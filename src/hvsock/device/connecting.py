"""Connects of the guest to the fabric: each is a connect through the control socket of the VM's partition."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hvsock.addresses import HV_GUID_PARENT, SERVICE_WILDCARD, Address, ServiceId, VmId
from hvsock.constants import ANSWER_GRACE_SECONDS, HVSOCKET_CONNECT_TIMEOUT_DEFAULT, VSOCK_BROKER_PORT
from hvsock.errors import ProtocolError
from hvsock.fabric import client, messages, passing, paths
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import Established, Flag, Op, Request
from hvsock.virtio.connection import BROKEN, Connection, Reason
from hvsock.virtio.packet import HOST_CID, STREAM

from .ends import HostEnd

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor, Timer
    from hvsock.virtio.muxer import Muxer

log = logging.getLogger(__name__)


class Connects:
    """The connects that are under way; what the muxer asks of the host.

    Args:
        reactor: watches the sockets.
        folder: the VM's partition folder.
        changed: called when the muxer was told something.
    """

    def __init__(self, reactor: Reactor, folder: str, changed: Callable[[], None]) -> None:
        self._reactor = reactor
        self._folder = folder
        self._changed = changed
        self._under_way: dict[Connection, _Connect] = {}
        self.muxer: Muxer | None = None

    def connect(self, connection: Connection) -> None:
        """See :meth:`hvsock.virtio.muxer.Host.connect`."""
        muxer = self._muxer()
        try:
            if connection.peer_cid == HOST_CID and connection.peer_port == VSOCK_BROKER_PORT:
                self._call(muxer, connection)
            else:
                connect = _Connect(self._reactor, connection, self._folder, self._settled)
                self._under_way[connection] = connect
                connect.begin()
        except OSError as error:
            log.warning("a connect of the guest fails: %s", error.strerror)
            self.cancel(connection)
            muxer.declined(connection)

    def cancel(self, connection: Connection) -> None:
        """See :meth:`hvsock.virtio.muxer.Host.cancel`."""
        connect = self._under_way.pop(connection, None)
        if connect is not None:
            connect.close()

    def close(self) -> None:
        """Give up all connects."""
        for connect in self._under_way.values():
            connect.close()
        self._under_way.clear()

    def _muxer(self) -> Muxer:
        assert self.muxer is not None, "the muxer is set before it runs"
        return self.muxer

    def _settled(self, connect: _Connect, refused: Reason | None, peer_mark: EndMark | None = None) -> None:
        """A connect is established, or refused for a reason."""
        connection, muxer = connect.connection, self._muxer()
        del self._under_way[connection]
        if refused is not None:
            connect.close()
            muxer.declined(connection, refused)
        else:
            sock, mark, established = connect.take()
            service = established.service_id
            if service == SERVICE_WILDCARD:
                service = ServiceId.from_port(connection.peer_port)
            end = HostEnd(self._reactor, muxer, self._changed, sock, mark, peer_mark)
            self._open(muxer, connection, end, service, established.flags)
        self._changed()

    def _call(self, muxer: Muxer, connection: Connection) -> None:
        """The guest calls the broker: names are looked up, for instance."""
        if connection.type != STREAM:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "calls of the broker are streams")
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            paths.at(self._folder, paths.STREAM_SOCKET, link.connect)
        except BaseException:
            link.close()
            raise
        end = CallEnd(self._reactor, muxer, self._changed, link, None)
        self._open(muxer, connection, end, ServiceId.from_port(VSOCK_BROKER_PORT), Flag.NONE)

    def _open(self, muxer: Muxer, connection: Connection, end: HostEnd, service: ServiceId, flags: Flag) -> None:
        try:
            end.watch()
        except OSError as error:
            log.warning("a connect of the guest fails: %s", error.strerror)
            end.close()
            muxer.declined(connection)
            return
        end.connection = connection
        muxer.opened(connection, end, service, survives_pause=bool(flags & Flag.CONNECTED_SUSPEND))


class CallEnd(HostEnd):
    """The control socket itself, for a guest that calls the broker; it takes one request, and calls alone.

    A guest connects by its own address family; connects and binds by this way would only be in its own way.
    """

    __slots__ = ("_request",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._request = bytearray()

    def send(self, pieces: list[Any]) -> int:
        """Keep the request until it is whole, and pass it on."""
        size = sum(map(len, pieces))
        if len(self._request) + size > messages.REQUEST_BYTES:
            return BROKEN
        for piece in pieces:
            self._request += piece
        if len(self._request) == messages.REQUEST_BYTES:
            try:
                if Request.unpack(bytes(self._request)).op is not Op.CALL:
                    return BROKEN
                # a fresh socket takes all of it
                if self.sock.send(self._request) != messages.REQUEST_BYTES:
                    return BROKEN
            except (OSError, ProtocolError):
                return BROKEN
        return size

    def finish(self) -> None:
        """After a whole request the broker answers all the same, and ends by itself; half a one has no answer."""
        if len(self._request) < messages.REQUEST_BYTES:
            self._shutdown(socket.SHUT_RDWR)


class _Connect:
    """One connect of the guest; it owns its descriptors until take().

    Args:
        reactor: watches the socket.
        connection: what the guest connects.
        folder: the VM's partition folder.
        settled: called at its end, with the reason of a refusal, or None and the other device's end mark.

    Raises:
        OSError: descriptors are short.
    """

    def __init__(
        self,
        reactor: Reactor,
        connection: Connection,
        folder: str,
        settled: Callable[[_Connect, Reason | None, EndMark | None], None],
    ) -> None:
        self.connection = connection
        self._reactor = reactor
        self._settled = settled
        self._folder = folder
        self._established = Established()
        self._retry: Timer | None = None
        self._mark = EndMark.new()
        kind = socket.SOCK_STREAM if connection.type == STREAM else socket.SOCK_SEQPACKET
        self._sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        self._buffer = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, client.MINIMAL_BUFFER)
        cid = connection.peer_cid
        vm_id = HV_GUID_PARENT if cid == HOST_CID else VmId.from_cid(cid)
        address = Address(vm_id, ServiceId.from_port(connection.peer_port))
        milliseconds = HVSOCKET_CONNECT_TIMEOUT_DEFAULT
        self._request = Request(Op.CONNECT, address, kind, Flag.END_MARK, milliseconds, os.urandom(16))
        self._deadline = reactor.after(milliseconds / 1000 + ANSWER_GRACE_SECONDS, self._expire)

    def begin(self) -> None:
        """Send the request, now or as soon as the broker's queue has room.

        Raises:
            OSError: no broker, or something is short.
        """
        self._retry = None
        try:
            client.start_connect(self._sock.connect, self._send, self._folder, self._request)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self._retry = self._reactor.after(client.RETRY_SECONDS, self._again)
            return
        self._reactor.watch(self._sock.fileno(), select.EPOLLOUT, self._ready)

    def take(self) -> tuple[socket.socket, EndMark, Established]:
        """What was connected, the end mark, and what the accepting side said; all is the caller's."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer // 2)  # the kernel doubles it
        return self._sock, self._mark, self._established

    def close(self) -> None:
        """Give up."""
        self._rest()
        self._sock.close()
        self._mark.close()

    def _rest(self) -> None:
        self._deadline.cancel()
        if self._retry is not None:
            self._retry.cancel()
        self._reactor.forget(self._sock.fileno())

    def _send(self, data: bytes) -> int:
        return socket.send_fds(self._sock, [data], [self._mark.fileno()])

    def _again(self) -> None:
        try:
            self.begin()
        except OSError as error:
            log.warning("a connect of the guest fails: %s", error.strerror)
            self._settled(self, Reason.REFUSED, None)

    def _expire(self) -> None:
        self._settled(self, Reason.TIMED_OUT, None)

    def _ready(self, events: int) -> None:
        self._rest()
        refused: Reason | None = Reason.REFUSED
        peer_mark = None
        if not events & select.EPOLLERR:  # an error: it was closed with the request unread
            with contextlib.suppress(OSError, ProtocolError):
                peer_mark = self._receive_established()
                refused = None
        self._settled(self, refused, peer_mark)

    def _receive_established(self) -> EndMark | None:
        """Take what the accepting side wrote ahead of the payload; the end mark of a device.

        Raises:
            OSError, ProtocolError: it is not there, or the end mark is missing; this is no connection.
        """
        data, descriptors, cut = passing.receive(self._sock, messages.ESTABLISHED_BYTES, 1)
        mark = EndMark.received(descriptors[0]) if descriptors else None
        try:
            self._established = Established.unpack(data)
            if cut or (descriptors and mark is None):
                raise ProtocolError("an established connection without the end mark that belongs to it")
        except ProtocolError:
            if mark is not None:
                mark.close()
            raise
        return mark
