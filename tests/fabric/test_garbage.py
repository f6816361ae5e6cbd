"""Clients that send garbage, half a message, too many descriptors or nothing: each is dropped alone, and soon."""

from __future__ import annotations

import array
import errno
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

assert sys.platform == "linux"

import socket

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hvsock
from hvsock.addresses import HV_GUID_PARENT, HV_GUID_WILDCARD, WELL_KNOWN_VMIDS, ServiceId, VmId
from hvsock.fabric import client, messages
from hvsock.fabric.broker import calls, clients
from hvsock.fabric.broker.quota import Quota
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.fabric.messages import Op, Request
from hvsock.testing.leaks import leak_check
from tests.fabric.peers import control, ended, read_errno, start_connect, take
from tests.support import sample
from tests.waiting import wait_until

REQUEST_SECONDS = 0.25
"""The time that a client has here."""
SLACK_SECONDS = 10.0
"""What a busy machine adds to it."""
MOST_DESCRIPTORS = 253
"""Of one message (SCM_MAX_FD)."""

PING = Request(Op.CALL, call={"method": "ping"}).pack()
STREAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedFabric]:
    """A fabric whose broker gives its clients little time; it has a partition web01."""
    monkeypatch.setattr(clients, "REQUEST_SECONDS", REQUEST_SECONDS)
    with EmbeddedFabric() as fabric:
        fabric.create_partition("web01")
        yield fabric


@pytest.fixture(params=["host", "guest"])
def folder(request: pytest.FixtureRequest, impatient: EmbeddedFabric) -> str:
    """The partition that is attacked."""
    if request.param == "host":
        return impatient.host.folder
    return str(client.call(impatient.host.folder, "partition.list")[1]["folder"])


@contextmanager
def others_served(fabric: EmbeddedFabric) -> Iterator[None]:
    """Meanwhile, requests of other clients are answered, each in less time than a silent client has."""
    stop, slowest, failures = threading.Event(), [0.0], []

    def ask() -> None:
        while not stop.is_set():
            start = time.monotonic()
            try:
                client.call(fabric.host.folder, "ping")
            except Exception as error:
                failures.append(error)
            slowest[0] = max(slowest[0], time.monotonic() - start)
            time.sleep(0.005)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert slowest[0] < SLACK_SECONDS


def send_descriptors(sock: socket.socket, data: bytes, count: int) -> None:
    """Send `data` with `count` descriptors."""
    with open(os.devnull) as file:
        sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()] * count))])


def quietly(send: Callable[..., object], *arguments: object) -> None:
    """Send what the broker may refuse to take."""
    with suppress(OSError):
        send(*arguments)


def slowly(sock: socket.socket) -> None:
    """A good request, byte by byte, for longer than there is time."""
    for index in range(50):
        quietly(sock.send, PING[index : index + 1])
        time.sleep(REQUEST_SECONDS / 40)


def flood(sock: socket.socket) -> None:
    """As much garbage as gets in."""
    sock.setblocking(False)
    for _ in range(1000):
        quietly(sock.send, os.urandom(65536))


def half_and_closed(sock: socket.socket) -> None:
    """Half a request and the end."""
    sock.send(PING[:1000])
    sock.shutdown(socket.SHUT_WR)


def urgent(sock: socket.socket) -> None:
    """Urgent data in the midst of a request."""
    sock.send(PING[:100])
    quietly(sock.send, b"!", socket.MSG_OOB)
    quietly(sock.send, PING[100:1000])


