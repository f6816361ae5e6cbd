"""Connections of one guest: how they begin and end, on both sides, and what they leave behind."""

from __future__ import annotations

import sys

import pytest

from hvsock.virtio.connection import Connection, Reason, State
from hvsock.virtio.muxer import CLOSE_SECONDS, FIRST_HOST_PORT, LAST_HOST_PORT, SETTLED_WAITS, Muxer
from hvsock.virtio.packet import HOST_CID, SEQPACKET, STREAM, Header, Op, Shutdown
from hvsock.virtio.to_guest import MAX_STRAYS
from tests.virtio.fakes import GUEST_CID, GUEST_PORT, HOST_PORT, ROOM, Bench, FakeEnd, FakeHost, fake

SIBLING_CID = 43


def ended(bench: Bench) -> dict[str, int]:
    """How connections ended, those that were never established among them."""
    report = bench.muxer.report()
    found: dict[str, int] = dict(report["refused"])
    for service in report["services"].values():
        for reason, count in service["ended"].items():
            found[reason] = found.get(reason, 0) + count
    return found


# -- beginning


@pytest.mark.parametrize("type_", [STREAM, SEQPACKET])
@pytest.mark.parametrize("cid", [HOST_CID, SIBLING_CID, 0xFFFF_FFFE])
def test_the_guest_connects(type_: int, cid: int) -> None:
    bench = Bench()
    bench.guest(Op.REQUEST, type=type_, dst_cid=cid)
    assert bench.run() == []
    (connection,) = bench.host.wanted
    assert (connection.guest_port, connection.peer_cid, connection.peer_port) == (GUEST_PORT, cid, HOST_PORT)
    assert (connection.type, connection.state) == (type_, State.OPENING)
    bench.muxer.opened(connection, FakeEnd(type_), "service", survives_pause=True)
    ((header, _),) = bench.run()
    assert header[:8] == (cid, GUEST_CID, HOST_PORT, GUEST_PORT, 0, type_, Op.RESPONSE, 0)
    assert header.buf_alloc == connection.incoming.buf_alloc > 0
    assert bench.muxer.report()["services"]["service"]["opened"] == 1


def test_the_host_side_may_have_something_to_say_at_once() -> None:
    bench = Bench()
    bench.guest(Op.REQUEST)
    bench.run()
    end = FakeEnd()
    end.outbox.append(b"hello")
    bench.muxer.opened(bench.host.wanted.pop(), end, "service")
    assert [(header.op, payload) for header, payload in bench.run()] == [(Op.RESPONSE, b""), (Op.RW, b"hello")]


def test_the_host_declines() -> None:
    bench = Bench()
    bench.guest(Op.REQUEST)
    bench.run()
    bench.muxer.declined(bench.host.wanted.pop())
    ((header, _),) = bench.run()
    assert header[:8] == (HOST_CID, GUEST_CID, HOST_PORT, GUEST_PORT, 0, STREAM, Op.RST, 0)
    assert bench.is_empty
    assert bench.host.cancelled == []
    assert ended(bench) == {Reason.REFUSED: 1}


@pytest.mark.parametrize("type_", [0, 3, 0xFFFF])
def test_types_that_nobody_knows_get_a_reset(type_: int) -> None:
    bench = Bench()
    for op in (*Op, 0, 99):
        bench.guest(op, type=type_)
        assert bench.ops() == ([] if op is Op.RST else [Op.RST])
    assert bench.host.wanted == []


@pytest.mark.parametrize("cid", [0, 1, 0xFFFF_FFFF, 1 << 32 | HOST_CID, (1 << 64) - 1])
def test_who_cannot_be_there_is_not_connected_to(cid: int) -> None:
    bench = Bench()
    bench.guest(Op.REQUEST, dst_cid=cid)
    ((header, _),) = bench.run()
    assert (header.op, header.src_cid) == (Op.RST, cid)
    assert bench.host.wanted == []


