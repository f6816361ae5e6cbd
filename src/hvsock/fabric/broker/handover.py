"""How a connection gets from its connector to its listener.

The order matters, for brokers that are killed and for accepters that are fast:

1. connect a courier to the listener; when its backlog is full, wait and try again,
2. send the connector's other end and the addresses through it,
3. drain the request, which makes the connector writable: it is connected,
4. send DONE through the courier and close the connection's descriptor here.

An accepter uses the descriptor after DONE only. If the broker dies before 3, the accepter finds the
request still there and drains it; if it dies before 2, the connector sees its connection refused.

The courier stays open here until the accepter has taken it: its end tells whether the connection was
taken or lost with its listener, and it makes room for the next one in the backlog.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import sys
from typing import TYPE_CHECKING, Final

from hvsock.addresses import Address, ServiceId
from hvsock.constants import HVSOCKET_CONNECT_TIMEOUT_MAX
from hvsock.fabric import messages, paths
from hvsock.fabric.messages import Courier, Flag, Request
from hvsock.topology import decision
from hvsock.topology.decision import Grant, Reason, Refusal
from hvsock.topology.reachability import own_view, view

from .listeners import Listener

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it passes descriptors over AF_UNIX")

if TYPE_CHECKING:
    from .broker import Broker
    from .clients import Client
    from .reactor import Timer

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.02
"""Pause before a full backlog is tried again when no courier of ours tells that there is room."""
MAX_UNDELIVERED_PER_PARTITION: Final = 4096
"""Connections handed to listeners of one partition that nobody accepted yet. Each is a descriptor in
flight, which the kernel counts against the broker's user, so one partition must not use them up."""


