"""The table of states: complete, and every cell of it shown by a packet that does what it says."""

from __future__ import annotations

import pytest

from hvsock.virtio.connection import TABLE, Act, Connection, Reason, State
from hvsock.virtio.packet import SEQPACKET, STREAM, Op, Shutdown
from tests.virtio.fakes import GUEST_PORT, HOST_PORT, ROOM, Bench, FakeEnd, fake


def test_the_table_has_a_cell_for_every_packet_in_every_state_the_guest_knows() -> None:
    assert set(TABLE) == set(State) - {State.FLUSHING, State.GONE}
    assert all(set(line) == set(Op) for line in TABLE.values())
    assert {act for line in TABLE.values() for act in line.values()} == set(Act)


def in_state(bench: Bench, state: State) -> tuple[Connection, FakeEnd]:
    """A connection in this state, and its host side where it has one or had one."""
    end = FakeEnd()
    if state is State.OPENING:
        bench.guest(Op.REQUEST)
        assert bench.ops() == []
        connection = bench.host.wanted[0]
    elif state is State.OFFERED:
        connection = bench.offer(end)
        assert bench.ops() == [Op.REQUEST]
    else:
        connection = bench.open(end)
        if state is State.CLOSING:
            end.ended = end.gone = True
            bench.muxer.hung_up(connection)
            assert bench.ops() == [Op.SHUTDOWN]
    assert connection.state is state
    return connection, end


CASES = [(state, op) for state, line in TABLE.items() for op in line]


@pytest.mark.parametrize(("state", "op"), CASES)
def test_each_cell(state: State, op: Op) -> None:
    bench = Bench()
    connection, end = in_state(bench, state)
    payload = b"data" if op is Op.RW else b""
    bench.answer(connection, op, payload, flags=Shutdown.BOTH if op is Op.SHUTDOWN else 0, buf_alloc=ROOM + 1)
    ops = bench.ops()
    ended = bench.muxer.counted["service"].ended if "service" in bench.muxer.counted else {}
    refused = bench.muxer.report()["refused"]
    act = TABLE[state][op]
    match act:
        case Act.RESTART:
            assert ops == []
            assert connection.state is State.GONE
            assert [one.state for one in bench.muxer.table.values()] == [State.OPENING]
            assert refused | ended == {Reason.REUSED: 1}
        case Act.ACCEPT:
            assert (ops, connection.state, end.calls) == ([], State.OPEN, ["accept"])
        case Act.GONE:
            assert (ops, connection.state, bench.is_empty) == ([], State.GONE, True)
            reason = {State.OFFERED: Reason.REFUSED, State.CLOSING: Reason.CLOSED}.get(state, Reason.GUEST_RESET)
            assert refused | ended == {reason: 1}
        case Act.SHUT:
            assert (ops, connection.state, bench.is_empty) == ([Op.RST], State.GONE, True)
            assert ended == {Reason.CLOSED: 1}
            assert end.calls == (["finish", "close"] if state is State.OPEN else ["close"])
        case Act.DATA:
            assert (ops, connection.state, end.data) == ([], state, b"data")
        case Act.CREDIT:
            assert (ops, connection.state, connection.outgoing.buf_alloc) == ([], state, ROOM + 1)
        case Act.TELL:
            assert (ops, connection.state, connection.outgoing.buf_alloc) == ([Op.CREDIT_UPDATE], state, ROOM + 1)
        case Act.LATE:
            assert (ops, connection.state, ended) == ([Op.RST], State.GONE, {Reason.HOST_RESET: 1})
        case Act.RESET:
            assert (ops, connection.state, bench.is_empty) == ([Op.RST], State.GONE, True)
            assert refused | ended == {Reason.PROTOCOL: 1}
    if connection.state is State.GONE:
        assert connection.end is None
        assert not end.calls or end.calls[-1] == "close"
        assert bench.host.cancelled == ([connection] if state is State.OPENING else [])


@pytest.mark.parametrize("op", [0, 8, 0xFFFF])
@pytest.mark.parametrize("state", TABLE)
def test_what_is_no_operation_at_all_ends_the_connection(state: State, op: int) -> None:
    bench = Bench()
    connection, _ = in_state(bench, state)
    bench.answer(connection, op)
    assert bench.ops() == [Op.RST]
    assert connection.state is State.GONE


def test_a_connection_says_what_it_is() -> None:
    bench = Bench()
    assert repr(bench.open()) == f"<stream guest:{GUEST_PORT} host:{HOST_PORT} OPEN>"
    sibling = bench.offer(FakeEnd(SEQPACKET), peer_cid=43, type_=SEQPACKET)
    assert repr(sibling) == f"<seqpacket guest:{GUEST_PORT} cid 43:{1 << 30} OFFERED>"
    assert fake(sibling).type != STREAM