@pytest.mark.parametrize("type_", [STREAM, SEQPACKET])
@pytest.mark.parametrize("cid", [HOST_CID, SIBLING_CID])
def test_the_host_side_connects(type_: int, cid: int) -> None:
    bench = Bench()
    connection = bench.offer(FakeEnd(type_), type_=type_, peer_cid=cid)
    ((header, _),) = bench.run()
    assert header[:8] == (cid, GUEST_CID, FIRST_HOST_PORT, GUEST_PORT, 0, type_, Op.REQUEST, 0)
    assert fake(connection).calls == []
    bench.answer(connection, Op.RESPONSE)
    assert bench.run() == []
    assert fake(connection).calls == ["accept"]
    bench.answer(connection, Op.RW, b"data")
    bench.run()
    assert fake(connection).data == b"" if type_ == SEQPACKET else b"data"


def test_the_guest_refuses() -> None:
    bench = Bench()
    end = FakeEnd()
    connection = bench.offer(end)
    bench.run()
    bench.answer(connection, Op.RST)
    assert bench.run() == []
    assert end.calls == ["refuse refused", "close"]
    assert bench.is_empty


def test_the_guest_does_not_answer() -> None:
    bench = Bench()
    ends = [FakeEnd(), FakeEnd()]
    bench.offer(ends[0], seconds=5.0)
    bench.offer(ends[1], seconds=2.0)
    bench.run()
    assert bench.muxer.next_deadline is None
    bench.muxer.tick(100.0)
    assert bench.muxer.next_deadline == 102.0
    bench.muxer.tick(101.9)
    assert bench.run() == []
    bench.muxer.tick(102.0)
    assert bench.ops() == [Op.RST]
    assert [end.calls for end in ends] == [[], ["refuse timed_out", "close"]]
    assert bench.muxer.next_deadline == 105.0
    bench.muxer.tick(200.0)
    assert ended(bench) == {Reason.TIMED_OUT: 2}
    assert bench.muxer.next_deadline is None


def test_an_offer_that_the_guest_never_heard_of_leaves_nothing_behind() -> None:
    """A guest that gives no buffers and hosts that try again and again must not make anything grow."""
    bench = Bench(feeds=False)
    for _ in range(100):
        bench.offer(seconds=1.0)
        bench.run()
        bench.muxer.tick(0.0)
        bench.muxer.tick(1.0)
    assert ended(bench) == {Reason.TIMED_OUT: 100}
    assert bench.is_empty
    bench.driver.add_rx_buffers()
    assert bench.run() == []


def test_ports_of_the_host_side_go_round_and_leave_out_those_in_use() -> None:
    bench = Bench()
    bench.muxer._host_port = LAST_HOST_PORT
    assert [bench.offer().peer_port for _ in range(2)] == [LAST_HOST_PORT, FIRST_HOST_PORT]
    bench.muxer._host_port = LAST_HOST_PORT
    assert bench.offer().peer_port == FIRST_HOST_PORT + 1


def test_there_are_at_most_so_many_connections() -> None:
    bench = Bench(connections=3)
    first = bench.open(src_port=1)
    bench.open(src_port=2)
    bench.guest(Op.REQUEST, src_port=3)
    assert bench.run() == []
    end = FakeEnd()
    assert bench.muxer.offer(end, 9, seconds=1.0, service="service") is None
    assert end.calls == []
    bench.guest(Op.REQUEST, src_port=4)
    ((header, _),) = bench.run()
    assert (header.op, header.dst_port) == (Op.RST, 4)
    # what is being flushed counts too
    fake(first).room = 0
    bench.answer(first, Op.RW, b"data")
    bench.answer(first, Op.SHUTDOWN, flags=Shutdown.BOTH)
    bench.guest(Op.REQUEST, src_port=5)
    assert bench.ops() == [Op.RST, Op.RST]
    fake(first).room = 100
    bench.muxer.writable(first)
    bench.open(src_port=6)


# -- what belongs to no connection


