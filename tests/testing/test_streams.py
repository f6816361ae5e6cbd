"""What the in-memory streams promise beyond the conformance suite: hooks, limits, exact errors."""

from __future__ import annotations

import errno
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.testing import MemoryStream, lockstep_pair, memory_pair
from tests.support import sample

SHORT_SECONDS = 0.02
"""Time-outs that are meant to run out."""
LONG_SECONDS = 20.0
"""Bound of what has to happen."""

Pair = tuple[MemoryStream, MemoryStream]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture(params=[memory_pair, lockstep_pair], ids=["memory", "lockstep"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    make: Callable[[], Pair] = request.param
    near, far = make()
    with near, far:
        yield near, far


def wait_for(holds: Callable[[], bool]) -> None:
    """Waits until something that another thread brings about is so."""
    deadline = time.monotonic() + LONG_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.000_5)


def is_received(stream: MemoryStream) -> Callable[[], bool]:
    return lambda: stream._in.receivers > 0


# Buffer.


def test_the_buffer_holds_its_capacity_and_not_a_byte_more() -> None:
    near, far = memory_pair(10)
    near.settimeout(0)
    assert near.send(b"x" * 7) == 7
    assert near.send(b"y" * 7) == 3
    with pytest.raises(BlockingIOError) as caught:
        near.send(b"z")
    assert caught.value.errno == errno.EAGAIN
    assert repr(far) == "<_BufferedStream second open, 10 bytes to receive>"
    assert far.recv(5) == b"xxxxx"
    assert near.send(b"z" * 7) == 5
    assert far.recv(100) == b"xxyyyzzzzz"


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_buffer_has_room(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity_bytes must be positive"):
        memory_pair(capacity)


def test_directions_have_buffers_of_their_own() -> None:
    near, far = memory_pair(4)
    near.sendall(b"near")
    far.sendall(b"far!")
    assert (near.recv(9), far.recv(9)) == (b"far!", b"near")


def test_a_sendall_that_times_out_has_sent_what_fitted() -> None:
    near, far = memory_pair(10)
    near.settimeout(SHORT_SECONDS)
    with pytest.raises(TimeoutError, match="timed out"):
        near.sendall(bytes(range(20)))
    assert far.recv(100) == bytes(range(10))


@given(st.data())
@settings(max_examples=sample(30, 3_000))
def test_bytes_come_out_as_they_went_in(data: st.DataObject) -> None:
    """Any sequence of sends and receives that do not wait agrees with a plain bytearray."""
    capacity = data.draw(st.integers(1, 20), "capacity")
    near, far = memory_pair(capacity)
    near.settimeout(0)
    far.settimeout(0)
    near.max_send_bytes = data.draw(st.none() | st.integers(1, 5), "max_send_bytes")
    far.max_recv_bytes = data.draw(st.none() | st.integers(1, 5), "max_recv_bytes")
    model = bytearray()
    for step in data.draw(st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=40), "steps"):
        sends, size = step
        if sends:
            piece = random.Random(len(model)).randbytes(size)
            room = min(size, capacity - len(model), near.max_send_bytes or size)
            if room:
                assert near.send(piece) == room
                model += piece[:room]
            else:
                with pytest.raises(BlockingIOError):
                    near.send(piece)
        elif model:
            expected = min(size, len(model), far.max_recv_bytes or size)
            assert far.recv(size) == model[:expected]
            del model[:expected]
        else:
            with pytest.raises(BlockingIOError):
                far.recv(size)
    near.close()
    far.max_recv_bytes = None
    assert far.recv(100) == model
    assert far.recv(100) == b""


# Ends.


def test_a_reset_is_told_once_and_after_the_data() -> None:
    near, far = memory_pair()
    near.sendall(b"never read")
    far.sendall(b"farewell")
    far.close()
    assert near.recv(100) == b"farewell"
    with pytest.raises(ConnectionResetError) as caught:
        near.recv(100)
    assert caught.value.errno == errno.ECONNRESET
    assert near.recv(100) == b""
    with pytest.raises(BrokenPipeError):
        near.send(b"x")


def test_a_reader_that_shut_down_breaks_the_pipe_but_reads_what_came(pair: Pair) -> None:
    near, far = pair
    far.shutdown(socket.SHUT_RD)
    with pytest.raises(BrokenPipeError) as caught:
        near.sendall(b"x")
    assert caught.value.errno == errno.EPIPE
    assert far.recv(10) == b""


def test_shutdown_of_both_ways(pair: Pair) -> None:
    near, far = pair
    near.shutdown(socket.SHUT_RDWR)
    assert (near.recv(1), far.recv(1)) == (b"", b"")
    for stream in pair:
        with pytest.raises(BrokenPipeError):
            stream.send(b"x")


def test_a_closed_stream_is_a_bad_descriptor(pair: Pair) -> None:
    near, _ = pair
    near.close()
    uses: list[Callable[[], object]] = [
        lambda: near.send(b"x"),
        lambda: near.sendall(b"x"),
        lambda: near.recv(1),
        lambda: near.recv(0),
        lambda: near.recv_into(bytearray(1)),
        lambda: near.shutdown(socket.SHUT_WR),
        lambda: near.settimeout(1),
    ]
    for use in uses:
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            use()
        assert caught.value.errno == errno.EBADF
    assert repr(near).endswith("Stream first closed, 0 bytes to receive>")


def test_close_ends_own_calls_in_other_threads(pair: Pair, pool: ThreadPoolExecutor) -> None:
    near, _ = pair
    receiver = pool.submit(near.recv, 1)
    wait_for(is_received(near))
    near.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        receiver.result(LONG_SECONDS)


def test_close_ends_own_sends_in_other_threads(pair: Pair, pool: ThreadPoolExecutor) -> None:
    near, far = pair
    sender = pool.submit(near.sendall, bytes(1_000_000))
    assert far.recv(1) == b"\0"
    near.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        sender.result(LONG_SECONDS)


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (lambda stream: stream.recv(-1), ValueError, "negative buffersize in recv"),
        (lambda stream: stream.recv_into(bytearray(3), -1), ValueError, "negative buffersize in recv_into"),
        (lambda stream: stream.recv_into(bytearray(3), 5), ValueError, "buffer too small"),
        (lambda stream: stream.settimeout(-1), ValueError, "Timeout value out of range"),
        (lambda stream: stream.shutdown(7), OSError, "Invalid argument"),
    ],
)
def test_misuse_is_told_in_the_words_of_a_socket(
    use: Callable[[MemoryStream | socket.socket], object], error: type[Exception], text: str
) -> None:
    near, far = socket.socketpair()
    with near, far:
        for stream in (near, memory_pair()[0]):
            with pytest.raises(error, match=text):
                use(stream)