Attack = Callable[[socket.socket], int | None]
ATTACKS: dict[str, Attack] = {
    "nothing": lambda sock: None,
    "one byte": lambda sock: sock.send(b"x"),
    "garbage": lambda sock: sock.send(os.urandom(messages.REQUEST_BYTES)),
    "much garbage": lambda sock: sock.send(os.urandom(100_000)),
    "a flood of garbage": flood,
    "zeros": lambda sock: sock.send(bytes(messages.REQUEST_BYTES)),
    "half a request": lambda sock: sock.send(PING[: messages.REQUEST_BYTES // 2]),
    "a request but for one byte": lambda sock: sock.send(PING[:-1]),
    "a request and one byte": lambda sock: sock.send(PING + b"\0"),
    "byte by byte": slowly,
    "descriptors": lambda sock: send_descriptors(sock, b"x", MOST_DESCRIPTORS),
    "garbage with descriptors": lambda sock: send_descriptors(
        sock, os.urandom(messages.REQUEST_BYTES), MOST_DESCRIPTORS
    ),
    "half a request with descriptors": lambda sock: send_descriptors(sock, PING[:1000], MOST_DESCRIPTORS),
    "half a request, then closed for writing": half_and_closed,
    "closed for writing": lambda sock: sock.shutdown(socket.SHUT_WR),
    "closed for reading": lambda sock: sock.shutdown(socket.SHUT_RD),
    "another version": lambda sock: sock.send(b"HVS\x02" + PING[4:]),
    "a reply": lambda sock: sock.send(messages.Reply(0, bytes(2036)).pack()),
    "an unknown op": lambda sock: sock.send(PING[:4] + b"\x63" + PING[5:]),
    "unknown flags": lambda sock: sock.send(PING[:12] + b"\xff" + PING[13:]),
    "parameters that are too long": lambda sock: sock.send(PING[:20] + b"\xff\xff\xff\xff" + PING[24:]),
    "no JSON": lambda sock: sock.send(PING[:72] + b"{[" + PING[74:]),
    "a word of urgent data": urgent,
}


@pytest.mark.parametrize("type_", [STREAM, SEQPACKET], ids=["stream", "seqpacket"])
def test_each_is_dropped_alone_and_in_time(
    type_: int, folder: str, impatient: EmbeddedFabric, caplog: pytest.LogCaptureFixture
) -> None:
    with others_served(impatient), leak_check():
        attackers = {}
        for name, attack in ATTACKS.items():
            attackers[name] = control(folder, type_)
            attackers[name].settimeout(1)
            quietly(attack, attackers[name])
        deadline = time.monotonic() + REQUEST_SECONDS + SLACK_SECONDS
        for name, sock in attackers.items():
            assert ended(sock, max(0.1, deadline - time.monotonic())), name
            sock.close()
    wait_until(lambda: client.call(impatient.host.folder, "status")["connecting"] == 0)
    assert not caplog.records


@pytest.mark.parametrize("size", [0, 1, 2047, 2049, 100_000])
def test_a_message_of_a_wrong_size_is_refused_at_once(
    size: int, folder: str, impatient: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "REQUEST_SECONDS", 600.0)
    with control(folder, SEQPACKET) as sock:
        sock.send(PING.ljust(size, b"\0")[:size])
        if size:
            assert read_errno(sock) == errno.EPROTO
        assert ended(sock)  # at once, a message of no bytes, too: it cannot be told from the end


def test_good_requests_with_descriptors_are_served_and_the_descriptors_dropped(
    folder: str, impatient: EmbeddedFabric
) -> None:
    with leak_check():
        for type_ in (STREAM, SEQPACKET):
            with control(folder, type_) as sock:
                send_descriptors(sock, PING, MOST_DESCRIPTORS)
                assert read_errno(sock) == 0


def test_a_request_in_pieces_is_a_request(
    folder: str, impatient: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "REQUEST_SECONDS", 600.0)
    with control(folder) as sock:
        for piece in (PING[:1], PING[1:100], PING[100:]):
            sock.send(piece)
            time.sleep(0.01)
        assert read_errno(sock) == 0


@pytest.mark.parametrize("type_", [STREAM, SEQPACKET], ids=["stream", "seqpacket"])
def test_who_does_not_read_the_answer_is_dropped(
    type_: int, folder: str, impatient: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(calls._METHODS, "long", lambda broker, client, call: "x" * 3_000_000)
    with others_served(impatient), control(folder, type_) as sock:
        sock.send(Request(Op.CALL, call={"method": "long"}).pack())
        if type_ == STREAM:  # a message of that length is never sent
            wait_until(lambda: client.call(impatient.host.folder, "status")["bad_requests"] == 1)
        received = 0
        with suppress(OSError):
            while data := sock.recv(1 << 20):
                received += len(data)
        assert received < 3_000_000
    broker = impatient._broker
    assert broker is not None
    assert broker.replies._held == {}


def test_a_long_answer_is_read_whole(impatient: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "REQUEST_SECONDS", 60.0)
    monkeypatch.setitem(calls._METHODS, "long", lambda broker, client, call: "x" * 30_000_000)
    assert len(client.call(impatient.host.folder, "long")) == 30_000_000
    monkeypatch.setitem(calls._METHODS, "long", lambda broker, client, call: "x" * 33_600_000)
    with pytest.raises(hvsock.HvsockError, match="is the most"):
        client.call(impatient.host.folder, "long")


def test_answers_that_nobody_reads_are_bounded(
    folder: str, impatient: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "REQUEST_SECONDS", 60.0)
    monkeypatch.setitem(calls._METHODS, "long", lambda broker, client, call: "x" * 1_000_000)
    request = Request(Op.CALL, call={"method": "long"}).pack()
    broker = impatient._broker
    assert broker is not None
    most = 3_200_000
    broker.replies = Quota(broker.tree.host.id, most, most)
    with leak_check():
        greedy = [control(folder) for _ in range(8)]
        for sock in greedy:
            sock.send(request)
            client.call(impatient.host.folder, "ping")
        assert sum(broker.replies._held.values()) < most
        wait_until(lambda: client.call(impatient.host.folder, "status")["connecting"] < 4)
        for sock in greedy:
            sock.close()
        wait_until(lambda: not broker.replies._held)


def test_a_connector_that_sends_ahead_harms_itself_alone(folder: str, impatient: EmbeddedFabric) -> None:
    """A connector with a large buffer sends payload right behind its request: the accepter gets just that."""
    service = impatient.register("Demo")
    on_host = folder == impatient.host.folder
    word = "loopback" if on_host else "parent"
    with hvsock.create_server(("any", service.id), partition=impatient.host.folder) as listener:
        token = os.urandom(16)
        address = hvsock.Address(WELL_KNOWN_VMIDS[word], service.id)
        request = Request(Op.CONNECT, address, STREAM, number=2000, token=token).pack()
        for descriptors in (0, 1):
            with control(folder) as sock:
                if descriptors:
                    send_descriptors(sock, request + b"ahead", MOST_DESCRIPTORS)
                else:
                    sock.sendall(request + b"ahead")
                accepted, courier = take(listener)
                with accepted:
                    assert courier.token == token
                    assert accepted.recv(100) == b"ahead"
                    sock.send(b"more")
                    assert accepted.recv(100) == b"more"


def test_a_connect_to_nothing_with_garbage_behind_it_is_refused(folder: str, impatient: EmbeddedFabric) -> None:
    request = Request(Op.CONNECT, hvsock.Address(HV_GUID_PARENT, ServiceId.new()), STREAM, number=2000).pack()
    with control(folder) as sock:
        sock.sendall(request + os.urandom(10_000))
        assert read_errno(sock) != 0
        assert ended(sock)


def test_a_crowd_of_silent_clients_does_not_keep_others_out(impatient: EmbeddedFabric) -> None:
    guest = client.call(impatient.host.folder, "partition.list")[1]["folder"]
    crowd = []
    with others_served(impatient):
        for _ in range(300):
            crowd.append(control(guest))
        service = impatient.register("Demo")
        with hvsock.create_server(("any", service.id), partition=impatient.host.folder) as listener:
            for _ in range(20):
                with start_connect(guest, (HV_GUID_PARENT, service.id)) as connector:
                    assert connector.settled() == 0
                    take(listener)[0].close()
        for sock in crowd:
            assert ended(sock, REQUEST_SECONDS + SLACK_SECONDS)
            sock.close()
    assert client.call(impatient.host.folder, "status")["bad_requests"] == 300


# -- fuzz

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
words = st.sampled_from(["host", "parent", "loopback", "any", "", "web01", "Demo", "vm", "container", "5", "0x5"])
names = st.sampled_from(
    ["name", "kind", "parent", "id", "owner", "group", "vm", "service", "source", "type", "passthru", "method"]
)
bodies = st.builds(
    lambda method, rest: json.dumps({**rest, "method": method}).encode()[: messages.MAX_CALL_BYTES],
    st.sampled_from([*calls._METHODS, "nonsense"]),
    st.dictionaries(names, words | json_values, max_size=6),
)
vm_ids = st.sampled_from([*WELL_KNOWN_VMIDS.values(), VmId.new()])
service_ids = st.sampled_from([ServiceId.from_port(1), ServiceId.new(), ServiceId(HV_GUID_WILDCARD)])
requests = st.builds(
    Request,
    st.sampled_from([Op.CONNECT, Op.BIND, Op.LISTEN]),
    st.builds(hvsock.Address, vm_ids, service_ids),
    st.sampled_from([0, 1, 2, 5, 0xFFFFFFFF]),
    st.sampled_from([messages.Flag(bits) for bits in range(8)]),
    st.sampled_from([0, 1, 50, 0xFFFFFFFF]),
    st.binary(min_size=16, max_size=16),
    st.none(),
)


def call_block(body: bytes) -> bytes:
    """A call with any parameters at all."""
    return PING[:20] + len(body).to_bytes(4, "little") + PING[24:72] + body.ljust(messages.MAX_CALL_BYTES, b"\0")


@st.composite
def spoilt(draw: st.DrawFn, blocks: st.SearchStrategy[bytes]) -> bytes:
    """A block with some bytes changed, cut or longer."""
    block = bytearray(draw(blocks))
    for _ in range(draw(st.integers(0, 3))):
        block[draw(st.integers(0, 99))] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([None, None, None, 1, 72, 1000, 2047]))
    return bytes(block[:cut]) + draw(st.binary(max_size=10))


blocks = bodies.map(call_block) | requests.map(Request.pack)
pieces = st.tuples(blocks | spoilt(blocks) | st.binary(max_size=100), st.integers(0, 3))
endings = st.sampled_from(["read", "close", "close for writing", "leave"])


class Crowd:
    """Clients that were left alone, oldest first; each has to be dropped in time."""

    def __init__(self) -> None:
        self._left: deque[socket.socket] = deque()

    def add(self, sock: socket.socket) -> None:
        """One more; the oldest one is waited for when they are many."""
        self._left.append(sock)
        if len(self._left) > 100:
            self._see_dropped()

    def close(self, *, drop: bool) -> None:
        """Close all, once they are dropped if `drop`."""
        while drop and self._left:
            self._see_dropped()
        for sock in self._left:
            sock.close()

    def _see_dropped(self) -> None:
        with self._left.popleft() as sock:
            assert ended(sock, REQUEST_SECONDS + SLACK_SECONDS)


def test_whatever_comes_the_broker_goes_on(impatient: EmbeddedFabric, caplog: pytest.LogCaptureFixture) -> None:
    impatient.register("Demo", ServiceId.from_port(1))
    host, crowd = impatient.host.folder, Crowd()

    def guest() -> str:
        """The folder of web01, which a request may well have removed."""
        for one in client.call(host, "partition.list"):
            if one["name"] == "web01":
                return str(one["folder"])
        return impatient.create_partition("web01").folder

    @settings(max_examples=sample(25, 20_000), suppress_health_check=list(HealthCheck))
    @given(st.sampled_from([STREAM, SEQPACKET]), st.booleans(), st.lists(pieces, min_size=1, max_size=3), endings)
    def attack(type_: int, from_host: bool, parts: list[tuple[bytes, int]], ending: str) -> None:
        sock = control(host if from_host else guest(), type_)
        sock.settimeout(0.05)
        for data, count in parts:
            quietly(send_descriptors, sock, data, count)
        if ending == "read":
            with suppress(OSError):
                _, descriptors, _, _ = socket.recv_fds(sock, 4096, 10)
                for descriptor in descriptors:
                    os.close(descriptor)
        elif ending == "close for writing":
            quietly(sock.shutdown, socket.SHUT_WR)
        if ending == "leave":
            crowd.add(sock)
        else:
            sock.close()
        assert client.call(host, "ping")["partition"] == "host"

    dropped = False
    try:
        attack()
        dropped = True
    finally:
        crowd.close(drop=dropped)
    wait_until(lambda: client.call(host, "status")["connecting"] == 0)
    defects = [record.getMessage() for record in caplog.records if record.exc_info]
    assert not defects
    status: dict[str, Any] = client.call(host, "status")
    assert sum(one["listeners"] for one in status["services"]) == 0