@pytest.mark.parametrize("op", [*Op, 0, 8])
def test_what_belongs_to_no_connection_gets_a_reset_but_a_reset(op: int) -> None:
    bench = Bench()
    bench.guest(op, b"payload", src_port=9)
    expected = [] if op in (Op.RST, Op.REQUEST) else [Op.RST]
    assert bench.ops() == expected


def test_a_packet_of_another_type_gets_a_reset_and_the_connection_goes_on() -> None:
    bench = Bench()
    connection = bench.open()
    for op in (Op.RW, Op.SHUTDOWN, Op.RST):
        bench.answer(connection, op, b"", type=SEQPACKET)
    assert bench.ops() == [Op.RST]
    bench.answer(connection, Op.RW, b"goes on")
    bench.run()
    assert fake(connection).data == b"goes on"


def test_a_reset_that_waits_does_not_kill_the_next_connection_between_the_same_ports() -> None:
    bench = Bench(feeds=False)
    bench.guest(Op.RW)  # for nobody: a reset waits
    bench.guest(Op.REQUEST)
    bench.run()
    bench.muxer.opened(bench.host.wanted.pop(), FakeEnd(), "service")
    bench.driver.add_rx_buffers()
    assert bench.ops() == [Op.RESPONSE]


@pytest.mark.parametrize("opened", [True, False])
def test_a_guest_that_begins_anew_ends_the_old_connection_quietly(opened: bool) -> None:
    bench = Bench()
    bench.guest(Op.REQUEST)
    bench.run()
    (old,) = bench.host.wanted
    end = FakeEnd()
    if opened:
        bench.muxer.opened(bench.host.wanted.pop(), end, "service")
        bench.run()
    bench.guest(Op.REQUEST, type=SEQPACKET)
    assert bench.run() == []
    assert old.state is State.GONE
    assert end.calls == (["close"] if opened else [])
    assert bench.host.cancelled == ([] if opened else [old])
    new = bench.host.wanted.pop()
    bench.muxer.opened(new, FakeEnd(SEQPACKET), "service")
    assert bench.ops() == [Op.RESPONSE]
    assert ended(bench) == {Reason.REUSED: 1}


def test_the_pair_of_ports_is_free_while_the_old_connection_is_flushed() -> None:
    bench = Bench()
    old = bench.open(FakeEnd(room=0))
    bench.answer(old, Op.RW, b"old")
    bench.answer(old, Op.SHUTDOWN, flags=Shutdown.BOTH)
    assert bench.ops() == [Op.RST]
    new = bench.open()
    bench.answer(new, Op.RW, b"new")
    bench.run()
    old_end = fake(old)
    old_end.room = 10
    bench.muxer.writable(old)
    assert (old_end.data, old_end.calls) == (b"old", ["finish", "close"])
    assert (fake(new).data, new.state) == (b"new", State.OPEN)


def test_nobody_is_told_of_room_of_a_connection_that_is_flushed() -> None:
    bench = Bench(buffer_bytes=100)
    old = bench.open(FakeEnd(room=0))
    bench.answer(old, Op.RW, bytes(100))
    bench.answer(old, Op.SHUTDOWN, flags=Shutdown.BOTH)
    assert bench.ops() == [Op.RST]
    bench.open()
    fake(old).room = 90
    bench.muxer.writable(old)
    assert bench.run() == []
    fake(old).room = 10
    bench.muxer.writable(old)
    assert (bench.run(), old.due, old.state) == ([], 0, State.GONE)


# -- ending, the guest's side


def test_the_guest_half_closes_and_the_host_side_goes_on() -> None:
    bench = Bench()
    connection = bench.open()
    end = fake(connection)
    bench.answer(connection, Op.RW, b"question")
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)  # said twice, done once
    assert bench.run() == []
    assert (end.data, end.calls) == (b"question", ["finish"])
    end.outbox.append(b"answer")
    bench.muxer.readable(connection)
    assert [payload for _, payload in bench.run()] == [b"answer"]
    end.ended = True
    bench.muxer.readable(connection)
    ((header, _),) = bench.run()
    assert (header.op, header.flags) == (Op.SHUTDOWN, Shutdown.BOTH)
    assert (connection.state, end.calls) == (State.CLOSING, ["finish", "close"])
    bench.answer(connection, Op.RST)
    assert bench.run() == []
    assert bench.is_empty
    assert ended(bench) == {Reason.CLOSED: 1}