class Handover:
    """One connect on its way."""

    __slots__ = ("_deadline", "_waiting_at", "address", "broker", "client", "request", "row")

    def __init__(self, broker: Broker, client: Client, request: Request, address: Address) -> None:
        self.broker = broker
        self.client = client
        self.request = request
        self.address = Address(address.vm_id, broker.real_service(address.service_id))
        self.row = broker.row_of(self.address.service_id)
        self._waiting_at: Listener | None = None
        self._deadline: Timer | None = None

    def attempt(self) -> None:
        """Decide, and hand the connection over, refuse it, or wait for room in the backlog."""
        question = decision.Request(
            self.client.gate.partition,
            self.address.vm_id,
            self.address.service_id,
            self.request.type,
            bool(self.request.flags & Flag.PASSTHRU),
            self.client.subject,
        )
        while True:
            verdict = self.broker.rules.connect(question)
            if isinstance(verdict, Refusal):
                self._refuse(verdict)
                return
            try:
                courier = self._courier(verdict)
            except (BlockingIOError, _ExhaustedError):
                self._wait(verdict.listener)
                return
            except OSError:
                # the process that listened is gone; there may be a less specific listener
                self._leave_queue()
                self.broker.listeners.remove(verdict.listener)
                retry_waiting(verdict.listener)
                continue
            self._establish(verdict, courier)
            return

    def connector_gone(self) -> None:
        """The connector closed its end while its connect was pending."""
        self.broker.counters.ended(self.row, Reason.CANCELLED)
        self._finish()

    def expire(self) -> None:
        """The connect time-out is over."""
        text = "the listener's backlog was full until the connect time-out"
        self._refuse(Refusal(errno.ETIMEDOUT, Reason.BACKLOG_FULL, text))

    def _courier(self, grant: Grant[Listener]) -> socket.socket:
        """A courier that has reached the listener's backlog, with the connection on it.

        Raises:
            BlockingIOError: the backlog is full.
            _ExhaustedError: too many descriptors are in use or in flight.
            OSError: the listener is dead.
        """
        if self.broker.undelivered[grant.target.id] >= self.broker.max_undelivered:
            raise _ExhaustedError
        partition = self.client.gate.partition
        peer_vm = view(grant.source_is, partition)
        bound = self.broker.listeners.named(self.client.bound_path) if self.client.bound_path else None
        own_id = ServiceId.from_bytes_le(self.request.token)
        if bound is not None and bound.partition == partition.id:
            own_id = bound.service_id
        message = Courier(
            Address(own_view(peer_vm), self.address.service_id),
            Address(peer_vm, own_id),
            self.request.token,
            self.request.flags,
        )
        try:
            courier = socket.socket(socket.AF_UNIX, grant.listener.type | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise _ExhaustedError from error
        try:
            paths.at(self.broker.folder.listeners, grant.listener.id.hex(), courier.connect)
            try:
                socket.send_fds(courier, [message.pack()], [self.client.sock.fileno()])
            except OSError as error:
                if error.errno in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                    raise _ExhaustedError from error
                raise
        except BaseException:
            courier.close()
            raise
        return courier

    def _establish(self, grant: Grant[Listener], courier: socket.socket) -> None:
        client, broker = self.client, self.broker
        inode = os.fstat(client.sock.fileno()).st_ino
        client.sock.recv(messages.REQUEST_BYTES, socket.MSG_DONTWAIT)
        try:
            courier.send(messages.DONE)
        except OSError:
            courier.close()  # the listener died just now, and the connection with it
            broker.counters.ended(self.row, Reason.LISTENER_GONE)
        else:
            broker.connections.opened(inode, self.row, client.gate.partition.id, grant.target.id)
            broker.counters.accepted(self.row, broker.reactor.clock() - client.arrived)
            broker.undelivered[grant.target.id] += 1
            Delivery(broker, courier, grant, self.row)
        self._finish()

    def _refuse(self, refusal: Refusal) -> None:
        self.broker.counters.ended(self.row, refusal.reason)
        self._end_waiting()
        self.client.handover = None
        self.broker.expect(self.client)
        self.client.refuse(refusal.errno, refusal.text)

    def _wait(self, listener: Listener) -> None:
        """Stand in the listener's queue until there is room, or the connect time-out is over."""
        if self._deadline is None:
            milliseconds = min(self.request.number, HVSOCKET_CONNECT_TIMEOUT_MAX)
            self._deadline = self.broker.reactor.after(milliseconds / 1000, self.expire)
        if self._waiting_at is not listener:
            self._leave_queue()
            self._waiting_at = listener
            listener.waiting.append(self)
        if listener.retry is None:
            listener.retry = self.broker.reactor.after(RETRY_SECONDS, lambda: _retry_due(listener))

    def _leave_queue(self) -> None:
        if self._waiting_at is not None:
            self._waiting_at.waiting.remove(self)
            self._waiting_at = None

    def _end_waiting(self) -> None:
        self._leave_queue()
        if self._deadline is not None:
            self._deadline.cancel()

    def _finish(self) -> None:
        self._end_waiting()
        self.client.drop()


def retry_waiting(listener: Listener) -> None:
    """There may be room in a listener's backlog: try its queue, the oldest first, while that gets somewhere."""
    while listener.waiting:
        oldest = listener.waiting[0]
        oldest.attempt()
        if listener.waiting and listener.waiting[0] is oldest:
            return


def _retry_due(listener: Listener) -> None:
    listener.retry = None
    retry_waiting(listener)


class Delivery:
    """A courier in a listener's backlog, until it is taken."""

    __slots__ = ("_broker", "_courier", "_listener", "_row", "_target")

    def __init__(self, broker: Broker, courier: socket.socket, grant: Grant[Listener], row: int) -> None:
        self._broker = broker
        self._courier = courier
        self._listener = grant.listener
        self._target = grant.target.id
        self._row = row
        broker.deliveries.add(self)
        broker.reactor.watch(courier.fileno(), select.EPOLLRDHUP, self._ended)

    def close(self) -> None:
        """Let go of the courier; the connection stays with the listener."""
        self._broker.reactor.forget(self._courier.fileno())
        self._courier.close()
        self._broker.deliveries.discard(self)
        self._broker.undelivered[self._target] -= 1

    def _ended(self, events: int) -> None:
        # unread bytes at the close of the other end are ECONNRESET here: nobody took the courier
        if self._courier.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._broker.counters.ended(self._row, Reason.LISTENER_GONE)
        self.close()
        retry_waiting(self._listener)


class _ExhaustedError(Exception):
    """Descriptors are short: a reason to wait, not to refuse."""
