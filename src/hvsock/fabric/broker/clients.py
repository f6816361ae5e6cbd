"""What comes in at the control sockets: one request each, from peers that may send anything.

A client has a bounded time to send its request and to take the answer; one that sends garbage, half a
message, descriptors or nothing is dropped alone. A partition has a bounded number of clients at once;
while it has that many, its control sockets rest and the kernel's queue fills up.
"""

from __future__ import annotations

import errno
import functools
import logging
import select
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final

from hvsock.addresses import Address
from hvsock.errors import HvsockError, ProtocolError
from hvsock.fabric import messages
from hvsock.fabric.messages import Op, Reply, Request
from hvsock.topology.access import ROOT_UID, Subject
from hvsock.topology.partitions import Kind, Partition

from . import binding, calls
from .handover import Handover

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it is built on epoll and AF_UNIX")

if TYPE_CHECKING:
    from .broker import Broker

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 5.0
"""Time for a client to send its request, and to take the answer; both take less than 1 ms on a machine at rest."""
MAX_CLIENTS_PER_PARTITION: Final = 4096
"""Requests of one partition under way at once, one descriptor each (fewer where few descriptors are allowed)."""
ACCEPTS_PER_WAKE_UP: Final = 64
"""Clients taken from one control socket before the others have their turn."""
EXHAUSTED_SECONDS: Final = 0.05
"""Rest of a control socket after the broker ran out of descriptors."""

_PEERCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13
_PEERGROUPS_BYTES = 1024  # the most that Python's getsockopt takes: a user in over 256 groups has the first alone
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


class Gate:
    """The control sockets of one partition, and its clients."""

    def __init__(self, broker: Broker, partition: Partition, sockets: list[socket.socket]) -> None:
        self.broker = broker
        self.partition = partition
        self.clients: set[Client] = set()
        self._sockets = sockets
        self._open = False
        self._closed = False
        self._open_sockets()

    def close(self) -> None:
        """Take no more clients; those there are go on."""
        self._rest()
        self._closed = True
        for sock in self._sockets:
            sock.close()

    def joined(self, client: Client) -> None:
        """Count a client in."""
        self.clients.add(client)
        if len(self.clients) >= self.broker.max_clients:
            self._rest()

    def left(self, client: Client) -> None:
        """Count a client out."""
        self.clients.discard(client)
        if not self._open and len(self.clients) < self.broker.max_clients:
            self._open_sockets()

    def _open_sockets(self) -> None:
        if self._open or self._closed:
            return
        self._open = True
        for sock in self._sockets:
            self.broker.reactor.watch(sock.fileno(), select.EPOLLIN, functools.partial(self._accept, sock))

    def _rest(self) -> None:
        if self._open:
            self._open = False
            for sock in self._sockets:
                self.broker.reactor.forget(sock.fileno())

    def _accept(self, sock: socket.socket, events: int) -> None:
        for _ in range(ACCEPTS_PER_WAKE_UP):
            if not self._open:
                return
            try:
                connection, address = sock.accept()
            except BlockingIOError:
                return
            except OSError as error:  # EMFILE, ENFILE, ENOMEM: the client stays in the kernel's queue
                log.warning("no new clients for a moment: %s", error)
                self._rest()
                self.broker.reactor.after(EXHAUSTED_SECONDS, self._open_sockets)
                return
            Client(self, connection, address)


class Client:
    """One peer at a control socket, from its arrival to the answer."""

    __slots__ = ("_outgoing", "arrived", "bound_path", "gate", "handover", "sock")

    def __init__(self, gate: Gate, sock: socket.socket, bound_path: object) -> None:
        self.gate = gate
        self.sock = sock
        self.bound_path = bound_path if isinstance(bound_path, str) else ""
        self.arrived = gate.broker.reactor.clock()
        self.handover: Handover | None = None
        self._outgoing = memoryview(b"")
        gate.joined(self)
        gate.broker.expect(self)
        self._ready(0)  # the request is often there already
        if self in gate.clients and not self._outgoing:
            gate.broker.reactor.watch(sock.fileno(), _READ, self._ready)

    @property
    def subject(self) -> Subject | None:
        """The user at the other end where that is checked: in the host partition alone."""
        if self.gate.partition.kind is not Kind.HOST:
            return None
        _, uid, gid = self.credentials()
        if uid in (ROOT_UID, self.gate.broker.rules.owner.uid):
            return Subject(uid)
        try:
            raw = self.sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _PEERGROUPS_BYTES)
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
            raw = b""
        return Subject(uid, frozenset(struct.unpack(f"{len(raw) // 4}I", raw)) | {gid})

    def credentials(self) -> tuple[int, int, int]:
        """Process, user and group at the other end when it connected; 0 or overflow ids from other namespaces."""
        pid, uid, gid = _PEERCRED.unpack(
            self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        )
        return pid, uid, gid

    def answer(self, reply: Reply) -> None:
        """Send `reply` and end; what the peer does not take in time is dropped."""
        self._outgoing = memoryview(reply.pack())
        self._send()

    def refuse(self, code: int, text: str) -> None:
        """End a request with a refusal."""
        self.answer(Reply.refuse(code, text))

    def drop(self) -> None:
        """End without a word; calling this twice is fine."""
        if self in self.gate.clients:
            self.gate.broker.reactor.forget(self.sock.fileno())
            self.gate.broker.unexpect(self)
            self.sock.close()
            self.gate.left(self)

    def _ready(self, events: int) -> None:
        try:
            if self._outgoing:
                self._send()
            elif self.handover is not None:
                if events & _GONE:
                    self.handover.connector_gone()
            else:
                self._read()
        except OSError:
            self.drop()

    def _read(self) -> None:
        try:
            block = self.sock.recv(messages.REQUEST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if 0 < len(block) < messages.REQUEST_BYTES and self.sock.type == socket.SOCK_STREAM:
            return  # half a request; the rest, or the deadline, is still to come
        if not block:
            self.drop()
            return
        try:
            request = Request.unpack(block)
            self._serve(request)
        except ProtocolError as error:
            self.gate.broker.count_bad_request()
            self.refuse(errno.EPROTO, str(error))

    def _serve(self, request: Request) -> None:
        broker, partition = self.gate.broker, self.gate.partition
        if request.op is Op.CONNECT:
            assert request.address is not None
            broker.unexpect(self)
            self.handover = Handover(broker, self, request, request.address)
            self.handover.attempt()
            return
        self.sock.recv(messages.REQUEST_BYTES, socket.MSG_DONTWAIT)
        if request.op is Op.BIND:
            assert request.address is not None
            binding.bind(broker, self, partition, request, Address(*request.address))
        elif request.op is Op.LISTEN:
            binding.listen(broker, self, partition, request)
        else:
            assert request.call is not None
            try:
                self.answer(calls.serve(broker, self, request.call))
            except HvsockError as error:
                self.answer(calls.failure(error))

    def _send(self) -> None:
        try:
            while self._outgoing:
                sent = self.sock.send(self._outgoing, socket.MSG_DONTWAIT)
                self._outgoing = self._outgoing[sent:]
        except BlockingIOError:
            self.gate.broker.reactor.watch(self.sock.fileno(), select.EPOLLOUT | select.EPOLLET, self._ready)
            return
        except OSError:
            pass  # the peer is gone; there is nobody to tell
        self.drop()
