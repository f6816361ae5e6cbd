"""A session: QEMU's own traces, everything that can be wrong, and what becomes of every descriptor."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.virtio import vhost_user
from hvsock.virtio.session import (
    PROTOCOL_FEATURES,
    RX,
    TX,
    Action,
    Close,
    End,
    MapMemory,
    Note,
    Reply,
    Reset,
    Session,
    SetCall,
    StartQueue,
    StopQueue,
)
from hvsock.virtio.vhost_user import (
    Feature,
    Flag,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    RingAddresses,
)
from tests.support import sample

OFFERED = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.EVENT_IDX | Feature.INDIRECT_DESC | 0b111
NEGOTIATED = 0x1_6000_0002
"""What QEMU and Linux 6.12 negotiated: VERSION_1, PROTOCOL_FEATURES, EVENT_IDX and SEQPACKET."""
CONFIG = (42).to_bytes(8, "little")
TABLE = [
    MemoryRegion(0, 0xC000_0000, 0x7F00_0000_0000, 0),
    MemoryRegion(1 << 32, 1 << 30, 0x7F00_C000_0000, 0xC000_0000),
]
ADDRESSES = [
    RingAddresses(0x7F00_0000_0000 + at, 0x7F00_0000_0800 + at, 0x7F00_0000_1000 + at) for at in (0, 0x4000)
]


class Performer:
    """Performs actions as a back end's process does, with descriptors that are only numbers.

    It checks that no descriptor is used that was closed, and that none is closed twice.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.numbers = itertools.count(100)
        self.open: set[int] = set()
        self.next_available = {RX: 0, TX: 0}
        self.running: dict[int, StartQueue] = {}
        self.memory: tuple[MemoryRegion, ...] = ()
        self.replies: list[bytes] = []
        self.resets = 0
        self.ended = False
        self.notes: list[str] = []

    def descriptors(self, count: int) -> list[int]:
        new = [next(self.numbers) for _ in range(count)]
        self.open.update(new)
        return new

    def send(
        self, request: int, payload: bytes = b"", count: int = 0, flags: Flag = Flag.NONE
    ) -> tuple[list[Action], list[int]]:
        """Sends a message with so many new descriptors; returns what was performed, and the descriptors."""
        descriptors = self.descriptors(count)
        actions = self.session.handle(Message(request, flags, payload).pack(), descriptors)
        return self.perform(actions), descriptors

    def perform(self, actions: Sequence[Action]) -> list[Action]:
        done: list[Action] = []
        todo = list(actions)
        while todo:
            action = todo.pop(0)
            done.append(action)
            match action:
                case Reply(data):
                    self.replies.append(data)
                case MapMemory(regions):
                    assert not self.running
                    self.memory = tuple(region for region, _ in regions)
                    self.close(descriptor for _, descriptor in regions)
                case StartQueue():
                    assert action.queue not in self.running
                    assert self.open >= {one for one in (action.kick, action.call, action.err) if one is not None}
                    assert self.memory
                    self.running[action.queue] = action
                    self.next_available[action.queue] = action.base
                case StopQueue(queue):
                    del self.running[queue]
                    after = self.session.stopped(queue, self.next_available[queue])
                    done += self.perform(after)
                case SetCall(queue, call):
                    assert call is None or call in self.open
                    self.running[queue] = self.running[queue]._replace(call=call)
                case Reset():
                    self.resets += 1
                case Close(descriptors):
                    self.close(descriptors)
                case Note(text):
                    self.notes.append(text)
                case End():
                    self.ended = True
        return done

    def close(self, descriptors: Iterable[int]) -> None:
        for descriptor in descriptors:
            self.open.remove(descriptor)
            lent = {one for start in self.running.values() for one in (start.kick, start.call, start.err)}
            assert descriptor not in lent


def number(reply: bytes, request: Request) -> int:
    return vhost_user.parse_u64(vhost_user.parse_reply(reply, request))


