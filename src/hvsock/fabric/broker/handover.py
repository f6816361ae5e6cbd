"""How a connection gets from its connector to its listener.

The order matters, for brokers that are killed and for accepters that are fast:

1. connect a courier to the listener; when its backlog is full, wait and try again,
2. write down that the connection is about to be handed over (:mod:`.connections`),
3. send the connector's other end and the addresses through the courier,
4. count the connection, and mark what was written down as counted,
5. drain the request, which makes the connector writable: it is connected,
6. close the connection's descriptor here, and send DONE through the courier.

An accepter uses the descriptor after DONE only. If the broker dies before 5, the accepter finds the
request still there and drains it; if it dies before 3, the connector sees its connection refused.

To the device of a VM, step 5 is left: the device asks the guest, and then drains the request, or refuses as the
broker does. Until then the connect is pending, and the broker has nothing more to do with it.

Of a connector that brings an end mark, the mark goes along in step 3. It is told the service and the listener's
options before that (:class:`Established`), unless a device takes the connection, which tells them itself.

So "accepted" counts the connections that reached a listener's backlog, each once, those that a guest
refuses later among them. A broker that is killed
between 3 and 4 leaves that to the next one, which counts the connection if it is still there; a kill in
the midst of 4 leaves the count off by one.

The courier stays open here until the accepter has taken it: its end tells whether the connection was
taken or lost with its listener, and it makes room for the next one in the backlog. What was in a backlog
when a broker was killed is delivered all the same; if it is lost with its listener then, nobody counts that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import sys
from typing import TYPE_CHECKING, Final

from hvsock.addresses import Address, ServiceId, VmId
from hvsock.constants import HVSOCKET_CONNECT_TIMEOUT_MAX, VSOCK_CID_HOST
from hvsock.fabric import messages, paths
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import Courier, DeviceCourier, Established, Flag, Request
from hvsock.topology import decision
from hvsock.topology.decision import Grant
from hvsock.topology.reachability import Relation, own_view, view
from hvsock.topology.refusals import Reason, Refusal

from .listeners import Listener
from .liveness import namespace_of

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it passes descriptors over AF_UNIX")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Timer

    from .broker import Broker
    from .clients import Client

log = logging.getLogger(__name__)

MAX_UNDELIVERED_PER_PARTITION: Final = 4096
"""Connections handed to listeners of one partition that nobody accepted yet. Each is a descriptor in
flight, which the kernel counts against the broker's user, so one partition must not use them up."""
ROUNDS_PER_ATTEMPT: Final = 8
"""Listeners, dead ones among them, that one attempt goes through before the connect waits for its next turn."""


