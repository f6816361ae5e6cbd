"""Checks of waiting: who waits for whom, what ends it, and that it costs no byte."""

from __future__ import annotations

import socket
import time

from ._harness import CLOG_LIMIT_BYTES, GONE, PIECE_BYTES, Harness, check, pattern, raises, require
from .streams import ByteStream

BEYOND_CLOG_BYTES = 4 * 1024 * 1024
"""What a blocked sender still has to send: more than what trickles into buffers behind the first one."""
CLOCK_SLACK = 0.8
"""A time-out may end early by this factor, for clocks of different grain."""
PAIRS = 3
"""Streams that must not get in each other's way."""
FILL_ROUNDS = 3
"""How often a stream is filled and drained."""


@check()
def blocked_recv_wakes_on_data(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """A recv without data waits, and returns what comes."""
    for message in (b"first", b"second"):
        receiver = h.start("recv", h.expect, far, message)
        receiver.require_blocked()
        near.sendall(message)
        receiver.result()


@check()
def blocked_recv_wakes_on_eof(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """A recv that waits when the peer shuts down, or closes, ends with b""."""
    receiver = h.start("recv", far.recv, 16)
    receiver.require_blocked()
    near.shutdown(socket.SHUT_WR)
    require(receiver.result() == b"", "a waiting recv returned data where the peer shut down")
    near, far = h.open()
    receiver = h.start("recv", far.recv, 16)
    receiver.require_blocked()
    near.close()
    require(receiver.result() == b"", "a waiting recv returned data where the peer closed")


@check()
def recv_timeout_loses_nothing(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """recv raises TimeoutError when its time is up, not before, and the stream goes on as if nothing was."""
    for _ in range(2):
        far.settimeout(h.quiet_seconds)
        began = time.monotonic()
        with raises("recv with nothing to receive", TimeoutError):
            far.recv(1)
        took = time.monotonic() - began
        require(took >= h.quiet_seconds * CLOCK_SLACK, f"recv timed out after {took:g} s already")
        require(took < h.wait_seconds, f"recv took {took:g} s to time out after {h.quiet_seconds:g} s")
        far.settimeout(h.wait_seconds)
        h.transfer(near, far, pattern(11, 5_000))
        h.transfer(far, near, b"and back")


@check(clogs=True)
def send_timeout_loses_nothing(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """send raises TimeoutError when the peer receives nothing; what was taken before arrives, once."""
    for _ in range(2):
        sent = h.clog(near)
        h.expect(far, pattern(0, sent))
    h.transfer(near, far, b"and on it goes")
    near.shutdown(socket.SHUT_WR)
    h.expect_end(far)


@check(clogs=True)
def blocked_send_proceeds_when_peer_reads(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Once the buffers are full a sendall waits, until the peer receives; nothing is lost over it."""
    taken = h.clog(near)
    total = taken + BEYOND_CLOG_BYTES
    sender = h.start("sendall", near.sendall, pattern(taken, BEYOND_CLOG_BYTES))
    sender.require_blocked()
    h.expect(far, pattern(0, total))
    sender.result()


@check(clogs=True)
def blocked_send_fails_when_peer_closes(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """A sendall that waits when the peer closes ends as BrokenPipeError or ConnectionResetError."""
    taken = h.clog(near)
    sender = h.start("sendall", near.sendall, pattern(taken, BEYOND_CLOG_BYTES))
    sender.require_blocked()
    far.close()
    with raises("a waiting sendall", *GONE):
        sender.result()


@check(clogs=True)
def clogged_direction_leaves_other_free(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """While one direction is full, with a sender waiting, the other one carries data as ever."""
    taken = h.clog(near)
    total = taken + BEYOND_CLOG_BYTES
    sender = h.start("sendall", near.sendall, pattern(taken, BEYOND_CLOG_BYTES))
    sender.require_blocked()
    h.transfer(far, near, pattern(5, 500_000))
    far.shutdown(socket.SHUT_WR)
    h.expect_end(near)
    h.expect(far, pattern(0, total))
    sender.result()


@check(clogs=True)
def pairs_are_independent(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """A full stream with a waiting sender holds no other up; neither their data mix nor their ends."""
    taken = h.clog(near)
    total = taken + BEYOND_CLOG_BYTES
    sender = h.start("sendall", near.sendall, pattern(taken, BEYOND_CLOG_BYTES))
    sender.require_blocked()
    others = [h.open() for _ in range(PAIRS)]
    for turn in range(3):
        for number, (one, other) in enumerate(others):
            h.transfer(one, other, pattern(number + turn, 10_000))
            h.transfer(other, one, pattern(number - turn, 10_000))
    others[0][0].close()
    h.expect_end(others[0][1])
    h.transfer(*others[1], b"unmoved")
    h.expect(far, pattern(0, total))
    sender.result()


@check("buffered", "nonblocking", clogs=True)
def nonblocking_send_fills_then_drains(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Without waiting, send fills the stream and raises BlockingIOError; draining loses and doubles nothing."""
    sent = received = 0
    near.settimeout(0)
    for turn in range(FILL_ROUNDS):
        sent += _fill(near, sent)
        part = (sent - received) // 2 if turn < FILL_ROUNDS - 1 else sent - received
        h.expect(far, pattern(received, part))
        received += part
    near.settimeout(h.wait_seconds)
    near.shutdown(socket.SHUT_WR)
    h.expect_end(far)


def _fill(stream: ByteStream, start: int) -> int:
    """Sends test data from byte `start` on, without waiting, until no more is taken; returns how many bytes."""
    sent = 0
    try:
        while True:
            sent += stream.send(pattern(start + sent, PIECE_BYTES))
            require(sent < CLOG_LIMIT_BYTES, f"{sent} bytes were taken that the peer did not receive")
    except BlockingIOError:
        return sent


@check("nonblocking")
def nonblocking_recv(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Without waiting, recv raises BlockingIOError while there is nothing, and b"" only at the end."""
    far.settimeout(0)
    with raises("recv with nothing to receive and no time to wait", BlockingIOError):
        far.recv(1)
    far.settimeout(h.wait_seconds)
    h.transfer(near, far, b"data")
    far.settimeout(0)
    with raises("recv with everything received and no time to wait", BlockingIOError):
        far.recv(1)
    near.shutdown(socket.SHUT_WR)
    far.settimeout(h.wait_seconds)
    h.expect_end(far)
    far.settimeout(0)
    h.expect_end(far)