class Qemu(Performer):
    """Sends what QEMU 7.2.22 was seen to send."""

    def get(self, request: Request, payload: bytes = b"") -> bytes:
        """Sends a message that has a reply and nothing else; returns its payload."""
        before = len(self.replies)
        self.send(request, payload)
        assert len(self.replies) == before + 1
        return vhost_user.parse_reply(self.replies[-1], request)

    def set(self, request: Request, value: int) -> list[Action]:
        return self.send(request, vhost_user.pack_u64(value))[0]

    def set_vring(self, request: Request, index: int, value: int) -> list[Action]:
        return self.send(request, vhost_user.pack_vring_state(index, value))[0]

    def set_descriptor(self, request: Request, index: int) -> tuple[list[Action], int]:
        actions, (descriptor,) = self.send(request, vhost_user.pack_vring_descriptor(index, attached=True), 1)
        return actions, descriptor

    def realize(self) -> None:
        assert vhost_user.parse_u64(self.get(Request.GET_FEATURES)) == OFFERED
        assert vhost_user.parse_u64(self.get(Request.GET_PROTOCOL_FEATURES)) == PROTOCOL_FEATURES
        self.set(Request.SET_PROTOCOL_FEATURES, PROTOCOL_FEATURES)
        assert vhost_user.parse_u64(self.get(Request.GET_QUEUE_NUM)) == 2
        self.send(Request.SET_OWNER)
        self.get(Request.GET_FEATURES)
        for index in (RX, TX):
            self.set_descriptor(Request.SET_VRING_CALL, index)
            self.set_descriptor(Request.SET_VRING_ERR, index)
        config = self.get(Request.GET_CONFIG, vhost_user.pack_config(0, bytes(8)))
        assert vhost_user.parse_config(config) == (0, CONFIG)

    def set_calls(self) -> None:
        for index in (RX, TX):
            self.set_descriptor(Request.SET_VRING_CALL, index)

    def set_memory(self) -> list[Action]:
        before = len(self.replies)
        actions, _ = self.send(
            Request.SET_MEM_TABLE, vhost_user.pack_memory_table(TABLE), len(TABLE), Flag.NEED_REPLY
        )
        assert [number(one, Request.SET_MEM_TABLE) for one in self.replies[before:]] == [0]
        return actions

    def set_up(self, bases: Sequence[int]) -> None:
        """Everything before the queues are enabled."""
        self.set_calls()
        self.set(Request.SET_FEATURES, NEGOTIATED)
        self.get(Request.GET_STATUS)
        self.set(Request.SET_STATUS, 8)
        self.set_memory()
        for index in (RX, TX):
            self.set_vring(Request.SET_VRING_NUM, index, 128)
            self.set_vring(Request.SET_VRING_BASE, index, bases[index])
            self.send(Request.SET_VRING_ADDR, vhost_user.pack_vring_addresses(index, ADDRESSES[index]))
            self.set_descriptor(Request.SET_VRING_KICK, index)

    def start(self, bases: Sequence[int]) -> list[Action]:
        """Returns what enabling the queues led to."""
        self.set_up(bases)
        assert not self.running
        actions = [one for index in (RX, TX) for one in self.set_vring(Request.SET_VRING_ENABLE, index, 1)]
        self.set_calls()
        return actions

    def stop(self) -> list[int]:
        """Returns the bases."""
        for index in (RX, TX):
            self.set_vring(Request.SET_VRING_ENABLE, index, 0)
        bases = []
        for index in (RX, TX):
            payload = self.get(Request.GET_VRING_BASE, vhost_user.pack_vring_state(index, 0))
            assert vhost_user.parse_vring_state(payload)[0] == index
            bases.append(vhost_user.parse_vring_state(payload)[1])
        self.set_calls()
        assert not self.running
        return bases


def new(**options: int) -> Qemu:
    return Qemu(Session(OFFERED, CONFIG, **options))


def started(bases: Sequence[int] = (0, 0)) -> Qemu:
    qemu = new()
    qemu.realize()
    qemu.start(bases)
    return qemu


