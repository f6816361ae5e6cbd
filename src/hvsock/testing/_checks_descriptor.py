"""Checks of streams that are descriptors too: readiness as event loops see it, and the socket's extras."""

from __future__ import annotations

import select
import socket
import sys
import tempfile
import time
from typing import Protocol

from ._harness import CLOG_LIMIT_BYTES, PIECE_BYTES, Harness, as_socket, check, pattern, raises, require, same
from .streams import ByteStream

FILE_BYTES = 300_000
"""Size of the file that is sent: more than one buffer."""
FILE_OFFSET_BYTES = 1_000
"""Where in it sending begins."""

REFUSALS = 50
"""Times in a row that a stream may be writable and still refuse a send."""


class Watch(Protocol):
    """One way to learn whether a descriptor is ready; registered once, before anything happens."""

    def ready(self, seconds: float, *, write: bool = False) -> bool:
        """Waits up to `seconds` until the descriptor is readable, or writable; returns whether it is."""

    def close(self) -> None:
        """Ends watching."""


class _Select:
    def __init__(self, fd: int) -> None:
        self._fd = [fd]

    def ready(self, seconds: float, *, write: bool = False) -> bool:
        readable, writable, _ = select.select([] if write else self._fd, self._fd if write else [], [], seconds)
        return bool(readable or writable)

    def close(self) -> None:
        pass


if sys.platform != "win32":

    class _Poll:
        def __init__(self, fd: int) -> None:
            self._fd = fd
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)

        def ready(self, seconds: float, *, write: bool = False) -> bool:
            self._poll.modify(self._fd, select.POLLOUT if write else select.POLLIN)
            return bool(self._poll.poll(seconds * 1_000))

        def close(self) -> None:
            pass


if sys.platform == "linux":

    class _Epoll:
        def __init__(self, fd: int) -> None:
            self._fd = fd
            self._epoll = select.epoll()
            self._epoll.register(fd, select.EPOLLIN)

        def ready(self, seconds: float, *, write: bool = False) -> bool:
            self._epoll.modify(self._fd, select.EPOLLOUT if write else select.EPOLLIN)
            return bool(self._epoll.poll(seconds))

        def close(self) -> None:
            self._epoll.close()


