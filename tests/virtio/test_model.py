"""A muxer between a guest that does what Linux does and hosts that do what they like: nothing is lost or left."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hvsock.testing.virtio_driver import MANY, ONE, TWO
from hvsock.virtio.connection import Connection, Reason, State
from hvsock.virtio.credit import WRAP
from hvsock.virtio.packet import HOST_CID, SEQPACKET, STREAM, Shutdown
from tests.support import sample
from tests.virtio.fakes import Bench, FakeEnd, numbered, parse
from tests.virtio.model import COUNTERS_BEGIN, ModelGuest, Socket

SIBLING_CID = 43
MAX_TURNS = 20_000
"""Turns after which everything has come to rest, or something hangs."""
UNBOUNDED = 1 << 30

picks = st.integers(0, 7)
"""Which of the connections there are."""
types = st.sampled_from([STREAM, SEQPACKET])
cids = st.sampled_from([HOST_CID, SIBLING_CID])
counts = st.sampled_from([150, 40, 5, 1])
"""Of actions in a row."""
SIZES = [1, 2, 60, 99, 500, 7000]
"""Of what is written and read."""
rooms = st.sampled_from([50, 99, 500, 7000, 1 << 18])
"""Of sockets and of the device, so small that they are often full."""
TRAFFIC = ["guest_writes", "guest_reads", "host_writes", "host_reads", "device_works", "guest_works"]
"""What goes on most of the time; methods of the machine."""
ENDS = ["guest_half_closes", "guest_closes", "host_half_closes", "host_closes"]
"""What ends connections, or one direction of them."""


class Link:
    """A connection as its two programs see it.

    Attributes:
        end: the host's side.
        connection: the muxer's side.
        socket: the guest's side; None while the guest has not heard of it.
        given: what the host's program wrote: pieces of a stream, or messages.
        is_closed: whether the host's program closed.
        may_lose: whether something happened that may end it without all data having come.
    """

    def __init__(self, end: FakeEnd, connection: Connection, socket: Socket | None) -> None:
        self.end = end
        self.connection = connection
        self.socket = socket
        self.given: list[bytes] = []
        self.is_closed = False
        self.may_lose = False

    @property
    def guests(self) -> Socket:
        """The guest's side, once it has one."""
        assert self.socket is not None
        return self.socket

    def check(self) -> None:
        """What came is what was sent, so far; and all of it where a clean end was said."""
        if self.socket is not None:
            socket = self.socket
            whole = "finish" in self.end.calls
            _compare(socket.type, self.end.taken, socket.sent, whole)
            unread = self.end.outbox
            whole = bool(socket.peer_shut & Shutdown.SEND) and not socket.shut & Shutdown.RECEIVE
            _compare(socket.type, socket.received, self.given, whole and not unread)
        if not self.end.is_open and "finish" not in self.end.calls and not self.is_closed:
            assert self.may_lose or self.end.calls[0].startswith("refuse"), self.connection


def _compare(type_: int, came: list[bytes], sent: list[bytes], whole: bool) -> None:
    if type_ == STREAM:
        came, sent = [b"".join(came)], [b"".join(sent)]
        assert sent[0].startswith(came[0])
    else:
        assert sent[: len(came)] == came
    if whole:
        assert came == sent