def names(actions: Sequence[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_qemus_trace() -> None:
    qemu = new()
    qemu.realize()
    assert qemu.session.protocol_features == PROTOCOL_FEATURES
    actions = qemu.start([0, 0])
    assert names(actions) == ["Reset", "StartQueue", "StartQueue"]
    assert qemu.session.features == NEGOTIATED
    assert qemu.memory == tuple(TABLE)
    for index, start in qemu.running.items():
        assert (start.size, start.base, start.addresses, start.event_idx) == (128, 0, ADDRESSES[index], True)
        assert len({start.kick, start.call, start.err} & qemu.open) == 3
    qemu.next_available = {RX: 17, TX: 0xFFFF}
    assert qemu.stop() == [17, 0xFFFF]
    assert len(qemu.open) == 4  # call and err of each queue
    assert set(qemu.session.close()) == qemu.open
    assert qemu.session.close() == ()
    assert not qemu.notes
    assert not qemu.ended


def test_a_paused_guest_goes_on_where_it_was_and_one_that_was_reset_does_not() -> None:
    qemu = started()
    assert qemu.resets == 1
    for round_ in range(1, 4):
        qemu.next_available = {RX: 0x7FFF * round_ & 0xFFFF, TX: 5 * round_}
        bases = qemu.stop()
        assert names(qemu.start(bases)) == ["StartQueue", "StartQueue"]
        assert {index: start.base for index, start in qemu.running.items()} == dict(enumerate(bases))
    assert qemu.resets == 1
    qemu.stop()
    assert names(qemu.start([0, 0])) == ["Reset", "StartQueue", "StartQueue"]
    assert qemu.resets == 2


@pytest.mark.parametrize("stopped_at", [[0, 0], [3, 0], [0, 3]])
def test_a_guest_that_was_reset_before_it_did_much(stopped_at: list[int]) -> None:
    """Even where the bases are those at which the queues stopped."""
    qemu = started()
    qemu.next_available = dict(enumerate(stopped_at))
    assert qemu.stop() == stopped_at
    assert names(qemu.start([0, 0]))[0] == "Reset"


@pytest.mark.parametrize("stopped_at", [[7, 0], [0, 7]])
def test_an_index_that_came_round_to_zero_is_no_reset(stopped_at: list[int]) -> None:
    qemu = started()
    qemu.next_available = dict(enumerate(stopped_at))
    assert qemu.stop() == stopped_at
    assert names(qemu.start(stopped_at)) == ["StartQueue", "StartQueue"]


def test_status_zero_stops_the_queues_and_keeps_the_bases() -> None:
    """Newer versions of QEMU set it when they stop a device, for a pause too."""
    qemu = started()
    qemu.next_available = {RX: 3, TX: 4}
    assert names(qemu.set(Request.SET_STATUS, 0)) == ["StopQueue", "StopQueue"]
    assert vhost_user.parse_u64(qemu.get(Request.GET_STATUS)) == 0
    assert qemu.stop() == [3, 4]
    assert names(qemu.start([3, 4])) == ["StartQueue", "StartQueue"]


def test_without_protocol_features_a_queue_starts_with_its_kick() -> None:
    qemu = new()
    qemu.set(Request.SET_FEATURES, Feature.VERSION_1)
    qemu.send(Request.SET_MEM_TABLE, vhost_user.pack_memory_table(TABLE), 2)
    for index in (RX, TX):
        assert qemu.set_vring(Request.SET_VRING_NUM, index, 256) == []
        assert qemu.set_vring(Request.SET_VRING_BASE, index, 0) == []
        qemu.send(Request.SET_VRING_ADDR, vhost_user.pack_vring_addresses(index, ADDRESSES[index]))
        actions, kick = qemu.set_descriptor(Request.SET_VRING_KICK, index)
        start = StartQueue(index, 256, 0, ADDRESSES[index], False, kick, None, None)
        assert actions == [Reset(), start][index:]  # once, before the first
    # where it stops it stays, until there is a kick again
    assert names(qemu.set_vring(Request.GET_VRING_BASE, RX, 0)) == ["StopQueue", "Close", "Reply"]
    actions, _ = qemu.set_descriptor(Request.SET_VRING_KICK, RX)
    assert names(actions) == ["StartQueue"]


def test_a_queue_waits_for_all_that_it_needs() -> None:
    """In whatever order it comes."""
    steps = {
        "size": lambda qemu: qemu.set_vring(Request.SET_VRING_NUM, RX, 128),
        "addresses": lambda qemu: qemu.send(
            Request.SET_VRING_ADDR, vhost_user.pack_vring_addresses(RX, ADDRESSES[RX])
        )[0],
        "kick": lambda qemu: qemu.set_descriptor(Request.SET_VRING_KICK, RX)[0],
        "enable": lambda qemu: qemu.set_vring(Request.SET_VRING_ENABLE, RX, 1),
    }
    for order in itertools.permutations(steps):
        qemu = new()
        qemu.send(Request.SET_MEM_TABLE, vhost_user.pack_memory_table(TABLE), 2)
        *before, last = order
        for step in before:
            assert steps[step](qemu) == []
        assert names(steps[last](qemu)) == ["StartQueue"]


def test_another_call_descriptor_for_a_running_queue() -> None:
    qemu = started()
    old = qemu.running[TX].call
    actions, descriptor = qemu.set_descriptor(Request.SET_VRING_CALL, TX)
    assert old is not None
    assert actions == [SetCall(TX, descriptor), Close((old,))]
    actions, _ = qemu.send(Request.SET_VRING_CALL, vhost_user.pack_vring_descriptor(TX, attached=False))
    assert actions == [SetCall(TX, None), Close((descriptor,))]


@pytest.mark.parametrize("request_", [Request.SET_VRING_KICK, Request.SET_VRING_ERR])
def test_another_kick_or_err_descriptor_starts_the_queue_again_where_it_was(request_: Request) -> None:
    qemu = started()
    before = qemu.running[RX]
    qemu.next_available[RX] = 77
    actions, descriptor = qemu.set_descriptor(request_, RX)
    assert names(actions) == ["StopQueue", "Close", "StartQueue"]
    kick = request_ is Request.SET_VRING_KICK
    changed = before._replace(kick=descriptor) if kick else before._replace(err=descriptor)
    assert qemu.running[RX] == changed._replace(base=77)
    assert qemu.running.keys() == {RX, TX}
    assert qemu.resets == 1


def test_other_memory_while_the_queues_run() -> None:
    qemu = started()
    qemu.next_available = {RX: 1, TX: 2}
    actions = qemu.set_memory()
    wanted = ["StopQueue", "StopQueue", "MapMemory", "StartQueue", "StartQueue", "Reply"]
    assert names(actions) == wanted
    assert [start.base for start in qemu.running.values()] == [1, 2]
    assert qemu.resets == 1


def test_a_queue_can_be_disabled_and_enabled() -> None:
    qemu = started()
    qemu.next_available[TX] = 9
    assert qemu.set_vring(Request.SET_VRING_ENABLE, TX, 0) == [StopQueue(TX)]
    assert qemu.set_vring(Request.SET_VRING_ENABLE, TX, 0) == []
    (start,) = qemu.set_vring(Request.SET_VRING_ENABLE, TX, 1)
    assert isinstance(start, StartQueue)
    assert start.base == 9
    assert qemu.set_vring(Request.SET_VRING_ENABLE, TX, 1) == []


def test_the_event_queue_may_be_passed_too() -> None:
    session = Session(OFFERED, CONFIG, queues=3, max_queue_size=64)
    qemu = Qemu(session)
    assert vhost_user.parse_u64(qemu.get(Request.GET_QUEUE_NUM)) == 3
    assert qemu.set_vring(Request.SET_VRING_NUM, 2, 64) == []
    assert names(qemu.set_vring(Request.SET_VRING_NUM, 2, 128)) == ["End"]
    assert names(qemu.set_vring(Request.SET_VRING_NUM, 3, 64)) == ["End"]


@pytest.mark.parametrize(
    ("offset", "size", "content"),
    [(0, 8, CONFIG), (4, 4, CONFIG[4:]), (8, 0, b""), (0, 9, None), (1, 8, None), (0xFFFF_FFFF, 1, None)],
)
def test_config_space(offset: int, size: int, content: bytes | None) -> None:
    reply = new().get(Request.GET_CONFIG, vhost_user.pack_config(offset, bytes(size)))
    assert reply == (b"" if content is None else vhost_user.pack_config(offset, content))


WRONG: dict[str, tuple[Request, bytes, int]] = {
    "payload of a request without one": (Request.SET_OWNER, bytes(8), 0),
    "descriptor that does not belong": (Request.SET_VRING_NUM, vhost_user.pack_vring_state(0, 128), 1),
    "size": (Request.SET_FEATURES, bytes(4), 0),
    "features that were not offered": (Request.SET_FEATURES, vhost_user.pack_u64(1 << 33), 0),
    "protocol features that were not offered": (Request.SET_PROTOCOL_FEATURES, vhost_user.pack_u64(1 << 15), 0),
    "no regions": (Request.SET_MEM_TABLE, vhost_user.pack_memory_table([]), 0),
    "regions without descriptors": (Request.SET_MEM_TABLE, vhost_user.pack_memory_table(TABLE), 0),
    "fewer descriptors": (Request.SET_MEM_TABLE, vhost_user.pack_memory_table(TABLE), 1),
    "more descriptors": (Request.SET_MEM_TABLE, vhost_user.pack_memory_table(TABLE), 3),
    "addresses before memory": (Request.SET_VRING_ADDR, vhost_user.pack_vring_addresses(0, ADDRESSES[0]), 0),
    "no size": (Request.SET_VRING_NUM, vhost_user.pack_vring_state(0, 0), 0),
    "size that is no power of two": (Request.SET_VRING_NUM, vhost_user.pack_vring_state(0, 127), 0),
    "too large": (Request.SET_VRING_NUM, vhost_user.pack_vring_state(0, 2048), 0),
    "base": (Request.SET_VRING_BASE, vhost_user.pack_vring_state(0, 0x10000), 0),
    "queue to set up": (Request.SET_VRING_NUM, vhost_user.pack_vring_state(2, 128), 0),
    "queue with addresses": (Request.SET_VRING_ADDR, vhost_user.pack_vring_addresses(2, ADDRESSES[0]), 0),
    "queue to enable": (Request.SET_VRING_ENABLE, vhost_user.pack_vring_state(0xFFFF_FFFF, 1), 0),
    "neither enabled nor disabled": (Request.SET_VRING_ENABLE, vhost_user.pack_vring_state(0, 2), 0),
    "queue to stop": (Request.GET_VRING_BASE, vhost_user.pack_vring_state(2, 0), 0),
    "queue with a descriptor": (Request.SET_VRING_CALL, vhost_user.pack_vring_descriptor(2, attached=True), 1),
    "descriptor that is missing": (Request.SET_VRING_CALL, vhost_user.pack_vring_descriptor(0, attached=True), 0),
    "descriptor too many": (Request.SET_VRING_CALL, vhost_user.pack_vring_descriptor(0, attached=False), 1),
    "two descriptors": (Request.SET_VRING_ERR, vhost_user.pack_vring_descriptor(0, attached=True), 2),
    "kick to poll": (Request.SET_VRING_KICK, vhost_user.pack_vring_descriptor(0, attached=False), 0),
    "config is read-only": (Request.SET_CONFIG, vhost_user.pack_config(0, bytes(8)), 0),
    "config without a size": (Request.GET_CONFIG, b"", 0),
}
"""What is wrong -> request, payload and number of descriptors."""


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_ends_the_session_and_changes_nothing(what: str) -> None:
    qemu = new()
    request, payload, count = WRONG[what]
    actions, _ = qemu.send(request, payload, count)
    assert names(actions) == [*(["Close"] if count else []), "End"]
    assert not qemu.open
    assert qemu.session.close() == ()
    # a session that goes on in spite of it is as if nothing had been
    qemu.realize()
    assert names(qemu.start([0, 0])) == ["Reset", "StartQueue", "StartQueue"]


@pytest.mark.parametrize("what", WRONG)
def test_who_asks_for_a_word_is_told_what_was_wrong(what: str) -> None:
    qemu = new()
    qemu.set(Request.SET_PROTOCOL_FEATURES, ProtocolFeature.REPLY_ACK)
    request, payload, count = WRONG[what]
    actions, _ = qemu.send(request, payload, count, Flag.NEED_REPLY)
    closed = ["Close"] if count else []
    if request.name.startswith("GET_"):
        assert names(actions) == [*closed, "End"]  # its own reply has no room for an error
        return
    assert names(actions) == [*closed, "Reply", "Note"]
    assert number(qemu.replies[-1], request) == 1
    assert request.name in qemu.notes[-1]


@pytest.mark.parametrize("data", [b"", bytes(12), Message(Request.SET_OWNER, Flag.NONE, b"").pack()[:-1]])
def test_what_is_no_message_ends_the_session(data: bytes) -> None:
    qemu = new()
    assert names(qemu.perform(qemu.session.handle(data, qemu.descriptors(2)))) == ["Close", "End"]
    assert not qemu.open


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Request.SET_VRING_NUM, vhost_user.pack_vring_state(0, 64)),
        (Request.SET_VRING_BASE, vhost_user.pack_vring_state(0, 0)),
        (Request.SET_VRING_ADDR, vhost_user.pack_vring_addresses(0, ADDRESSES[1])),
        (Request.SET_FEATURES, vhost_user.pack_u64(NEGOTIATED & ~Feature.EVENT_IDX)),
    ],
)
def test_a_running_queue_is_not_set_up(request_: Request, payload: bytes) -> None:
    qemu = started()
    before = dict(qemu.running)
    actions, _ = qemu.send(request_, payload, flags=Flag.NEED_REPLY)
    assert names(actions) == ["Reply", "Note"]
    assert number(qemu.replies[-1], request_) == 1
    assert request_.name in qemu.notes[-1]
    assert qemu.running == before
    assert names(qemu.send(request_, payload)[0]) == ["End"]