# Time-outs.


def test_timeouts_are_read_and_set_as_with_a_socket() -> None:
    stream, _ = memory_pair()
    assert stream.gettimeout() is None
    stream.settimeout(2.5)
    assert stream.gettimeout() == 2.5
    stream.setblocking(False)
    assert stream.gettimeout() == 0
    stream.setblocking(True)
    assert stream.gettimeout() is None


# Hooks.


def test_data_trickle(pair: Pair, pool: ThreadPoolExecutor) -> None:
    near, far = pair
    far.max_recv_bytes = 1
    near.max_send_bytes = 2
    sender = pool.submit(near.sendall, b"abcde")
    assert [far.recv(100) for _ in range(5)] == [b"a", b"b", b"c", b"d", b"e"]
    sender.result(LONG_SECONDS)
    taken = pool.submit(near.send, b"abcde")
    assert far.recv(100) + far.recv(100) == b"ab"
    assert taken.result(LONG_SECONDS) == 2


def test_what_is_stalled_stays_under_way_the_end_too(pair: Pair, pool: ThreadPoolExecutor) -> None:
    near, far = pair
    far.settimeout(SHORT_SECONDS)
    near.stall()
    sender = pool.submit(near.sendall, b"data")
    with pytest.raises(TimeoutError):
        far.recv(10)
    far.settimeout(LONG_SECONDS)
    near.resume()
    assert far.recv(10) == b"data"
    sender.result(LONG_SECONDS)
    near.stall()
    near.close()
    receiver = pool.submit(far.recv, 10)
    wait_for(is_received(far))
    assert not receiver.done()
    near.resume()
    assert receiver.result(LONG_SECONDS) == b""


