"""What comes in at the control sockets: one request each, from peers that may send anything.

A client has a bounded time to send its request and to take the answer; one that sends garbage, half a
message, descriptors or nothing is dropped alone.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import struct
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from hvsock.errors import HvsockError, ProtocolError
from hvsock.fabric import messages, passing
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import Flag, Op, Reply, Request
from hvsock.topology.access import Subject
from hvsock.topology.partitions import Kind
from hvsock.topology.refusals import Reason, Refusal

from . import binding, calls, refusals
from .handover import Handover

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it is built on epoll and AF_UNIX")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Timer

    from .broker import Broker
    from .gates import Gate

log = logging.getLogger(__name__)

REQUEST_SECONDS: Final = 5.0
"""Time for a client to send its request, and to take the answer; both take less than 1 ms on a machine at rest."""
MAX_REPLIES_BYTES: Final = 3 * messages.MAX_REPLY_BYTES
"""Bytes of replies, of all partitions together, that clients have not taken yet; who brings no room is dropped."""

_PEERCRED = struct.Struct("=iII")
_SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13
_PEERGROUPS_BYTES = 1024  # the most that Python's getsockopt takes: 256 groups
_GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


class Client:
    """One peer at a control socket, from its arrival to the answer; it closes `sock`.

    Nothing that a peer does raises out of here.
    """

    __slots__ = ("_outgoing", "_owed", "arrived", "bound_path", "gate", "handover", "sock")

    def __init__(self, gate: Gate, sock: socket.socket, bound_path: str) -> None:
        self.gate = gate
        self.sock = sock
        self.bound_path = bound_path
        self.arrived = gate.broker.reactor.clock()
        self.handover: Handover | None = None
        self._outgoing = memoryview(b"")
        self._owed = 0
        gate.joined(self)
        gate.broker.deadlines.expect(self)
        self.ready(0)  # the request is often there already
        if self in gate.clients and not self._outgoing:
            try:
                gate.broker.reactor.watch(sock.fileno(), _READ, self.ready)
            except OSError:
                self.drop()

    @property
    def subject(self) -> Subject | None:
        """The user at the other end where that is checked: in the host partition alone."""
        if self.gate.partition.kind is not Kind.HOST:
            return None
        _, uid, gid = self.credentials()
        try:
            raw = self.sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _PEERGROUPS_BYTES)
        except OSError as error:
            if error.errno not in (errno.ERANGE, errno.ENOPROTOOPT):
                raise
            return Subject(uid, frozenset({gid}), in_others=True)  # too many, or a kernel that does not tell
        return Subject(uid, frozenset(struct.unpack(f"={len(raw) // 4}I", raw)) | {gid})

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

    def refuse(self, refusal: Refusal) -> None:
        """End a request with a refusal, in the words that are fit for the client's partition."""
        self.answer(Reply.refuse(refusal.errno, refusals.text_for(self.gate.partition, refusal)))

    def drop(self) -> None:
        """End without a word; calling this twice is fine."""
        if self in self.gate.clients:
            broker = self.gate.broker
            if self.handover is not None:
                self.handover.leave()
                self.handover = None
            if self._owed:
                broker.replies.give_back(self.gate.partition.id, self._owed)
            broker.deadlines.forget(self)
            broker.reactor.forget(self.sock.fileno())
            self.sock.close()
            self.gate.left(self)

    def ready(self, events: int) -> None:
        """Do what the descriptor is ready for."""
        try:
            if self._outgoing:
                self._send()
            elif self.handover is None:
                self._read()
            if events & _GONE and self.handover is not None:
                self.handover.connector_gone()
        except OSError:  # the peer is gone
            self.drop()
        except Exception:
            log.exception("a defect of the broker: a request of %s is dropped", self.gate.partition.name)
            self.drop()

    def _read(self) -> None:
        stream = self.sock.type == socket.SOCK_STREAM
        try:
            # a message that is too long shows by one byte more
            wanted = messages.REQUEST_BYTES if stream else messages.REQUEST_BYTES + 1
            block = self.sock.recv(wanted, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not block:
            self.drop()
            return
        if stream and len(block) < messages.REQUEST_BYTES:
            return  # half a request; the rest, or the deadline, is still to come
        try:
            self._serve(Request.unpack(block))
        except ProtocolError as error:
            self.gate.broker.count_bad_request()
            self.answer(Reply.refuse(errno.EPROTO, str(error)))

    def _serve(self, request: Request) -> None:
        broker, partition = self.gate.broker, self.gate.partition
        if request.op is Op.CONNECT:
            if request.type != self.sock.type:
                raise ProtocolError("a connect goes to the control socket of its own type")
            mark = None
            if (
                request.flags is not Flag.NONE and request.flags & Flag.END_MARK
            ):  # most have none, and & takes 1 µs
                mark = self._end_mark()
                if mark is None:
                    return
            broker.deadlines.forget(self)
            self.handover = Handover(broker, self, request, mark)
            self.handover.attempt()
            return
        self.sock.recv(messages.REQUEST_BYTES, socket.MSG_DONTWAIT)
        if request.op is Op.BIND:
            binding.bind(broker, self, partition, request)
        elif request.op is Op.LISTEN:
            binding.listen(broker, self, partition, request)
        else:
            try:
                reply = calls.serve(broker, self, request.call or {})
            except HvsockError as error:
                reply = calls.failure(error)
            self.answer(reply)

    def _end_mark(self) -> EndMark | None:
        """The end mark that came with a connect, which stays unread; without one, the connect is refused."""
        _, descriptors, cut = passing.receive(self.sock, 1, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        mark = EndMark.received(descriptors[0]) if descriptors else None
        if cut and not descriptors:
            self.refuse(Refusal(errno.ENOBUFS, Reason.LIMIT, "the broker is short of descriptors"))
        elif mark is None:
            self.refuse(Refusal(errno.EINVAL, Reason.BAD_REQUEST, "an end mark is an eventfd"))
        return mark

    def _send(self) -> None:
        try:
            while self._outgoing:
                sent = self.sock.send(self._outgoing, socket.MSG_DONTWAIT)
                self._outgoing = self._outgoing[sent:]
        except BlockingIOError:
            if self._owed:
                return
            if self._owe():
                self.gate.broker.reactor.watch(self.sock.fileno(), select.EPOLLOUT | select.EPOLLET, self.ready)
                return
        except OSError:
            pass  # the peer is gone; there is nobody to tell
        self.drop()

    def _owe(self) -> bool:
        """Keep the rest of a reply for later, if the partition may have that."""
        replies, partition = self.gate.broker.replies, self.gate.partition.id
        if not replies.has_room(partition):
            return False
        self._owed = len(self._outgoing)
        replies.take(partition, self._owed)
        return True


class Deadlines:
    """When clients that owe something, a request or taking an answer, are dropped."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._due: OrderedDict[Client, float] = OrderedDict()
        self._timer: Timer | None = None

    def expect(self, client: Client) -> None:
        """Drop `client` in REQUEST_SECONDS, unless it is dropped or forgotten before."""
        self._due.pop(client, None)
        self._due[client] = self._broker.reactor.clock() + REQUEST_SECONDS
        if self._timer is None:
            self._timer = self._broker.reactor.after(REQUEST_SECONDS, self._drop_late)

    def forget(self, client: Client) -> None:
        """It owes nothing now; calling this twice is fine."""
        self._due.pop(client, None)

    def _drop_late(self) -> None:
        now = self._broker.reactor.clock()
        self._timer = None
        while self._due:
            client, when = next(iter(self._due.items()))
            if when > now:
                self._timer = self._broker.reactor.after(when - now, self._drop_late)
                return
            del self._due[client]
            self._broker.count_bad_request()
            client.drop()