def test_the_same_features_again_are_no_change() -> None:
    qemu = started()
    assert qemu.set(Request.SET_FEATURES, NEGOTIATED) == []


def test_a_word_is_given_to_who_asks_for_one_and_may() -> None:
    qemu = new()
    payload = vhost_user.pack_vring_state(0, 128)
    assert qemu.send(Request.SET_VRING_NUM, payload, flags=Flag.NEED_REPLY)[0] == []
    qemu.set(Request.SET_PROTOCOL_FEATURES, ProtocolFeature.REPLY_ACK)
    assert qemu.send(Request.SET_VRING_NUM, payload)[0] == []
    assert names(qemu.send(Request.SET_VRING_NUM, payload, flags=Flag.NEED_REPLY)[0]) == ["Reply"]
    assert number(qemu.replies[-1], Request.SET_VRING_NUM) == 0
    # a request with a reply of its own has that one only
    assert names(qemu.send(Request.GET_FEATURES, flags=Flag.NEED_REPLY)[0]) == ["Reply"]
    assert number(qemu.replies[-1], Request.GET_FEATURES) == OFFERED


def test_an_unknown_request_is_no_reason_to_end() -> None:
    qemu = new()
    assert names(qemu.send(21, bytes(8), 1, Flag.NEED_REPLY)[0]) == ["Close", "Note"]
    qemu.realize()
    before = len(qemu.open)
    assert names(qemu.send(4)[0]) == ["Note"]
    assert names(qemu.send(21, bytes(8), 1, Flag.NEED_REPLY)[0]) == ["Close", "Reply", "Note"]
    reply = vhost_user.parse(qemu.replies[-1].replace(b"\x05\0\0\0", b"\x01\0\0\0", 1))
    assert (reply.request, vhost_user.parse_u64(reply.payload)) == (21, 1)
    assert len(qemu.open) == before