def test_hooks_see_each_call_and_may_fail_it(pair: Pair, pool: ThreadPoolExecutor) -> None:
    near, far = pair
    seen: list[object] = []
    near.on_send = seen.append
    far.on_recv = lambda: seen.append("recv")
    sender = pool.submit(near.sendall, b"data")
    near.send(b"")
    assert far.recv(4) == b"data"
    sender.result(LONG_SECONDS)
    assert sorted(seen, key=str) == [b"data", "recv"]

    def fail(data: object) -> None:
        raise ConnectionAbortedError("the cable is out")

    near.on_send = fail
    with pytest.raises(ConnectionAbortedError, match="the cable is out"):
        near.sendall(b"more")
    near.on_send = None
    near.shutdown(socket.SHUT_WR)
    assert far.recv(4) == b""


def test_a_hook_may_hold_a_sender_up(pool: ThreadPoolExecutor) -> None:
    near, far = memory_pair()
    go_on = threading.Event()
    near.on_send = lambda data: go_on.wait(LONG_SECONDS)
    sender = pool.submit(near.sendall, b"late")
    far.sendall(b"the other way is free")
    assert near.recv(100) == b"the other way is free"
    assert not sender.done()
    go_on.set()
    assert far.recv(100) == b"late"


# Lock step.


def test_lockstep_sends_are_done_when_everything_is_received(pool: ThreadPoolExecutor) -> None:
    near, far = lockstep_pair()
    sender = pool.submit(near.sendall, b"abcdef")
    assert far.recv(5) == b"abcde"
    with pytest.raises(TimeoutError):
        sender.result(SHORT_SECONDS)
    assert far.recv(5) == b"f"
    sender.result(LONG_SECONDS)


def test_lockstep_withdraws_what_was_not_received(pool: ThreadPoolExecutor) -> None:
    near, far = lockstep_pair()
    near.settimeout(SHORT_SECONDS)
    with pytest.raises(TimeoutError):
        near.send(b"never")
    near.settimeout(0.3)
    receiver = pool.submit(far.recv, 2)
    wait_for(is_received(far))
    assert near.send(b"abcdef") == 2
    assert receiver.result(LONG_SECONDS) == b"ab"
    far.settimeout(0)
    with pytest.raises(BlockingIOError):
        far.recv(1)


def test_lockstep_without_waiting_needs_a_receiver(pool: ThreadPoolExecutor) -> None:
    near, far = lockstep_pair()
    near.settimeout(0)
    with pytest.raises(BlockingIOError):
        near.send(b"x")
    receiver = pool.submit(far.recv, 2)
    wait_for(is_received(far))
    assert near.send(b"abc") == 2
    assert receiver.result(LONG_SECONDS) == b"ab"


def test_lockstep_leaves_a_sender_behind_with_a_broken_pipe(pool: ThreadPoolExecutor) -> None:
    near, far = lockstep_pair()
    sender = pool.submit(near.sendall, b"abc")
    assert far.recv(1) == b"a"
    far.close()
    with pytest.raises(BrokenPipeError):
        sender.result(LONG_SECONDS)
    assert near.recv(1) == b""


def test_lockstep_senders_take_turns(pool: ThreadPoolExecutor) -> None:
    near, far = lockstep_pair()
    senders = [pool.submit(near.sendall, letter * 300) for letter in (b"a", b"b", b"c")]
    received = b""
    while len(received) < 900:
        received += far.recv(7)
    for sender in senders:
        sender.result(LONG_SECONDS)
    assert sorted(received[at : at + 300] for at in (0, 300, 600)) == [b"a" * 300, b"b" * 300, b"c" * 300]