class Machine(RuleBasedStateMachine):
    """Both sides, and what is under way between them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.links: list[Link] = []
        self.asking: list[Socket] = []
        self.guest = ModelGuest()
        self.port = 1000
        self.serial = 0

    @initialize(
        options=st.fixed_dictionaries(
            {
                "queue_size": st.sampled_from([2, 8, 64]),
                "rx_buffer_bytes": st.sampled_from([50, 100, 4096, 1 << 17]),
                "layout": st.sampled_from([ONE, TWO, MANY]),
                "event_idx": st.booleans(),
                "index": st.sampled_from([0, 0xFFFE]),
                "buffer_bytes": rooms,
            }
        ),
        seed=st.integers(0, 1 << 32),
        count=counts,
        opened=st.lists(st.tuples(st.booleans(), types, rooms, rooms, st.booleans()), min_size=2, max_size=4),
    )
    def begin(
        self, options: dict[str, Any], seed: int, count: int, opened: list[tuple[bool, int, int, int, bool]]
    ) -> None:
        """Some connections are there at once, half of them begun by the guest."""
        if options["layout"].pieces > options["queue_size"]:
            options["queue_size"] = 64
        self.bench = Bench(feeds=False, **options)
        for by_guest, type_, guest_room, host_room, survives in opened:
            if by_guest:
                self._guest_connects(type_, HOST_CID, guest_room)
                self._come_to_rest()
                self.host_answers(0, host_room, True, survives)
            else:
                self._host_connects(type_, HOST_CID, host_room, 1, survives)
            self._come_to_rest()
        assert {link.connection.state for link in self.links} == {State.OPEN}
        self.traffic(seed, count, True)

    # -- connections begin

    @rule(by_guest=st.booleans(), type_=types, cid=cids, room=rooms, port=st.sampled_from([1, 2, 500]), anew=picks)
    def somebody_connects(self, by_guest: bool, type_: int, cid: int, room: int, port: int, anew: int) -> None:
        if not by_guest:
            self._host_connects(type_, cid, room, port, bool(anew & 1))
        elif anew & 1:
            self._guest_connects(type_, cid, room)
        else:
            self._guest_connects_anew(anew)

    @precondition(lambda self: self.bench.host.wanted)
    @rule(pick=picks, room=rooms, taken=st.booleans(), survives=st.booleans())
    def host_answers(self, pick: int, room: int, taken: bool, survives: bool) -> None:
        connection = self.bench.host.wanted.pop(pick % len(self.bench.host.wanted))
        asking = [socket for socket in self.asking if socket.key == connection.key][-1]
        self.asking.remove(asking)
        if not taken:
            self.bench.muxer.declined(connection)
            return
        end = FakeEnd(connection.type, room)
        self._begin(Link(end, connection, asking))
        self.bench.muxer.opened(connection, end, "service", survives_pause=survives)

    def _guest_connects(self, type_: int, cid: int, room: int) -> None:
        self.port += 1
        self.asking.append(self.guest.connect((self.port, cid, 80), type_, room))

    def _guest_connects_anew(self, pick: int) -> None:
        """From a port it had, once nothing of the old connection is under way: a guest cannot tell it from new."""
        self._come_to_rest()
        gone = [link.socket for link in self.links if link.socket and link.socket.key not in self.guest.sockets]
        if gone:
            old = gone[pick % len(gone)]
            self.asking.append(self.guest.connect(old.key, old.type, old.buf_alloc))

    def _host_connects(self, type_: int, cid: int, room: int, port: int, survives: bool) -> None:
        end = FakeEnd(type_, room)
        connection = self.bench.muxer.offer(
            end, port, peer_cid=cid, type_=type_, seconds=3.0, service="service", survives_pause=survives
        )
        assert connection is not None
        self._begin(Link(end, connection, None))

    # -- programs write and read

    @rule(seed=st.integers(0, 1 << 32), count=counts, ends=st.booleans())
    def traffic(self, seed: int, count: int, ends: bool) -> None:
        """Much of it in one rule: drawn one by one, so many actions would be rare."""
        random = Random(seed)
        for _ in range(count):
            what = random.choice(ENDS if ends and random.random() < 0.05 else TRAFFIC)
            getattr(self, what)(random.randrange(8), random.choice(SIZES))

    def device_works(self, pick: int, size: int) -> None:
        for _ in range(pick):
            self.bench.step()

    def guest_works(self, pick: int, size: int) -> None:
        self._guest_turn(feeds=pick > 1)

    def guest_writes(self, pick: int, size: int) -> None:
        if link := self._link_of_guest(pick):
            self.serial += size
            self.guest.write(link.guests, numbered(size, self.serial))

    def guest_reads(self, pick: int, size: int) -> None:
        if link := self._link_of_guest(pick):
            self.guest.read(link.guests, size)

    def host_writes(self, pick: int, size: int) -> None:
        link = self._open_link(pick)
        if link is not None and not link.end.ended and "deafen" not in link.end.calls:
            self.serial += size
            data = numbered(size, self.serial)
            link.may_lose |= link.connection.type == SEQPACKET and size > link.connection.outgoing.buf_alloc
            link.given.append(data)
            link.end.outbox.append(data)
            self.bench.muxer.readable(link.connection)

    def host_reads(self, pick: int, size: int) -> None:
        if link := self._open_link(pick):
            link.end.room += size
            self.bench.muxer.writable(link.connection)

    # -- connections end

    def guest_half_closes(self, pick: int, size: int) -> None:
        if link := self._link_of_guest(pick):
            self.guest.shutdown(link.guests, Shutdown.RECEIVE if size == 1 else Shutdown.SEND)

    def guest_closes(self, pick: int, size: int) -> None:
        if link := self._link_of_guest(pick):
            self.guest.close(link.guests)
            link.may_lose |= not link.guests.is_closing

    @rule(pick=picks)
    def guest_aborts(self, pick: int) -> None:
        if link := self._link_of_guest(pick):
            link.may_lose = True
            self.guest.abort(link.guests)

    def host_half_closes(self, pick: int, size: int) -> None:
        if link := self._open_link(pick):
            link.end.ended = True
            self.bench.muxer.readable(link.connection, ending=True)

    def host_closes(self, pick: int, size: int) -> None:
        if link := self._link(pick):
            link.is_closed = link.end.ended = link.end.gone = True
            link.end.broken |= size == 1
            self.bench.muxer.hung_up(link.connection)

    # -- what moves

    @rule(rests=st.booleans())
    def both_work(self, rests: bool) -> None:
        if rests:
            self._come_to_rest()
        for _ in range(3):
            self.bench.step()
            self._guest_turn(True)

    @rule()
    def queues_stop_and_start(self) -> None:
        self.bench.attach(*self.bench.muxer.detach())

    # -- what happens to all

    @rule(what=st.sampled_from(["pause", "pause", "restart", "cancel"]), really=picks)
    def all_end(self, what: str, really: int) -> None:
        """Not often, since little is left then."""
        if really > 1:
            return
        muxer = self.bench.muxer
        for link in self.links:
            link.may_lose |= what != "pause" or not link.connection.survives_pause
        if what == "cancel":
            muxer.cancel("service")
            return
        indexes = muxer.detach()
        if what == "pause":
            muxer.pause()
        else:
            muxer.reset()
            assert not muxer.table
            self.guest.restart()
            self.asking.clear()
            indexes = 0, 0
            self.bench.driver.reset()
        self.bench.attach(*indexes)

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        for link in self.links:  # a guest too slow to answer
            link.may_lose |= link.connection.state in (State.OFFERED, State.CLOSING)
        self.bench.muxer.tick(self.now)

    # -- what holds at any time

    @invariant()
    def credit_is_never_exceeded(self) -> None:
        for link in self.links:
            outgoing, incoming = link.connection.outgoing, link.connection.incoming
            assert (outgoing.sent - outgoing.fwd_cnt) & WRAP <= outgoing.buf_alloc
            assert (incoming.received - incoming.fwd_cnt) & WRAP <= incoming.buf_alloc

    @invariant()
    def what_came_is_what_was_sent(self) -> None:
        for link in self.links:
            link.check()

    @invariant()
    def what_is_gone_is_gone(self) -> None:
        for link in self.links:
            if link.connection.state is State.GONE:
                assert not link.end.is_open
                assert link.connection.end is None
                assert link.connection.due == 0
        if self.links:
            assert {Reason.PROTOCOL, Reason.CREDIT} & set(self.bench.muxer.counted["service"].ended) == set()

    def teardown(self) -> None:
        """Everything is read, then closed: nothing hangs, and nothing is left."""
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        self._settle()
        while bench.host.wanted:
            self.host_answers(0, UNBOUNDED, True, False)
        self._settle()
        for link in self.links:
            link.check()
            if link.connection.state is State.OPEN and link.socket is not None and link.socket.is_open:
                shut = link.socket.shut | link.socket.peer_shut
                _compare(link.connection.type, link.end.taken, link.socket.sent, True)
                _compare(link.connection.type, link.socket.received, link.given, not shut & Shutdown.RECEIVE)
                assert not link.socket.shut & Shutdown.SEND or "finish" in link.end.calls
                assert not link.end.ended or shut & Shutdown.RECEIVE or link.socket.peer_shut & Shutdown.SEND
        for number, link in enumerate(self.links):
            if number % 2 and not link.is_closed and link.connection.state is State.OPEN:
                link.is_closed = link.end.ended = link.end.gone = True
                bench.muxer.hung_up(link.connection)
            elif link.socket is not None:
                self.guest.close(link.socket)
        self._settle()
        for socket in list(self.guest.sockets.values()):
            self.guest.close(socket)
        self._settle()
        bench.muxer.tick(self.now)
        bench.muxer.tick(self.now + 100.0)
        self._settle()
        for link in self.links:
            link.check()
            assert link.connection.state is State.GONE, link.connection
            assert not link.end.is_open
        assert bench.is_empty
        assert bench.muxer.next_deadline is None
        assert self.guest.sockets == {}

    # -- inside

    def _begin(self, link: Link) -> None:
        """Let the counters begin where the guest's do."""
        outgoing, incoming = link.connection.outgoing, link.connection.incoming
        outgoing.sent = outgoing.fwd_cnt = COUNTERS_BEGIN
        incoming.received = incoming.fwd_cnt = incoming.told_fwd_cnt = COUNTERS_BEGIN
        self.links.append(link)

    def _link_of_guest(self, pick: int) -> Link | None:
        found = [link for link in self.links if link.socket is not None and not link.socket.is_gone]
        return found[-1 - pick % len(found)] if found else None

    def _link(self, pick: int) -> Link | None:
        found = [link for link in self.links if link.end.is_open and not link.is_closed]
        return found[-1 - pick % len(found)] if found else None

    def _open_link(self, pick: int) -> Link | None:
        link = self._link(pick)
        return link if link is not None and link.connection.state in (State.OPEN, State.FLUSHING) else None

    def _guest_turn(self, feeds: bool) -> bool:
        """Send and receive what there is; whether there was anything."""
        driver, before = self.bench.driver, len(self.guest.outgoing)
        driver.reclaim_tx()
        packets = driver.received(add_again=feeds)
        for packet in packets:
            self.guest.receive(*parse(packet))
        for link in self.links:
            if link.socket is None:
                link.socket = self.guest.sockets.get(link.connection.key)
        while self.guest.outgoing:
            header, payload = self.guest.outgoing[0]
            if not driver.send(header.pack(), payload):
                break
            self.guest.outgoing.popleft()
        return bool(packets) or len(self.guest.outgoing) != before

    def _come_to_rest(self) -> None:
        """Move what can be moved while nobody reads more than before."""
        for _ in range(MAX_TURNS):
            more = self.bench.step()
            if not self._guest_turn(True) and not more and not self.guest.outgoing and not self.bench.muxer.depth:
                return
        raise AssertionError("something hangs, or finds no rest")

    def _settle(self) -> None:
        """Both sides read all that comes, until nothing comes."""
        reads = True
        while reads:
            self._come_to_rest()
            reads = False
            for link in self.links:
                if link.end.is_open:
                    link.end.room = UNBOUNDED
                    reads |= link.connection.pending is not None
                    self.bench.muxer.writable(link.connection)
                if link.socket is not None and link.socket.readable:
                    reads = True
                    self.guest.read(link.socket, UNBOUNDED)


TestModel = Machine.TestCase
TestModel.settings = settings(
    max_examples=sample(80, 20_000),
    stateful_step_count=sample(30, 60),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