indexes = st.sampled_from([0, 0, 1, 1, 2, 0xFFFF_FFFF])
states = st.builds(vhost_user.pack_vring_state, indexes, st.sampled_from([0, 1, 1, 128, 0xFFFF, 1 << 16]))
files = st.builds(vhost_user.pack_vring_descriptor, st.sampled_from([0, 1, 2, 0xFF]), st.booleans())
addresses = st.builds(vhost_user.pack_vring_addresses, indexes, st.sampled_from(ADDRESSES))
tables = st.sampled_from([TABLE, TABLE[:1], TABLE * 4]).map(vhost_user.pack_memory_table)
u64s = st.sampled_from([0, 1, NEGOTIATED, Feature.VERSION_1, PROTOCOL_FEATURES, 1 << 63]).map(vhost_user.pack_u64)
configs = st.builds(vhost_user.pack_config, st.integers(0, 10), st.binary(max_size=10))
likely = st.one_of(
    st.tuples(
        st.sampled_from(
            [Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.GET_VRING_BASE, Request.SET_VRING_ENABLE]
        ),
        states,
    ),
    st.tuples(st.sampled_from([Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]), files),
    st.tuples(st.just(Request.SET_VRING_ADDR), addresses),
    st.tuples(st.just(Request.SET_MEM_TABLE), tables),
    st.tuples(st.sampled_from([Request.SET_FEATURES, Request.SET_PROTOCOL_FEATURES, Request.SET_STATUS]), u64s),
    st.tuples(st.sampled_from([Request.GET_CONFIG, Request.SET_CONFIG]), configs),
)
unlikely = st.tuples(st.integers(0, 45), st.binary(max_size=50))
counts = st.sampled_from([None, None, None, None, 0, 1, 2, 8])
"""Number of descriptors; None: the right one, where there is a right one."""


