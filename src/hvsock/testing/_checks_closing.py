"""Checks of how a stream ends: half, whole, in order, and never silently with data lost."""

from __future__ import annotations

import socket
import time

from ._harness import GONE, Harness, check, pattern, raises, require, same
from .streams import ByteStream

TAIL_BYTES = 300_001
"""What is sent just ahead of an end: more than one buffer, so that some of it is under way."""
SMALL_TAIL_BYTES = 2_000
"""The same, where it has to fit into a buffer."""
SEND_ATTEMPTS = 100
"""Sends to a peer that is gone until one of them has to fail: the news of it takes its time."""
ATTEMPT_SECONDS = 0.005
"""Pause between them."""


@check()
def eof_after_all_data(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """After shutdown(SHUT_WR) the peer receives everything sent before, then the end, again and again."""
    data = pattern(0, TAIL_BYTES)
    sender = h.start("sending and shutting down", _send_and_shut_down, near, data)
    h.expect_last(far, data)
    sender.result()
    h.expect_end(far)


@check()
def eof_without_data(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """The end of the stream arrives on a stream that nothing was sent on, and recv_into returns 0 there."""
    near.shutdown(socket.SHUT_WR)
    h.expect_end(far)
    buffer = bytearray(b"untouched")
    require(far.recv_into(buffer) == 0, "recv_into at the end of the stream did not return 0")
    same(buffer, b"untouched")


@check()
def half_close_keeps_other_direction(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """What one end shuts down for sending goes on receiving, until the other end does the same."""
    near.shutdown(socket.SHUT_WR)
    h.expect_end(far)
    h.transfer(far, near, b"still here")
    data = pattern(7, TAIL_BYTES)
    sender = h.start("sending and shutting down", _send_and_shut_down, far, data)
    h.expect_last(near, data)
    sender.result()
    h.expect_end(near)
    h.expect_end(far)


def _send_and_shut_down(stream: ByteStream, data: bytes) -> None:
    stream.sendall(data)
    stream.shutdown(socket.SHUT_WR)


@check()
def close_delivers_everything(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Everything sent arrives although the sender closed at once, whether the peer is at it or not yet."""
    data = pattern(3, TAIL_BYTES)
    closer = h.start("sending and closing", _send_and_close, near, data)
    h.expect_last(far, data)
    closer.result()
    if h.features.buffered:
        near, far = h.open()
        small = data[:SMALL_TAIL_BYTES]
        _send_and_close(near, small)
        h.expect_last(far, small)


def _send_and_close(stream: ByteStream, data: bytes) -> None:
    stream.sendall(data)
    stream.close()


@check()
def close_twice(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """close can be repeated, also after both ends are gone."""
    near.close()
    near.close()
    h.expect_end(far)
    far.close()
    far.close()
    near.close()


@check()
def shutdown_twice(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """shutdown(SHUT_WR) can be repeated and harms neither the data ahead of it nor the other direction."""
    h.transfer(near, far, b"ahead")
    near.shutdown(socket.SHUT_WR)
    near.shutdown(socket.SHUT_WR)
    h.expect_end(far)
    h.transfer(far, near, b"the other way")


@check()
def send_after_own_shutdown(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """After shutdown(SHUT_WR) a send is a BrokenPipeError, and sends nothing."""
    near.shutdown(socket.SHUT_WR)
    with raises("send after shutdown(SHUT_WR)", *GONE):
        near.send(b"late")
    with raises("sendall after shutdown(SHUT_WR)", *GONE):
        near.sendall(b"late")
    h.expect_end(far)


@check()
def use_after_own_close(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """On a closed stream recv, send and shutdown are errors at once, and not time-outs; the peer sees the end."""
    near.close()
    began = time.monotonic()
    with raises("recv after close", OSError, ValueError):
        near.recv(1)
    with raises("send after close", OSError, ValueError):
        near.send(b"late")
    with raises("shutdown after close", OSError, ValueError):
        near.shutdown(socket.SHUT_WR)
    require(time.monotonic() - began < h.wait_seconds, "a closed stream waits before it raises")
    h.expect_end(far)


@check()
def send_after_peer_closed(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Sending to a peer that closed becomes a BrokenPipeError or ConnectionResetError before long."""
    far.close()
    with raises(f"each of {SEND_ATTEMPTS} sends after the peer had closed", *GONE):
        for _ in range(SEND_ATTEMPTS):
            near.send(b"is anybody there?")
            time.sleep(ATTEMPT_SECONDS)


@check("buffered", "resets")
def unread_data_at_close_is_reset(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """A peer that closes with data unread resets the stream; what it sent before is received first."""
    near.sendall(b"partly read")
    h.expect(far, b"p")
    far.sendall(b"farewell")
    far.close()
    if h.features.delivers_before_reset:
        h.expect(near, b"farewell")
    with raises("recv after the peer had closed with data unread", ConnectionResetError):
        while near.recv(8):
            require(not h.features.delivers_before_reset, "more was received than was sent")


@check("buffered", "resets")
def blocked_recv_wakes_on_reset(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """A recv that waits when the peer closes with data unread ends as ConnectionResetError, not as the end."""
    near.sendall(b"partly read")
    h.expect(far, b"p")
    receiver = h.start("recv", near.recv, 16)
    receiver.require_blocked()
    far.close()
    with raises("a waiting recv", ConnectionResetError):
        receiver.result()


@check()
def close_after_reading_all_is_no_reset(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """A peer that has received everything closes with an end of the stream."""
    h.transfer(near, far, pattern(0, SMALL_TAIL_BYTES))
    h.transfer(far, near, b"thanks")
    far.close()
    h.expect_end(near)
