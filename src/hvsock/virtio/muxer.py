"""The muxer: all connections of one guest over its two queues (pure).

It knows which packet belongs to which connection and does what the table of :mod:`.connection` says. What it asks
of the host is a :class:`Host`, which begins connects, and one :class:`~.connection.End` for each connection. It
never waits and has no clock: whoever drives it calls it when something is ready, and then :meth:`Muxer.tick` with
the time, and again when :attr:`Muxer.next_deadline` is over. A wait counts from the tick after it began.

A reset is never answered by a reset. What belongs to no connection gets one, and a reset that still waits for
the guest is forgotten when the guest begins a new connection between the same ports.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Any, Final, Protocol

from .connection import TABLE, Act, Connection, End, Reason, State
from .counters import Totals
from .from_guest import FromGuest
from .packet import (
    FIRST_GUEST_CID,
    HOST_CID,
    LAST_GUEST_CID,
    SEQPACKET,
    STREAM,
    Header,
    Op,
    Shutdown,
)
from .to_guest import MAX_MESSAGE_BYTES, ToGuest
from .virtqueue import Virtqueue

CLOSE_SECONDS: Final = 8.0
"""How long the guest may take to answer SHUTDOWN of both directions by RST; Linux itself waits as long."""
FIRST_HOST_PORT: Final = 1 << 30
"""Ports of connections that the host's side begins are taken from here up: no service is there."""
LAST_HOST_PORT: Final = (1 << 31) - 1
DEFAULT_CONNECTIONS: Final = 16_384
"""Most connections of one guest: more than 10,000, and half of the descriptors that a process gets by default."""
DEFAULT_BUFFER_BYTES: Final = 256 << 10
"""Room for what one connection's guest sent and its host's side did not take yet: that of a Linux socket."""
SETTLED_WAITS: Final = 1024
"""Waits that nothing needs any more, before they are cleared away: fewer cost less than looking for them."""

Wait = tuple[float, int, Connection]
"""A deadline, a number that no other has, and what waits."""

_OPS: Final = {int(op): op for op in Op}


class Host(Protocol):
    """What the muxer asks of the host's side. No method waits, and none raises."""

    def connect(self, connection: Connection) -> None:
        """The guest wants a connection to ``peer_port`` of ``peer_cid``; opened() or declined() follows."""

    def cancel(self, connection: Connection) -> None:
        """A connection that was asked for by connect() is not wanted any more."""


