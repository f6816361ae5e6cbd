"""Connects of the guest to the fabric: each is a connect through the control socket of the VM's partition."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hvsock.addresses import HV_GUID_PARENT, Address, ServiceId, VmId
from hvsock.constants import HVSOCKET_CONNECT_TIMEOUT_DEFAULT, VSOCK_BROKER_PORT
from hvsock.errors import ProtocolError
from hvsock.fabric import messages, paths
from hvsock.fabric.messages import Established, Flag, Op, Request
from hvsock.virtio.connection import BROKEN, Connection
from hvsock.virtio.packet import HOST_CID, STREAM

from .ends import HostEnd, new_mark

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor, Timer
    from hvsock.virtio.muxer import Muxer

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.005
"""Pause of a connect that finds the broker's queue full."""
_MINIMAL_BUFFER: Final = 0
_CONTROL_SOCKETS: Final = {
    socket.SOCK_STREAM: paths.STREAM_SOCKET,
    socket.SOCK_SEQPACKET: paths.SEQPACKET_SOCKET,
}


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
        assert self.muxer is not None, "the muxer is set before it runs"
        try:
            if connection.peer_cid == HOST_CID and connection.peer_port == VSOCK_BROKER_PORT:
                self._call(self.muxer, connection)
            else:
                connect = _Connect(self._reactor, self.muxer, connection, self._folder, self._settled)
                self._under_way[connection] = connect
                connect.begin()
        except OSError as error:
            log.warning("a connect of the guest fails: %s", error.strerror)
            self.cancel(connection)
            self.muxer.declined(connection)

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

    def _settled(self, connect: _Connect) -> None:
        """A connect is established or refused; its descriptors are given away or closed."""
        connection, muxer = connect.connection, self.muxer
        assert muxer is not None, "the muxer is set before it runs"
        del self._under_way[connection]
        sock, mark, established, peer_mark = connect.take()
        if sock is None:
            muxer.declined(connection)
        else:
            end = HostEnd(self._reactor, muxer, self._changed, sock, mark, peer_mark)
            self._open(muxer, connection, end, established.flags)
        self._changed()

    def _call(self, muxer: Muxer, connection: Connection) -> None:
        """The guest calls the broker: names are looked up, for instance."""
        if connection.type != STREAM:
            raise ConnectionRefusedError("calls are streams")
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            paths.at(self._folder, paths.STREAM_SOCKET, link.connect)
        except BaseException:
            link.close()
            raise
        self._open(muxer, connection, CallEnd(self._reactor, muxer, self._changed, link, None), Flag.NONE)

    def _open(self, muxer: Muxer, connection: Connection, end: HostEnd, flags: Flag) -> None:
        try:
            end.watch()
        except OSError:
            end.close()
            muxer.declined(connection)
            return
        end.connection = connection
        service = ServiceId.from_port(connection.peer_port)
        survives = bool(flags & Flag.CONNECTED_SUSPEND)
        muxer.opened(connection, end, service, survives_pause=survives)


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
        """The broker answers all the same, and ends by itself."""


class _Connect:
    """One connect of the guest; it owns its descriptors until take()."""

    def __init__(
        self,
        reactor: Reactor,
        muxer: Muxer,
        connection: Connection,
        folder: str,
        settled: Callable[[_Connect], None],
    ) -> None:
        self.connection = connection
        self._reactor = reactor
        self._settled = settled
        self._folder = folder
        self._timer: Timer | None = None
        self._give_up_at = reactor.clock() + HVSOCKET_CONNECT_TIMEOUT_DEFAULT / 1000
        self._established: tuple[Established, int | None] | None = None
        self._mark = new_mark()
        kind = socket.SOCK_STREAM if connection.type == STREAM else socket.SOCK_SEQPACKET
        try:
            self._sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        except BaseException:
            os.close(self._mark)
            raise
        self._buffer = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MINIMAL_BUFFER)
        cid = connection.peer_cid
        vm_id = HV_GUID_PARENT if cid == HOST_CID else VmId.from_cid(cid)
        self._control = _CONTROL_SOCKETS[kind]
        self._request = Request(
            Op.CONNECT,
            Address(vm_id, ServiceId.from_port(connection.peer_port)),
            kind,
            Flag.END_MARK,
            HVSOCKET_CONNECT_TIMEOUT_DEFAULT,
            os.urandom(16),
        )

    def begin(self) -> None:
        """Send the request, now or as soon as the broker's queue has room.

        Raises:
            OSError: no broker, or something is short.
        """
        self._timer = None
        try:
            paths.at(self._folder, self._control, self._sock.connect)
        except BlockingIOError:
            if self._reactor.clock() >= self._give_up_at:
                raise
            self._timer = self._reactor.after(RETRY_SECONDS, self._again)
            return
        socket.send_fds(self._sock, [self._request.pack()], [self._mark])
        self._reactor.watch(self._sock.fileno(), select.EPOLLOUT, self._ready)

    def take(self) -> tuple[socket.socket | None, int, Established, int | None]:
        """What was connected: socket, end mark, what the accepting side says, and its end mark.

        None as the socket where it was refused.
        """
        if self._established is None:
            self.close()
            return None, -1, Established(), None
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer // 2)  # the kernel doubles it
        return self._sock, self._mark, *self._established

    def close(self) -> None:
        """Give up."""
        if self._timer is not None:
            self._timer.cancel()
        self._reactor.forget(self._sock.fileno())
        self._sock.close()
        os.close(self._mark)

    def _again(self) -> None:
        try:
            self.begin()
        except OSError as error:
            log.warning("a connect of the guest fails: %s", error.strerror)
            self._settled(self)

    def _ready(self, events: int) -> None:
        self._reactor.forget(self._sock.fileno())
        if not events & select.EPOLLERR:  # an error: it was closed with the request unread
            with contextlib.suppress(OSError, ProtocolError):
                self._established = self._receive_established()
        self._settled(self)

    def _receive_established(self) -> tuple[Established, int | None]:
        """What the accepting side wrote ahead of the payload."""
        data, descriptors, _, _ = socket.recv_fds(
            self._sock, messages.ESTABLISHED_BYTES, 1, socket.MSG_CMSG_CLOEXEC
        )
        try:
            established = Established.unpack(data)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return established, descriptors[0] if descriptors else None
