"""Checks of what a stream is for: the same bytes, in the same order, once."""

from __future__ import annotations

import array
import itertools
import random
from collections.abc import Iterator

from ._harness import PIECE_BYTES, Harness, check, pattern, require, same
from .streams import ByteStream

LARGE_BYTES = 1024 * 1024 + 4_099
"""What goes each way in the duplex check: beyond 1 MiB, and no multiple of any block size."""
LARGEST_SHIFT = 18
"""Pieces have 1 to 2**18 bytes, evenly spread over the powers of two: 256 KiB are more than a buffer."""
RECORDS = 400
"""Records of the check for order; each is sent by a call of its own."""
RECORD_SIZES = (1, 2, 9, 500, 4_096, 20_000)
"""Their sizes in bytes, at random."""
SMALL_MESSAGES = 2_000
"""Messages of the check for many small ones."""
ROUND_TRIPS = 100
"""Questions and answers."""


@check()
def small_both_ways(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """A few bytes arrive, in either direction."""
    for _ in range(3):
        h.transfer(near, far, b"to the far end")
        h.transfer(far, near, b"and back")


@check()
def large_duplex(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """More than 1 MiB goes each way at the same time, sent and received in pieces of random sizes."""
    rng = h.random("data")
    there, back = rng.randbytes(LARGE_BYTES), rng.randbytes(LARGE_BYTES)
    jobs = [
        h.start("sending there", _send_in_pieces, near, there, _random_sizes(h.random("near sends"))),
        h.start("sending back", _send_in_pieces, far, back, _random_sizes(h.random("far sends"))),
        h.start("receiving back", h.expect, near, back, _random_sizes(h.random("near receives"))),
    ]
    h.expect(far, there, _random_sizes(h.random("far receives")))
    for job in jobs:
        job.result()


def _send_in_pieces(stream: ByteStream, data: bytes, sizes: Iterator[int]) -> None:
    with memoryview(data) as view:
        at = 0
        while at < len(data):
            with view[at : at + next(sizes)] as piece:
                stream.sendall(piece)
                at += len(piece)


def _random_sizes(rng: random.Random) -> Iterator[int]:
    while True:
        top = 1 << rng.randrange(LARGEST_SHIFT)
        yield rng.randint(top, 2 * top)


@check()
def order_kept(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """What is sent later is not received earlier, however small it is and however large the one before."""
    rng = h.random("records")
    _send_one_by_one(h, near, far, [rng.randbytes(rng.choice(RECORD_SIZES)) for _ in range(RECORDS)])


@check()
def many_small_messages(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Thousands of messages of a few bytes all arrive, and questions and answers take turns."""
    rng = h.random("messages")
    _send_one_by_one(h, near, far, [rng.randbytes(rng.randint(1, 24)) for _ in range(SMALL_MESSAGES)])
    questions = [rng.randbytes(8) for _ in range(ROUND_TRIPS)]

    def answer() -> None:
        for question in questions:
            h.expect(far, question)
            far.sendall(question[::-1])

    responder = h.start("answering", answer)
    for question in questions:
        near.sendall(question)
        h.expect(near, question[::-1])
    responder.result()


def _send_one_by_one(h: Harness, near: ByteStream, far: ByteStream, messages: list[bytes]) -> None:
    def send() -> None:
        for message in messages:
            near.sendall(message)

    sender = h.start("sending", send)
    h.expect(far, b"".join(messages))
    sender.result()


@check()
def recv_at_most_asked(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """recv returns at least one byte and never more than was asked for; the rest is for the next one."""
    data = pattern(0, 3_000)
    sender = h.start("sendall", near.sendall, data)
    h.expect(far, data, itertools.cycle((1, 2, 3, 1, 7, 100, 64, 500)))
    sender.result()


@check()
def recv_of_zero_bytes(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """recv(0) returns b"" at once, with data there and without; it takes nothing and ends nothing."""
    require(far.recv(0) == b"", "recv(0) returned data where none had been sent")
    h.put(near, b"data")
    h.expect(far, b"d")
    require(far.recv(0) == b"", "recv(0) returned data")
    h.expect(far, b"ata")
    require(far.recv(0) == b"", "recv(0) returned data where all had been received")
    h.transfer(near, far, b"more")


@check()
def recv_into_partial(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """recv_into says how much came, leaves the rest of the buffer alone and what does not fit for later."""
    h.put(near, b"abcdef")
    buffer = bytearray(b"........")
    size = 0
    with memoryview(buffer) as view:
        while size < 4:  # in general a stream may hand out fewer bytes than there are
            with view[size:4] as slot:
                came = far.recv_into(slot)
            require(1 <= came <= 4 - size, f"recv_into {4 - size} bytes returned {came}")
            size += came
    same(buffer, b"abcd....")
    size = 4
    while size < 6:
        with memoryview(buffer)[size:] as slot:
            came = far.recv_into(slot)
        require(1 <= came <= 6 - size, f"recv_into returned {came} where {6 - size} bytes were left")
        size += came
    same(buffer, b"abcdef..")


@check()
def sends_any_buffer(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """bytes, bytearray and memoryview can be sent, a memoryview of numbers counts in bytes."""
    numbers = array.array("I", range(1_000))
    for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"..slice..")[2:-2], memoryview(numbers)):
        expected = bytes(data)
        sender = h.start("sendall", near.sendall, data)
        h.expect(far, expected)
        sender.result()


@check()
def buffer_is_free_after_send(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Once sendall has returned, the caller may overwrite what it passed."""
    expected = pattern(0, 4 * PIECE_BYTES)

    def send() -> None:
        buffer = bytearray(PIECE_BYTES)
        for at in range(0, len(expected), PIECE_BYTES):
            buffer[:] = expected[at : at + PIECE_BYTES]
            near.sendall(buffer)
            buffer[:] = bytes(PIECE_BYTES)

    sender = h.start("sending from one buffer", send)
    h.expect(far, expected)
    sender.result()


@check()
def send_of_nothing(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Sending no bytes returns 0 at once and is not the end of the stream."""
    near.sendall(b"")
    require(near.send(b"") == 0, "send of nothing did not return 0")
    h.transfer(near, far, b"something")


@check()
def send_returns_count(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """send returns how many bytes it took, and those arrive once; the caller sends the others again."""
    data = pattern(0, LARGE_BYTES)

    def send() -> None:
        at = 0
        with memoryview(data) as view:
            while at < len(data):
                with view[at : at + 4 * PIECE_BYTES] as piece:
                    taken = near.send(piece)
                    require(1 <= taken <= len(piece), f"send of {len(piece)} bytes returned {taken}")
                at += taken

    sender = h.start("sending", send)
    h.expect(far, data)
    sender.result()