class Muxer:
    """All connections of one guest.

    Args:
        guest_cid: the guest's CID.
        host: the host's side.
        connections: most connections at once; the guest's requests above that are refused.
        buffer_bytes: room of each connection for what the guest sent.

    Attributes:
        table: the connections that the guest knows of, by guest's port, peer's CID and peer's port.
        counted: what was counted, by service.
    """

    def __init__(
        self,
        guest_cid: int,
        host: Host,
        *,
        connections: int = DEFAULT_CONNECTIONS,
        buffer_bytes: int = DEFAULT_BUFFER_BYTES,
    ) -> None:
        self.table: dict[tuple[int, int, int], Connection] = {}
        self.counted: dict[str, Totals] = {}
        self._host = host
        self._limit = connections
        self._buffer_bytes = buffer_bytes
        self._flushing: set[Connection] = set()
        self._begun: list[tuple[Connection, float]] = []
        self._waits: list[Wait] = []
        self._serial = 0
        self._host_port = FIRST_HOST_PORT
        self._refused: Totals = Totals()
        self._to_guest = ToGuest(guest_cid, self.drop, self._host_closed)
        self._from_guest = FromGuest(guest_cid, self, self._to_guest, self.drop)
        self._attached = False

    # -- the queues

    @property
    def attached(self) -> bool:
        """Whether the guest's driver runs."""
        return self._attached

    def attach(self, rx: Virtqueue, tx: Virtqueue) -> None:
        """The guest's driver runs: use its queues."""
        self._to_guest.attach(rx)
        self._from_guest.attach(tx)
        self._attached = True

    def detach(self) -> tuple[int, int]:
        """The queues stop; returns the indexes of their next chains, of rx and tx. Connections stay."""
        self._attached = False
        return self._to_guest.detach(), self._from_guest.detach()

    def drain(self) -> bool:
        """Take what the guest sent; whether there may be more.

        Raises:
            GuestError: the tx queue is broken; the guest's doing. The queues are not to be used any more.
        """
        return self._from_guest.drain()

    def fill(self) -> bool:
        """Send the guest what waits for it; whether there is more.

        Raises:
            GuestError: the rx queue is broken; the guest's doing. The queues are not to be used any more.
        """
        return self._to_guest.fill()

    @property
    def takes_packets(self) -> bool:
        """Whether drain() would take a packet; not while too many resets wait for buffers of the guest."""
        return self._to_guest.room_for_strays > 0

    @property
    def depth(self) -> int:
        """Packets, and connections with payload, that wait for buffers of the guest."""
        return self._to_guest.depth

    # -- all connections at once

    def pause(self) -> None:
        """The VM is paused: connections that did not ask to live on end as a reset, unless they are closing."""
        for connection in list(self.table.values()):
            if not connection.survives_pause and connection.state is not State.CLOSING:
                self.drop(connection, Reason.PAUSED, True)

    def reset(self, reason: Reason = Reason.DEVICE_RESET) -> None:
        """The guest knows no connection any more: all end as a reset, but those that it closed are flushed."""
        for connection in list(self.table.values()):
            self.drop(connection, reason, False)
        self._to_guest.forget_resets()

    def cancel(self, service: str | None = None) -> None:
        """The service is disabled, or with None the whole partition removed: its connections end as a reset."""
        for connection in [*self.table.values(), *self._flushing]:
            if service is None or connection.service == service:
                self.drop(connection, Reason.CANCELLED, True)

    def close(self) -> None:
        """End all that there is, as a reset."""
        for connection in [*self.table.values(), *self._flushing]:
            self.drop(connection, Reason.DEVICE_RESET, False)

    # -- connections that the guest begins

    def opened(self, connection: Connection, end: End, service: str, *, survives_pause: bool = False) -> None:
        """The host's side of a connection that connect() asked for is there; it may be ready for reading."""
        assert connection.state is State.OPENING, f"{connection} was not being opened"
        connection.end = end
        connection.survives_pause = survives_pause
        self._name(connection, service)
        self.counted[service].opened += 1
        connection.state = State.OPEN
        self._to_guest.post(connection, Op.RESPONSE)
        self.readable(connection)

    def declined(self, connection: Connection, reason: Reason = Reason.REFUSED) -> None:
        """There is no host's side for a connection that connect() asked for."""
        assert connection.state is State.OPENING, f"{connection} was not being opened"
        connection.state = State.OFFERED  # nothing to cancel
        self.drop(connection, reason, True)

    # -- connections that the host's side begins

    def offer(
        self,
        end: End,
        guest_port: int,
        *,
        peer_cid: int = HOST_CID,
        type_: int = STREAM,
        seconds: float,
        service: str,
        survives_pause: bool = False,
    ) -> Connection | None:
        """Ask the guest to take a connection; ``end.accept()`` or ``end.refuse()`` follows.

        Returns:
            The connection, which owns `end` now; None when there are too many, and `end` stays the caller's.
        """
        if self._is_full():
            return None
        key = guest_port, peer_cid, self._free_port(guest_port, peer_cid)
        connection = self._add(key, type_, State.OFFERED)
        connection.end = end
        connection.survives_pause = survives_pause
        self._name(connection, service)
        self._wait(connection, seconds)
        self._to_guest.post(connection, Op.REQUEST)
        return connection

    # -- what the host's side tells, in time or too late: a connection that is gone is left alone

    def readable(self, connection: Connection, *, ending: bool = False) -> None:
        """The connection's end may have something to read; `ending`: and then its end of stream."""
        if connection.state is State.OPEN:
            connection.readable = True
            connection.ending |= ending
            self._to_guest.ready(connection)

    def writable(self, connection: Connection) -> None:
        """The connection's end may have room again."""
        if connection.pending is None:
            return
        if not self._from_guest.flush(connection):
            self.drop(connection, Reason.HOST_RESET, True)
        elif connection.pending is None and connection.guest_shut & Shutdown.SEND:
            self._guest_finished(connection)

    def hung_up(self, connection: Connection) -> None:
        """The other end of the connection's end closed for good; what it sent is still to be read."""
        if connection.state in (State.OFFERED, State.FLUSHING):  # nobody is there to take what it is about
            self.drop(connection, Reason.HOST_RESET, True)
        elif connection.state is State.OPEN:
            if (connection.host_shut & Shutdown.SEND) or (connection.guest_shut & Shutdown.RECEIVE):
                self._host_closed(connection)
            else:
                self.readable(connection, ending=True)

    # -- time

    @property
    def next_deadline(self) -> float | None:
        """When to call tick() again, in its own time; None while nothing waits."""
        self._forget_settled()
        return self._waits[0][0] if self._waits else None

    def tick(self, now: float) -> None:
        """End what waited too long, and begin what is to be waited for; `now` is in seconds."""
        for connection, seconds in self._begun:
            connection.deadline = now + seconds
            self._serial += 1
            heapq.heappush(self._waits, (connection.deadline, self._serial, connection))
        self._begun.clear()
        if len(self._waits) > 2 * len(self.table) + SETTLED_WAITS:
            self._waits = [wait for wait in self._waits if _is_on(wait)]
            heapq.heapify(self._waits)
        self._forget_settled()
        while self._waits and self._waits[0][0] <= now:
            connection = self._waits[0][2]
            offered = connection.state is State.OFFERED
            self.drop(connection, Reason.TIMED_OUT if offered else Reason.CLOSED, True)
            self._forget_settled()

    # -- watching

    def live(self) -> Iterator[Connection]:
        """All connections that there are; nothing may change while they are gone through."""
        return itertools.chain(self.table.values(), self._flushing)

    def report(self) -> dict[str, Any]:
        """Counts of the VM and by service, as JSON takes them."""
        live: dict[str, list[Connection]] = {name: [] for name in self.counted}
        for connection in self.live():
            if connection.service:
                live[connection.service].append(connection)
        return {
            "connections": len(self.table) + len(self._flushing),
            "queue_depth": self.depth,
            "bad_packets": self._from_guest.bad_packets,
            "refused": {reason.value: count for reason, count in sorted(self._refused.ended.items())},
            "services": {name: self.counted[name].report(found) for name, found in sorted(live.items())},
        }

    # -- packets

    def packet(self, header: Header) -> None:
        """A packet of the guest that is not payload of an open connection."""
        key = header.src_port, header.dst_cid, header.dst_port
        op = _OPS.get(header.op)
        connection = self.table.get(key)
        if connection is None or (connection.type != header.type and op is not Op.REQUEST):
            if op is Op.REQUEST:
                self._request(header, key)
            elif op is not Op.RST:
                self._to_guest.reset(key, header.type)
            return
        connection.packets_from_guest += 1
        act = Act.RESET if op is None else TABLE[connection.state][op]
        if act is Act.GONE:
            self._guest_reset(connection)
        elif act is Act.RESTART:
            self.drop(connection, Reason.REUSED, False)
            self._request(header, key)
        elif act is Act.LATE:
            self.drop(connection, Reason.HOST_RESET, True)
        elif act is Act.RESET or act is Act.DATA:  # payload comes here only when it is malformed
            self.drop(connection, Reason.PROTOCOL, True)
        elif self.told(connection, header.buf_alloc, header.fwd_cnt):
            if act is Act.ACCEPT:
                self._accepted(connection)
            elif act is Act.SHUT:
                self._shut(connection, header.flags)
            elif act is Act.TELL:
                connection.asked = True
                self._to_guest.tell(connection)

    def told(self, connection: Connection, buf_alloc: int, fwd_cnt: int) -> bool:
        """The guest's counters; False when they cannot be, and the connection is dropped."""
        outgoing = connection.outgoing
        if buf_alloc == outgoing.buf_alloc and fwd_cnt == outgoing.fwd_cnt:
            return True
        if not outgoing.told(buf_alloc, fwd_cnt):
            self.drop(connection, Reason.CREDIT, True)
            return False
        if connection.stalled and outgoing.free:
            connection.stalled = False
            self._to_guest.ready(connection)
        return True

    def drop(self, connection: Connection, reason: Reason, tell_guest: bool) -> None:
        """End a connection, at once and for both sides."""
        state, connection.state = connection.state, State.GONE
        if state is State.FLUSHING:
            self._flushing.discard(connection)
        else:
            self._forget(connection, tell_guest)
        end, connection.end = connection.end, None
        if end is not None:
            if state is State.OFFERED:
                end.refuse(reason)
            end.close()
        elif state is State.OPENING:
            self._host.cancel(connection)
        connection.pending = connection.message = connection.unsent = None
        self.counted.get(connection.service, self._refused).add(connection, reason)

    # -- inside

    def _is_full(self) -> bool:
        return len(self.table) + len(self._flushing) >= self._limit

    def _add(self, key: tuple[int, int, int], type_: int, state: State) -> Connection:
        room = self._buffer_bytes if type_ == STREAM else min(self._buffer_bytes, MAX_MESSAGE_BYTES)
        connection = Connection(key, type_, state, room)
        self.table[key] = connection
        return connection

    def _name(self, connection: Connection, service: str) -> None:
        connection.service = service
        if service not in self.counted:
            self.counted[service] = Totals()

    def _free_port(self, guest_port: int, peer_cid: int) -> int:
        while True:
            port = self._host_port
            self._host_port = port + 1 if port < LAST_HOST_PORT else FIRST_HOST_PORT
            if (guest_port, peer_cid, port) not in self.table:
                return port

    def _wait(self, connection: Connection, seconds: float) -> None:
        self._begun.append((connection, seconds))

    def _forget_settled(self) -> None:
        while self._waits and not _is_on(self._waits[0]):
            heapq.heappop(self._waits)

    def _request(self, header: Header, key: tuple[int, int, int]) -> None:
        """The guest begins a connection."""
        self._to_guest.forget_reset(key)
        cid = header.dst_cid
        addressable = cid == HOST_CID or FIRST_GUEST_CID <= cid <= LAST_GUEST_CID
        if header.type not in (STREAM, SEQPACKET) or not addressable or self._is_full():
            self._refused.ended[Reason.REFUSED] += 1
            self._to_guest.reset(key, header.type)
            return
        connection = self._add(key, header.type, State.OPENING)
        connection.outgoing.told(header.buf_alloc, 0)
        self._host.connect(connection)

    def _accepted(self, connection: Connection) -> None:
        connection.state = State.OPEN
        self.counted[connection.service].opened += 1
        assert connection.end is not None, "what was offered has an end"
        connection.end.accept()
        self.readable(connection)

    def _guest_reset(self, connection: Connection) -> None:
        """RST: after the guest had sent its last it is only impatient, and what it sent still counts."""
        if connection.state is State.OPEN and connection.guest_shut & Shutdown.SEND:
            self._guest_closed(connection, answer=False)
        else:
            ended = connection.state is State.CLOSING
            offered = connection.state is State.OFFERED
            reason = Reason.CLOSED if ended else Reason.REFUSED if offered else Reason.GUEST_RESET
            self.drop(connection, reason, False)

    def _shut(self, connection: Connection, flags: int) -> None:
        """SHUTDOWN: what it says is never taken back."""
        before = connection.guest_shut
        connection.guest_shut |= flags & int(Shutdown.BOTH)
        if connection.state is State.CLOSING:  # the two sides closed at the same time
            if connection.guest_is_done:
                self.drop(connection, Reason.CLOSED, True)
            return
        assert connection.end is not None, "an open connection has an end"
        if connection.guest_is_done:
            self._guest_closed(connection, answer=True)
            return
        new = connection.guest_shut & ~before
        if new & Shutdown.RECEIVE:
            connection.end.deafen()
        if new & Shutdown.SEND and connection.pending is None:
            self._guest_finished(connection)

    def _guest_finished(self, connection: Connection) -> None:
        """All that the guest sent is passed on, and it sends no more."""
        if connection.state is State.FLUSHING:
            self._flushed(connection)
            return
        assert connection.end is not None, "an open connection has an end"
        connection.end.finish()
        if connection.host_shut & Shutdown.SEND:
            self._host_closed(connection)

    def _forget(self, connection: Connection, tell_guest: bool) -> None:
        """The connection is the guest's no more, and its pair of ports is free."""
        del self.table[connection.key]
        if self._to_guest.forget(connection) and tell_guest:
            self._to_guest.end(connection)

    def _guest_closed(self, connection: Connection, *, answer: bool) -> None:
        """The guest neither sends nor receives: its side ends now, the other when it has all that was sent."""
        self._forget(connection, answer)
        connection.state = State.FLUSHING
        self._flushing.add(connection)
        connection.unsent = None
        if connection.pending is None:
            self._flushed(connection)

    def _flushed(self, connection: Connection) -> None:
        assert connection.end is not None, "what was flushed went somewhere"
        connection.end.finish()
        self.drop(connection, Reason.CLOSED, False)

    def _host_closed(self, connection: Connection) -> None:
        """The host's side sends no more, and the guest has all that it sent."""
        end = connection.end
        assert end is not None, "an open connection has an end"
        closed = end.is_closed()
        if closed and connection.pending is not None:
            self.drop(connection, Reason.HOST_RESET, True)
        elif closed or (connection.guest_shut & Shutdown.SEND and connection.pending is None):
            connection.state = State.CLOSING
            connection.end = None
            end.close()
            connection.host_shut = int(Shutdown.BOTH)
            self._to_guest.post(connection, Op.SHUTDOWN)
            self._wait(connection, CLOSE_SECONDS)
        else:
            connection.host_shut |= int(Shutdown.SEND)
            self._to_guest.post(connection, Op.SHUTDOWN)


def _is_on(wait: Wait) -> bool:
    """Whether somebody still waits."""
    deadline, _, connection = wait
    return connection.state in (State.OFFERED, State.CLOSING) and connection.deadline == deadline