class Handover:
    """One connect on its way; `client` is dropped at its end, and `mark` is closed.

    Args:
        broker: the broker.
        client: the connector.
        request: what it asks for.
        mark: the end mark that it brought.
    """

    __slots__ = (
        "_broker", "_client", "_deadline", "_mark", "_request", "_row", "_service_id", "_told", "_waiting_at"
    )  # fmt: skip

    def __init__(self, broker: Broker, client: Client, request: Request, mark: EndMark | None = None) -> None:
        self._broker = broker
        self._mark = mark
        self._told = False
        self._client = client
        self._request = request
        self._waiting_at: Listener | None = None
        self._deadline: Timer | None = None

    def attempt(self) -> None:
        """Decide, and hand the connection over, refuse it, or wait for room in the backlog."""
        try:
            self._attempt()
        except Exception:
            log.exception("a defect of the broker: a connect of %s is dropped", self._client.gate.partition.name)
            self._client.drop()

    def connector_gone(self) -> None:
        """The connector closed its end while its connect was pending."""
        self._broker.counters.ended(self._row, Reason.CANCELLED)
        self._client.drop()

    def leave(self) -> None:
        """Wait no more, and close the end mark; calling this twice is fine."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._leave_queue()
        self.close_mark()

    def close_mark(self) -> None:
        """Close the end mark, and touch nothing else. Calling this twice is fine."""
        if self._mark is not None:
            self._mark.close()

    def _attempt(self) -> None:
        broker, client, wanted = self._broker, self._client, self._request.address
        assert wanted is not None, "a connect has an address"
        broker.look()
        self._service_id = broker.services.real(wanted.service_id)
        self._row = broker.row_of(self._service_id)
        question = decision.Request(
            client.gate.partition,
            wanted.vm_id,
            self._service_id,
            self._request.type,
            bool(self._request.flags & Flag.PASSTHRU),
            client.subject,
        )
        for _ in range(ROUNDS_PER_ATTEMPT):
            verdict = broker.verdicts.connect(question)
            if isinstance(verdict, Refusal):
                self._refuse(verdict)
                return
            listener = verdict.listener
            try:
                courier = self._reach(verdict)
            except (ConnectionRefusedError, FileNotFoundError):
                # the process that listened is gone; there may be a less specific listener
                broker.listeners.remove(listener)
                broker.waiting.wake(listener)
                continue
            except OSError:  # EAGAIN: the backlog is full; ENFILE and the like: descriptors are short
                break
            try:
                record = self._send(verdict, courier)
            except (BrokenPipeError, ConnectionResetError):
                continue  # the listener died just now, or its accepter gave this courier up
            except OSError:  # ETOOMANYREFS, ENOBUFS: descriptors are short
                break
            self._establish(verdict, courier, record)
            return
        self._wait(listener)

    def _reach(self, grant: Grant[Listener]) -> socket.socket:
        """A courier in the listener's backlog.

        Raises:
            ConnectionRefusedError, FileNotFoundError: the listener is dead.
            OSError: the backlog is full, or too many descriptors are in use.
        """
        broker = self._broker
        if not broker.undelivered.has_room(grant.target.id):
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        courier = socket.socket(socket.AF_UNIX, grant.listener.type | socket.SOCK_NONBLOCK)
        try:
            paths.at(broker.listeners.folder, grant.listener.id.hex(), courier.connect)
        except BaseException:
            courier.close()
            raise
        return courier

    def _send(self, grant: Grant[Listener], courier: socket.socket) -> int | None:
        """Steps 2 and 3, with what belongs to end marks; returns the record of the connection.

        Raises:
            OSError: nothing was handed over, and the courier is closed.
        """
        client, connections = self._client, self._broker.connections
        try:
            message = self._message(grant).pack()
            descriptors = [client.sock.fileno()]
            if self._mark is not None:
                descriptors.append(self._mark.fileno())
                self._tell(grant.listener)
            inode = os.fstat(client.sock.fileno()).st_ino
            pid, _, _ = client.credentials()
            ends = client.gate.partition.id, grant.target.id
            record = connections.begin(inode, self._row, ends, pid, namespace_of(client.sock))
            try:
                socket.send_fds(courier, [message], descriptors)
            except BaseException:
                connections.cancel(record)
                raise
        except BaseException:
            courier.close()
            raise
        return record

    def _establish(self, grant: Grant[Listener], courier: socket.socket, record: int | None) -> None:
        """Steps 4 to 6; to a device, without 5."""
        broker, client = self._broker, self._client
        try:
            broker.counters.accepted(self._row, broker.reactor.clock() - client.arrived)
            broker.connections.counted(record)
            if not grant.listener.device:
                client.sock.recv(messages.REQUEST_BYTES, socket.MSG_DONTWAIT)
            client.drop()  # before the accepter goes on: a descriptor left here would hold up its close
            courier.send(messages.DONE)
        except BrokenPipeError:
            courier.close()  # the listener died just now, and the connection with it
            broker.counters.ended(self._row, Reason.LISTENER_GONE)
        except BaseException:
            courier.close()
            raise
        else:
            Delivery(broker, courier, grant.listener, grant.target.id, self._row)

    def _tell(self, listener: Listener) -> None:
        """Tell a connector with an end mark, which expects it, the listener's options; once.

        Raises:
            OSError: memory is short.
        """
        if not listener.device and not self._told:
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # the connector is gone: seen elsewhere
                established = Established(listener.flags, self._service_id)
                self._client.sock.send(established.pack(), socket.MSG_DONTWAIT)
            self._told = True

    def _message(self, grant: Grant[Listener]) -> Courier | DeviceCourier:
        partition = self._client.gate.partition
        peer_vm = view(grant.source_is, partition)
        own_id = ServiceId.from_bytes_le(self._request.token)
        if self._client.bound_path:
            bound = self._broker.listeners.named(self._client.bound_path)
            if bound is not None and bound.partition == partition.id:
                own_id = bound.service_id
        own, peer = Address(own_view(peer_vm), self._service_id), Address(peer_vm, own_id)
        if grant.port is None:
            return Courier(own, peer, self._request.token, self._request.flags)
        return DeviceCourier(
            own,
            peer,
            self._request.token,
            self._request.flags,
            port=grant.port,
            source_cid=VSOCK_CID_HOST if grant.source_is is Relation.PARENT else partition.cid,
            milliseconds=min(self._request.number, HVSOCKET_CONNECT_TIMEOUT_MAX),
            type=self._request.type,
        )

    def _refuse(self, refusal: Refusal) -> None:
        self._broker.counters.ended(self._row, refusal.reason)
        self.leave()
        self._client.handover = None
        self._broker.deadlines.expect(self._client)
        self._client.refuse(refusal)

    def _wait(self, listener: Listener) -> None:
        """Stand in the listener's queue until there is room, or the connect time-out is over."""
        if self._deadline is None:
            milliseconds = min(self._request.number, HVSOCKET_CONNECT_TIMEOUT_MAX)
            self._deadline = self._broker.reactor.after(milliseconds / 1000, self._expire)
        if self._waiting_at is not listener:
            self._leave_queue()
            self._waiting_at = listener
        self._broker.waiting.join(listener, self)

    def _expire(self) -> None:
        """The connect time-out is over."""
        text = "the listener's backlog was full until the connect time-out"
        self._refuse(Refusal(errno.ETIMEDOUT, Reason.BACKLOG_FULL, text))

    def _leave_queue(self) -> None:
        if self._waiting_at is not None:
            self._broker.waiting.leave(self._waiting_at, self)
            self._waiting_at = None


class Delivery:
    """A courier in a listener's backlog, until it is taken; closes `courier`."""

    __slots__ = ("_broker", "_courier", "_listener", "_row", "_target")

    def __init__(self, broker: Broker, courier: socket.socket, listener: Listener, target: VmId, row: int) -> None:
        self._broker = broker
        self._courier = courier
        self._listener = listener
        self._target = target
        self._row = row
        broker.deliveries.add(self)
        broker.undelivered.take(target)
        try:
            broker.reactor.watch(courier.fileno(), select.EPOLLRDHUP, self._ended)
        except OSError:  # too many are watched; the connection is delivered, and its end is not seen
            self.close()

    def close(self) -> None:
        """Let go of the courier; the connection stays with the listener."""
        self._broker.reactor.forget(self._courier.fileno())
        self._courier.close()
        self._broker.deliveries.discard(self)
        self._broker.undelivered.give_back(self._target)

    def _ended(self, events: int) -> None:
        # unread bytes at the close of the other end are ECONNRESET here: nobody took the courier
        if self._courier.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._broker.counters.ended(self._row, Reason.LISTENER_GONE)
        self.close()
        self._broker.waiting.wake(self._listener)