def test_the_guest_half_closes_and_then_closes() -> None:
    bench = Bench()
    connection = bench.open()
    end = fake(connection)
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.RECEIVE)
    assert bench.ops() == [Op.RST]
    assert end.calls == ["finish", "close"]
    assert ended(bench) == {Reason.CLOSED: 1}


def test_the_guest_receives_no_more_and_goes_on_sending() -> None:
    bench = Bench()
    connection = bench.open()
    end = fake(connection)
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.RECEIVE)
    bench.answer(connection, Op.RW, b"still sent")
    assert bench.run() == []
    assert (end.calls, end.data) == (["deafen"], b"still sent")
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    assert bench.ops() == [Op.RST]
    assert end.calls == ["deafen", "finish", "close"]
    assert ended(bench) == {Reason.CLOSED: 1}


def test_what_waits_comes_before_the_end_of_stream() -> None:
    bench = Bench()
    connection = bench.open(FakeEnd(room=2))
    end = fake(connection)
    bench.answer(connection, Op.RW, b"data")
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    assert bench.run() == []
    assert (end.data, end.calls) == (b"da", [])
    end.room = 100
    bench.muxer.writable(connection)
    assert (end.data, end.calls) == (b"data", ["finish"])
    assert connection.state is State.OPEN


@pytest.mark.parametrize("room", [0, 100])
def test_the_guest_closes(room: int) -> None:
    bench = Bench()
    connection = bench.open(FakeEnd(room=room))
    end = fake(connection)
    end.outbox.append(b"unread")
    bench.answer(connection, Op.RW, b"data")
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.BOTH)
    assert bench.ops() == [Op.RST]
    bench.answer(connection, Op.RST)
    assert bench.run() == []
    if not room:
        assert (connection.state, end.calls) == (State.FLUSHING, [])
        bench.muxer.readable(connection)  # the guest is done with it
        assert bench.run() == []
        end.room = 100
        bench.muxer.writable(connection)
    assert (end.data, end.calls) == (b"data", ["finish", "close"])
    assert bench.is_empty
    assert ended(bench) == {Reason.CLOSED: 1}


@pytest.mark.parametrize("how", ["writable", "hung_up"])
def test_nobody_is_there_any_more_for_what_is_flushed(how: str) -> None:
    bench = Bench()
    connection = bench.open(FakeEnd(room=0))
    end = fake(connection)
    bench.answer(connection, Op.RW, b"data")
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.BOTH)
    assert bench.ops() == [Op.RST]
    end.gone = True
    getattr(bench.muxer, how)(connection)
    assert bench.run() == []
    assert (end.calls, bench.is_empty) == (["close"], True)
    assert ended(bench) == {Reason.HOST_RESET: 1}
    for late in (bench.muxer.readable, bench.muxer.writable, bench.muxer.hung_up):
        late(connection)  # a connection that is gone is left alone
    assert bench.is_empty


@pytest.mark.parametrize("half_closed", [True, False])
def test_the_guest_resets(half_closed: bool) -> None:
    bench = Bench()
    connection = bench.open(FakeEnd(room=2))
    end = fake(connection)
    bench.answer(connection, Op.RW, b"data")
    if half_closed:
        bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    bench.answer(connection, Op.RST)
    assert bench.run() == []
    if half_closed:  # all that the guest had to send has come, so it is not lost
        end.room = 100
        bench.muxer.writable(connection)
        assert (end.data, end.calls) == (b"data", ["finish", "close"])
    else:
        assert (end.data, end.calls) == (b"da", ["close"])
    assert ended(bench) == {Reason.CLOSED if half_closed else Reason.GUEST_RESET: 1}


# -- ending, the host's side