@check("descriptor", "buffered", "nonblocking", clogs=True)
def select_tells_readiness(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """select follows data, a full buffer, and every kind of end."""
    _follow_readiness(h, near, far, _Select)


if sys.platform != "win32":

    @check("descriptor", "buffered", "nonblocking", clogs=True)
    def poll_tells_readiness(h: Harness, near: ByteStream, far: ByteStream) -> None:
        """poll follows data, a full buffer, and every kind of end."""
        _follow_readiness(h, near, far, _Poll)


if sys.platform == "linux":

    @check("descriptor", "buffered", "nonblocking", clogs=True)
    def epoll_tells_readiness(h: Harness, near: ByteStream, far: ByteStream) -> None:
        """epoll, level-triggered, follows data, a full buffer, and every kind of end."""
        _follow_readiness(h, near, far, _Epoll)


class _MakeWatch(Protocol):
    def __call__(self, fd: int) -> Watch: ...


def _follow_readiness(h: Harness, near: ByteStream, far: ByteStream, make_watch: _MakeWatch) -> None:
    watch = make_watch(as_socket(near).fileno())
    try:
        _follow_data(h, near, far, watch)
        _follow_clog(h, near, far, watch)
        far.shutdown(socket.SHUT_WR)
        require(watch.ready(h.wait_seconds), "the end of the stream does not make it readable")
        h.expect_end(near)
        require(watch.ready(0), "a stream at its end does not stay readable")
        require(watch.ready(0, write=True), "a stream at its end is not writable, though the peer receives")
    finally:
        watch.close()
    _follow_close(h, make_watch)


def _follow_data(h: Harness, near: ByteStream, far: ByteStream, watch: Watch) -> None:
    require(watch.ready(h.wait_seconds, write=True), "a fresh stream is not writable")
    require(not watch.ready(0), "a fresh stream is readable")
    waiter = h.start("waiting to be readable", watch.ready, h.wait_seconds)
    waiter.require_blocked()
    far.sendall(b"abc")
    require(waiter.result(), "data do not make the stream readable")
    h.expect(near, b"a")
    require(watch.ready(0), "with data left the stream is not readable any more")
    h.expect(near, b"bc")
    require(not watch.ready(0), "with all data received the stream is still readable")


def _follow_clog(h: Harness, near: ByteStream, far: ByteStream, watch: Watch) -> None:
    sent = _fill_up(h, near, watch)
    waiter = h.start("waiting to be writable", lambda: watch.ready(h.wait_seconds, write=True))
    h.expect(far, pattern(0, sent))
    require(waiter.result(), "a stream that the peer drained does not become writable")
    h.transfer(near, far, b"and it is")


def _fill_up(h: Harness, stream: ByteStream, watch: Watch, start: int = 0) -> int:
    """Sends test data from byte `start` on until the stream stays unwritable; returns where the data end."""
    sent, refusals = start, 0
    stream.settimeout(0)
    while True:
        try:
            sent += stream.send(pattern(sent, PIECE_BYTES))
            refusals = 0
        except BlockingIOError:  # writable again at times: what lies behind the buffer takes in more
            if not watch.ready(h.quiet_seconds, write=True):
                break
            refusals += 1
            require(refusals < REFUSALS, "the stream stays writable though it takes no byte: loops would spin")
        require(sent < CLOG_LIMIT_BYTES, f"{sent} bytes were taken that the peer did not receive")
    stream.settimeout(h.wait_seconds)
    return sent


def _follow_close(h: Harness, make_watch: _MakeWatch) -> None:
    near, far = h.open()
    watch = make_watch(as_socket(near).fileno())
    try:
        far.close()
        require(watch.ready(h.wait_seconds), "a close of the peer does not make the stream readable")
        h.expect_end(near)
    finally:
        watch.close()
    if not h.features.resets:
        return
    near, far = h.open()
    watch = make_watch(as_socket(near).fileno())
    try:
        near.sendall(b"partly read")
        h.expect(far, b"p")
        far.close()
        require(watch.ready(h.wait_seconds), "a reset does not make the stream readable")
        with raises("recv on a stream that was reset", ConnectionResetError):
            near.recv(1)
    finally:
        watch.close()


if sys.platform == "linux":

    @check("descriptor", "buffered", "nonblocking", clogs=True)
    def epoll_edges(h: Harness, near: ByteStream, far: ByteStream) -> None:
        """epoll, edge-triggered, reports each change once: data, more data, room again, the end."""
        fd = as_socket(near).fileno()
        with select.epoll() as epoll:
            epoll.register(fd, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
            _expect_edge(h, epoll, select.EPOLLOUT, "a fresh stream")
            _expect_no_edge(epoll, "a fresh stream")
            far.sendall(b"data")
            _expect_edge(h, epoll, select.EPOLLIN, "data")
            _expect_no_edge(epoll, "data that are left unread")
            far.sendall(b" and more")
            _expect_edge(h, epoll, select.EPOLLIN, "more data")
            h.expect(near, b"data and more")

            level, sent = _Select(fd), 0
            while level.ready(0, write=True):  # again, should what lies behind the buffer have taken in more
                sent = _fill_up(h, near, level, sent)
                epoll.poll(0)  # what filling it gave rise to
            h.expect(far, pattern(0, sent))
            _expect_edge(h, epoll, select.EPOLLOUT, "room after a full buffer")

            far.shutdown(socket.SHUT_WR)
            _expect_edge(h, epoll, select.EPOLLIN | select.EPOLLRDHUP, "the end of the stream")
            h.expect_end(near)

    def _expect_edge(h: Harness, epoll: select.epoll, wanted: int, cause: str) -> None:
        """Requires that one of the next events has all the bits `wanted`."""
        seen = []
        deadline = time.monotonic() + h.wait_seconds
        while (remaining := deadline - time.monotonic()) > 0:
            for _, mask in epoll.poll(remaining):
                if mask & wanted == wanted:
                    return
                seen.append(hex(mask))
        raise AssertionError(f"{cause}: no edge with {wanted:#x}, but {', '.join(seen) or 'none at all'}")

    def _expect_no_edge(epoll: select.epoll, cause: str) -> None:
        events = epoll.poll(0)
        require(not events, f"{cause}: a second edge, {events}")


@check("descriptor", "nonblocking")
def descriptor_is_stable(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """fileno() stays the same while the stream is used, is not inheritable, and is gone after close."""
    stream = as_socket(near)
    fd = stream.fileno()
    require(fd >= 0, f"fileno() of an open stream is {fd}")
    require(not stream.get_inheritable(), "the descriptor is inherited by programs that are executed")
    h.transfer(near, far, b"data")
    near.settimeout(0)
    near.settimeout(h.wait_seconds)
    near.shutdown(socket.SHUT_WR)
    require(stream.fileno() == fd, f"the descriptor has changed from {fd} to {stream.fileno()}")
    near.close()
    require(stream.fileno() == -1, f"fileno() of a closed stream is {stream.fileno()}")


@check("peek", "buffered")
def peek_takes_nothing(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """recv with MSG_PEEK shows data and leaves them; it shows the end of the stream as b""."""
    near.sendall(b"abcdef")
    stream = as_socket(far)
    for _ in range(2):
        shown = stream.recv(3, socket.MSG_PEEK)
        require(shown in (b"a", b"ab", b"abc"), f"MSG_PEEK showed {shown!r}")
    h.expect(far, b"abcdef")
    near.shutdown(socket.SHUT_WR)
    require(stream.recv(3, socket.MSG_PEEK) == b"", "MSG_PEEK showed data at the end of the stream")
    h.expect_end(far)


@check("makefile")
def makefile_round_trip(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """Files made of the stream carry lines both ways; closing them leaves the stream open."""
    lines = [f"line {number} \u2713\n" for number in range(200)]

    def answer() -> None:
        with as_socket(far).makefile("rwb") as file:
            for line in file:
                file.write(line.upper())
            file.flush()

    responder = h.start("answering lines", answer)
    with as_socket(near).makefile("rw", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        near.shutdown(socket.SHUT_WR)
        answers = [file.readline() for _ in lines]
    responder.result()
    require(answers == [line.upper() for line in lines], "the lines came back other than they were sent")
    h.transfer(far, near, b"still open")


@check("sendfile")
def sendfile_sends_all(h: Harness, near: ByteStream, far: ByteStream) -> None:
    """sendfile sends a file from an offset on, all of it or as much as was asked for, and says how much."""
    data = pattern(0, FILE_BYTES)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        for count in (None, PIECE_BYTES):
            expected = data[FILE_OFFSET_BYTES:][:count]
            sender = h.start("sendfile", as_socket(near).sendfile, file, FILE_OFFSET_BYTES, count)
            h.expect(far, expected)
            sent = sender.result()
            require(sent == len(expected), f"sendfile returned {sent} after {len(expected)} bytes")
    near.shutdown(socket.SHUT_WR)
    h.expect_end(far)


if sys.platform != "win32":

    @check("vectored", "buffered")
    def sendmsg_and_recvmsg_into(h: Harness, near: ByteStream, far: ByteStream) -> None:
        """Several buffers go out as one run of bytes and come in across several buffers."""
        sent = as_socket(near).sendmsg([b"ab", b"", bytearray(b"cdef"), memoryview(b"gh")])
        require(sent == 8, f"sendmsg of 8 bytes returned {sent}")
        buffers = [bytearray(3), bytearray(4), bytearray(4)]
        size, _, _, _ = as_socket(far).recvmsg_into(buffers)
        same(b"".join(buffers)[:size], b"abcdefgh"[:size])
        h.expect(far, b"abcdefgh"[size:])