def right_count(request: int, payload: bytes) -> int:
    if request == Request.SET_MEM_TABLE:
        return min(8, payload[0]) if payload else 0
    if request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
        return int(len(payload) == 8 and not payload[1] & 1)
    return 0


@settings(max_examples=sample(100, 20_000))
@given(
    st.booleans(),
    st.lists(
        st.tuples(st.one_of(likely, likely, likely, unlikely), counts, st.booleans(), st.integers(0, 0xFFFF)),
        max_size=40,
    ),
)
def test_whatever_comes_every_descriptor_is_closed_once(
    has_started: bool, todo: list[tuple[tuple[int, bytes], int | None, bool, int]]
) -> None:
    """The performer checks each action; in the end nothing is open but what the session gives back."""
    qemu = started() if has_started else new()
    for (request, payload), count, wants_word, moved in todo:
        for index in qemu.running:
            qemu.next_available[index] = moved
        count = right_count(request, payload) if count is None else count
        actions, descriptors = qemu.send(request, payload, count, Flag.NEED_REPLY if wants_word else Flag.NONE)
        replies = names(actions).count("Reply")
        assert replies <= 1
        if qemu.ended:
            assert not set(descriptors) & qemu.open
            break
    held = qemu.session.close()
    assert len(set(held)) == len(held)
    assert set(held) == qemu.open


@given(st.lists(st.tuples(st.binary(max_size=60), st.integers(0, 8)), max_size=5))
def test_noise_is_no_exception(todo: list[tuple[bytes, int]]) -> None:
    qemu = new()
    for data, count in todo:
        qemu.perform(qemu.session.handle(data, qemu.descriptors(count)))
    assert set(qemu.session.close()) == qemu.open