def test_the_host_side_half_closes_and_the_guest_goes_on() -> None:
    bench = Bench()
    connection = bench.open()
    end = fake(connection)
    end.outbox.append(b"question")
    end.ended = True
    bench.muxer.readable(connection, ending=True)
    (_, question), (header, _) = bench.run()
    assert (question, header.op, header.flags) == (b"question", Op.SHUTDOWN, Shutdown.SEND)
    bench.muxer.readable(connection)
    assert bench.run() == []
    bench.answer(connection, Op.RW, b"answer")
    bench.run()
    assert (end.data, connection.state) == (b"answer", State.OPEN)
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    ((header, _),) = bench.run()
    assert (header.op, header.flags) == (Op.SHUTDOWN, Shutdown.BOTH)
    assert end.calls == ["finish", "close"]
    bench.answer(connection, Op.RST)
    assert bench.run() == []
    assert bench.is_empty


@pytest.mark.parametrize("closes", [True, False])
def test_both_half_close_while_data_of_the_guest_wait(closes: bool) -> None:
    bench = Bench()
    connection = bench.open(FakeEnd(room=2))
    end = fake(connection)
    end.ended = True
    bench.answer(connection, Op.RW, b"data")
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    bench.muxer.readable(connection)
    ((header, _),) = bench.run()
    assert (header.op, header.flags, end.calls) == (Op.SHUTDOWN, Shutdown.SEND, [])
    if closes:
        end.gone = True
        bench.muxer.hung_up(connection)
        assert bench.ops() == [Op.RST]
        assert end.calls == ["close"]
        assert ended(bench) == {Reason.HOST_RESET: 1}
    else:
        end.room = 2
        bench.muxer.writable(connection)
        ((header, _),) = bench.run()
        assert (header.op, header.flags, end.calls) == (Op.SHUTDOWN, Shutdown.BOTH, ["finish", "close"])


def test_the_host_side_closes_and_all_it_sent_comes_first() -> None:
    bench = Bench()
    connection = bench.open(buf_alloc=5)
    end = fake(connection)
    end.outbox.append(b"last words")
    end.ended = end.gone = True
    bench.muxer.hung_up(connection)
    packets = bench.run()
    assert [header.op for header, _ in packets] == [Op.RW, Op.CREDIT_REQUEST]
    bench.muxer.hung_up(connection)
    assert bench.run() == []
    bench.answer(connection, Op.CREDIT_UPDATE, buf_alloc=5, fwd_cnt=5)
    packets += bench.run()
    bench.answer(connection, Op.CREDIT_UPDATE, buf_alloc=5, fwd_cnt=10)
    packets += bench.run()
    assert b"".join(payload for _, payload in packets) == b"last words"
    assert (packets[-1][0].op, packets[-1][0].flags) == (Op.SHUTDOWN, Shutdown.BOTH)
    assert (connection.state, end.calls) == (State.CLOSING, ["close"])


@pytest.mark.parametrize("late", [b"", b"late"])
def test_a_reset_leaves_no_sender_of_the_guest_waiting_for_room(late: bytes) -> None:
    bench = Bench()
    connection = bench.open(FakeEnd(room=0))
    sent = 0
    while sent < ROOM:
        bench.answer(connection, Op.RW, bytes(ROOM // 8))
        assert bench.run() == []
        sent += ROOM // 8
    bench.muxer.cancel()
    if late:
        bench.answer(connection, Op.RW, late)
    ((header, _),) = bench.run()
    assert header.op == Op.RST
    assert header.buf_alloc - (sent + len(late) - header.fwd_cnt) >= ROOM


def test_a_guest_that_does_not_answer_a_close_is_reset_after_a_while() -> None:
    bench = Bench()
    connection = bench.open()
    fake(connection).ended = fake(connection).gone = True
    bench.muxer.hung_up(connection)
    assert bench.ops() == [Op.SHUTDOWN]
    bench.muxer.tick(50.0)
    assert bench.muxer.next_deadline == 50.0 + CLOSE_SECONDS
    bench.muxer.tick(50.0 + CLOSE_SECONDS)
    assert bench.ops() == [Op.RST]
    assert ended(bench) == {Reason.CLOSED: 1}
    assert bench.is_empty


def closing(bench: Bench) -> Connection:
    """A connection whose host side has closed."""
    connection = bench.open()
    fake(connection).ended = fake(connection).gone = True
    bench.muxer.hung_up(connection)
    assert bench.ops() == [Op.SHUTDOWN]
    return connection


def test_both_close_at_the_same_time() -> None:
    bench = Bench()
    connection = closing(bench)
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.SEND)
    assert bench.run() == []
    assert connection.state is State.CLOSING
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.BOTH)
    assert bench.ops() == [Op.RST]
    bench.answer(connection, Op.RST)
    assert bench.run() == []
    assert ended(bench) == {Reason.CLOSED: 1}


def test_payload_that_crosses_a_close_is_lost_and_said_so() -> None:
    bench = Bench()
    connection = closing(bench)
    bench.answer(connection, Op.RW, b"too late")
    assert bench.ops() == [Op.RST]
    assert ended(bench) == {Reason.HOST_RESET: 1}


@pytest.mark.parametrize("when", ["reading", "sending"])
def test_the_host_side_is_reset(when: str) -> None:
    bench = Bench()
    connection = bench.open()
    end = fake(connection)
    end.broken = True
    if when == "reading":
        bench.muxer.readable(connection)
    else:
        bench.answer(connection, Op.RW, b"data")
    assert bench.ops() == [Op.RST]
    assert (end.calls, ended(bench)) == (["close"], {Reason.HOST_RESET: 1})


def test_the_host_side_leaves_while_the_guest_is_asked() -> None:
    bench = Bench()
    connection = bench.offer()
    end = fake(connection)
    bench.run()
    bench.muxer.hung_up(connection)
    assert bench.ops() == [Op.RST]
    assert end.calls == ["refuse host_reset", "close"]


def test_the_host_side_closes_and_the_guest_receives_no_more() -> None:
    """Nothing is read of it then, so its end of stream would never be seen."""
    bench = Bench()
    connection = bench.open()
    bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.RECEIVE)
    bench.run()
    end = fake(connection)
    end.outbox.append(b"for nobody")
    end.gone = True
    bench.muxer.hung_up(connection)
    assert bench.ops() == [Op.SHUTDOWN]
    assert (connection.state, end.calls) == (State.CLOSING, ["deafen", "close"])


# -- all at once


def in_all_states(bench: Bench, *, survives_pause: bool = False) -> dict[State, Connection]:
    """A connection in each state, those with a service of the name of their state in lower case."""
    bench.guest(Op.REQUEST, src_port=1)
    bench.run()
    made = {State.OPENING: bench.host.wanted[0]}
    made[State.OFFERED] = bench.offer(service="offered", survives_pause=survives_pause)
    for state, port in ((State.OPEN, 2), (State.CLOSING, 3), (State.FLUSHING, 4)):
        bench.guest(Op.REQUEST, src_port=port)
        bench.run()
        connection = bench.host.wanted.pop()
        end = FakeEnd(room=0)
        bench.muxer.opened(connection, end, state.name.lower(), survives_pause=survives_pause)
        made[state] = connection
        bench.run()
        if state is State.CLOSING:
            end.ended = end.gone = True
            bench.muxer.hung_up(connection)
        elif state is State.FLUSHING:
            bench.answer(connection, Op.RW, b"kept")
            bench.answer(connection, Op.SHUTDOWN, flags=Shutdown.BOTH)
    bench.run()
    assert {connection.state: connection for connection in made.values()} == made
    return made


@pytest.mark.parametrize("survives", [True, False])
def test_a_pause_resets_those_that_did_not_ask_to_live_on(survives: bool) -> None:
    bench = Bench()
    made = in_all_states(bench, survives_pause=survives)
    flushed = fake(made[State.FLUSHING])
    indexes = bench.muxer.detach()
    bench.muxer.pause()
    bench.attach(*indexes)
    left = {state for state, connection in made.items() if connection.state is state}
    assert left == {State.CLOSING, State.FLUSHING} | ({State.OFFERED, State.OPEN} if survives else set())
    assert bench.ops() == [Op.RST] * (5 - len(left))
    assert ended(bench) == {Reason.PAUSED: 5 - len(left)}
    flushed.room = 10
    bench.muxer.writable(made[State.FLUSHING])
    assert (flushed.data, flushed.calls) == (b"kept", ["finish", "close"])
    if survives:
        bench.answer(made[State.OFFERED], Op.RESPONSE)
        bench.run()
        assert fake(made[State.OFFERED]).calls == ["accept"]


def test_a_reset_of_the_device_ends_what_the_guest_knew_and_tells_it_nothing() -> None:
    bench = Bench(feeds=False)
    bench.feeds = True
    bench.driver.add_rx_buffers()
    made = in_all_states(bench)
    ends = {state: connection.end for state, connection in made.items()}
    bench.feeds = False
    bench.guest(Op.RW, src_port=99)
    bench.muxer.drain()
    bench.muxer.detach()
    bench.muxer.reset()
    bench.driver.reset()
    bench.driver.add_rx_buffers()
    bench.attach()
    assert bench.run() == []
    assert {state for state, connection in made.items() if connection.state is state} == {State.FLUSHING}
    offered, opened = ends[State.OFFERED], ends[State.OPEN]
    assert isinstance(offered, FakeEnd)
    assert isinstance(opened, FakeEnd)
    assert offered.calls == ["refuse device_reset", "close"]
    assert opened.calls == ["close"]
    assert bench.host.cancelled == [made[State.OPENING]]
    assert ended(bench) == {Reason.DEVICE_RESET: 4}


def test_a_service_is_cancelled() -> None:
    bench = Bench()
    made = in_all_states(bench)
    end = fake(made[State.OPEN])
    bench.muxer.cancel("open")
    assert bench.ops() == [Op.RST]
    assert (end.calls, ended(bench)) == (["close"], {Reason.CANCELLED: 1})
    for service in ("offered", "flushing", "closing", "unknown"):
        bench.muxer.cancel(service)
    assert bench.ops() == [Op.RST, Op.RST]
    assert [one.state for one in bench.muxer.table.values()] == [State.OPENING]


def test_all_is_cancelled() -> None:
    bench = Bench()
    in_all_states(bench)
    bench.muxer.cancel()
    assert bench.ops() == [Op.RST] * 4
    assert bench.is_empty


def test_the_end_of_the_muxer_is_the_end_of_all() -> None:
    bench = Bench()
    ends = [connection.end for connection in in_all_states(bench).values()]
    bench.muxer.close()
    assert bench.run() == []
    assert bench.is_empty
    assert all(end.calls[-1] == "close" for end in ends if isinstance(end, FakeEnd))


# -- nothing grows


def sizes(muxer: Muxer) -> int:
    """Entries of everything that could grow: containers of the muxer and its parts, and of its connections."""
    parts = (muxer, muxer._to_guest, muxer._from_guest)
    values = [value for part in parts for value in vars(part).values()]
    values += [getattr(one, name) for one in muxer.table.values() for name in Connection.__slots__]
    return sum(
        len(value) for value in values if hasattr(value, "__len__") and not isinstance(value, str | memoryview)
    )


def of_one(op: Op, **fields: int) -> Header:
    """A packet of the connection that is there all the time."""
    return Header(GUEST_CID, HOST_CID, GUEST_PORT, HOST_PORT, op=op)._replace(**fields)


def of_another(op: Op, **fields: int) -> Header:
    """A packet of another one."""
    return of_one(op, src_port=2, **fields)


GREED = {
    "asks for credit": [of_one(Op.CREDIT_REQUEST)],
    "half-closes": [of_one(Op.SHUTDOWN, flags=1)],
    "changes its credit": [of_one(Op.CREDIT_UPDATE, buf_alloc=1), of_one(Op.CREDIT_UPDATE, buf_alloc=0)],
    "sends to nobody": [of_another(Op.RW)],
    "connects anew": [of_another(Op.REQUEST)],
    "connects and resets": [of_another(Op.REQUEST), of_another(Op.RST)],
    "connects and closes": [of_another(Op.REQUEST), of_another(Op.SHUTDOWN, flags=3)],
    "breaks rules": [of_another(Op.REQUEST), of_another(Op.RESPONSE)],
}


class OpenHost(FakeHost):
    """A host that takes every connection at once."""

    def __init__(self) -> None:
        super().__init__()
        self.muxer: Muxer | None = None

    def connect(self, connection: Connection) -> None:
        assert self.muxer is not None
        end = FakeEnd(connection.type)
        end.outbox.append(b"something to say")
        self.muxer.opened(connection, end, "service")


@pytest.mark.parametrize("what", GREED)
def test_a_guest_that_takes_nothing_and_goes_on_sending_makes_nothing_grow(what: str) -> None:
    bench = Bench(feeds=False)
    bench.open()
    host = OpenHost()
    host.muxer = bench.muxer
    bench.muxer._host = host
    seen = []
    for _ in range(300):
        for header in GREED[what]:
            assert bench.driver.send(header.pack())
            bench.run()
        bench.muxer.tick(0.0)
        seen.append(sizes(bench.muxer))
    assert max(seen[150:]) == max(seen[10:150])


def test_strays_and_what_waits_are_bounded_whatever_the_guest_and_the_hosts_do() -> None:
    """Offers that the guest was told of, resets that it was not."""
    limit = 10
    bench = Bench(feeds=False, connections=limit, queue_size=1)
    for _ in range(200):
        bench.offer(seconds=1.0)
        bench.driver.add_rx_buffers()
        bench.run()  # one buffer: a reset or a request
        bench.muxer.tick(0.0)
        bench.muxer.tick(1.0)
    assert bench.muxer.depth <= limit + MAX_STRAYS
    assert bench.muxer.depth <= 1


def test_waits_that_are_over_are_cleared_away() -> None:
    bench = Bench()
    first = bench.offer(seconds=300.0)
    for number in range(3 * SETTLED_WAITS):
        connection = bench.offer(seconds=300.0)
        bench.run()
        bench.answer(connection, Op.RST)
        bench.run()
        bench.muxer.tick(0.001 * number)
        assert len(bench.muxer._waits) <= SETTLED_WAITS + 2
    assert bench.muxer.next_deadline == first.deadline == 300.0


# -- watching


def test_the_report_adds_up() -> None:
    bench = Bench()
    first = bench.open(service="a")
    second = bench.open(service="b", src_port=1, buf_alloc=3)
    bench.answer(first, Op.RW, b"12345")
    fake(second).outbox.append(b"1234")
    bench.muxer.readable(second)
    bench.run()
    bench.answer(first, Op.RST)
    bench.run()
    bench.guest(Op.REQUEST, src_port=9)
    bench.run()
    report = bench.muxer.report()
    nothing = dict.fromkeys(
        ("packets_from_guest", "packets_to_guest", "bytes_from_guest", "bytes_to_guest", "stalls"), 0
    )
    assert report == {
        "connections": 2,
        "queue_depth": 0,
        "bad_packets": 0,
        "refused": {},
        "services": {
            "a": {
                **nothing, "open": 0, "opened": 1, "ended": {"guest_reset": 1}, "packets_from_guest": 2,
                "packets_to_guest": 1, "bytes_from_guest": 5,
            },
            "b": {
                **nothing, "open": 1, "opened": 1, "ended": {}, "packets_to_guest": 3, "bytes_to_guest": 3,
                "stalls": 1,
            },
        },
    }  # fmt: skip
    assert sys.getsizeof(first) < 1024
    assert second.incoming.buf_alloc == ROOM
