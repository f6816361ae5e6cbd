"""Byte streams inside one process: no descriptor, no kernel, full control over timing.

:func:`memory_pair` gives two connected ends that behave like an AF_UNIX socketpair with a small buffer;
:func:`lockstep_pair` gives two ends without any buffer, where a sender waits until its peer has received
everything. Code that works over both makes no assumption about buffering. The ends can be stalled and
made to trickle, to bring about what a kernel does once in a blue moon.

Both satisfy :class:`ByteStream`, as does every stream socket.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

Readable = bytes | bytearray | memoryview
"""What can be sent."""
Writable = bytearray | memoryview
"""What can be received into."""

DEFAULT_CAPACITY_BYTES = 64 * 1024
"""Bytes that one direction of a memory pair holds: small, so that tests reach the limit often."""

_AT_ONCE = -math.inf
"""The deadline of a call that must not wait; what it raises then is not a TimeoutError."""


class ByteStream(Protocol):
    """The methods of a stream socket that all our streams have, with a socket's meaning and errors."""

    def send(self, data: Readable, /) -> int:
        """Sends some of `data`, at least one byte unless it is empty; returns how many."""

    def sendall(self, data: Readable, /) -> None:
        """Sends all of `data`; after an error nobody can tell how much of it went."""

    def recv(self, bufsize: int, /) -> bytes:
        """Receives 1 to `bufsize` bytes; b"" is the end of the stream, or that nothing was asked for."""

    def recv_into(self, buffer: Writable, /) -> int:
        """Receives into `buffer`, as :meth:`recv` does; returns how many bytes, 0 at the end."""

    def shutdown(self, how: int, /) -> None:
        """Ends one direction or both; `how` is SHUT_RD, SHUT_WR or SHUT_RDWR."""

    def close(self) -> None:
        """Ends the stream; can be repeated."""

    def settimeout(self, value: float | None, /) -> None:
        """Seconds that each later call may wait; None is for ever, 0 is not at all."""


class _Channel:
    """One direction of a pair; the pair's condition guards every field.

    Attributes:
        data: under way; in a lock-step pair what the sender offers at this moment.
        finished: the sender sends no more.
        abandoned: the receiver takes no more.
        reset: the receiver learns, once and after the data, that the sender discarded what it was sent.
        stalled: the data stay under way, the end of the stream too.
        offering: a sender of a lock-step pair is at it; another has to wait.
        receivers: how many calls wait for data.
    """

    __slots__ = ("abandoned", "data", "finished", "offering", "receivers", "reset", "stalled")

    def __init__(self) -> None:
        self.data = bytearray()
        self.finished = False
        self.abandoned = False
        self.reset = False
        self.stalled = False
        self.offering = False
        self.receivers = 0

    @property
    def broken(self) -> bool:
        """Whether sending is of no use any more."""
        return self.finished or self.abandoned


class MemoryStream(ABC):
    """One end of a pair in memory; made by :func:`memory_pair`.

    It is one stream to any number of threads, as a socket is. Unlike a socket's, its :meth:`close` also
    ends the calls that wait in other threads, with EBADF.

    Attributes:
        max_recv_bytes: no receive returns more than this; None for no limit. With 1, data trickle in.
        max_send_bytes: no single send takes more than this; None for no limit. With 1, sends are partial.
        on_send: called with the data before each send or sendall that is not empty. It may wait, to hold
            up the sender, and what it raises, the sender gets, with nothing sent. None for nothing.
        on_recv: called before each receive, likewise.
    """

    def __init__(self, name: str, changed: threading.Condition, incoming: _Channel, outgoing: _Channel) -> None:
        self._name = name
        self._changed = changed
        self._in = incoming
        self._out = outgoing
        self._timeout: float | None = None
        self._closed = False
        self.max_recv_bytes: int | None = None
        self.max_send_bytes: int | None = None
        self.on_send: Callable[[Readable], object] | None = None
        self.on_recv: Callable[[], object] | None = None

    def send(self, data: Readable, /) -> int:
        """Sends what there is room for.

        Returns:
            How many bytes were taken; 0 for empty data only.

        Raises:
            BrokenPipeError: the peer is gone or takes no more, or this end was shut down for sending.
            TimeoutError: there was no room for a single byte in the time that :meth:`settimeout` allows.
            BlockingIOError: the same at once, with a time-out of 0.
            OSError: EBADF, this end is closed.
        """
        with memoryview(data).cast("B") as view:
            self._hook_send(data, view)
            return self._send_some(view, self._deadline()) if view else 0

    def sendall(self, data: Readable, /) -> None:
        """Sends everything, waiting for room as needed; the time-out holds for the whole call.

        Raises:
            OSError: as :meth:`send`; some of the data may have been sent.
        """
        with memoryview(data).cast("B") as view:
            self._hook_send(data, view)
            deadline = self._deadline()
            sent = 0
            while sent < len(view):
                with view[sent:] as rest:
                    sent += self._send_some(rest, deadline)

    def recv(self, bufsize: int, /) -> bytes:
        """Receives what is there, waiting for the first byte.

        Args:
            bufsize: the most to return, in bytes; 0 returns b"" at once.

        Returns:
            1 to `bufsize` bytes, or b"" at the end of the stream.

        Raises:
            ConnectionResetError: the peer closed without having received everything; raised once, after
                what the peer had sent before.
            TimeoutError: nothing came in the time that :meth:`settimeout` allows; nothing is lost.
            BlockingIOError: the same at once, with a time-out of 0.
            ValueError: `bufsize` is negative (the caller's doing).
            OSError: EBADF, this end is closed.
        """
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        if self.on_recv is not None:
            self.on_recv()
        deadline = self._deadline()
        channel = self._in
        with self._changed:
            self._check_open()
            if bufsize == 0:
                return b""
            channel.receivers += 1
            try:
                self._changed.notify_all()
                self._wait(lambda: self._closed or _receivable(channel), deadline)
                self._check_open()
                return self._take(bufsize)
            finally:
                channel.receivers -= 1
                self._changed.notify_all()

    def recv_into(self, buffer: Writable, nbytes: int = 0, /) -> int:
        """Receives into a buffer.

        Args:
            buffer: where to; what lies beyond the bytes received is left as it is.
            nbytes: the most to receive, in bytes; 0 for the size of `buffer`.

        Returns:
            How many bytes were received; 0 at the end of the stream, or when `buffer` is empty.

        Raises:
            ValueError: `nbytes` is negative or more than the buffer holds (the caller's doing).
            OSError: as :meth:`recv`.
        """
        if nbytes < 0:
            raise ValueError("negative buffersize in recv_into")
        with memoryview(buffer).cast("B") as view:
            if nbytes > len(view):
                raise ValueError("buffer too small for requested bytes")
            data = self.recv(nbytes or len(view))
            view[: len(data)] = data
            return len(data)

    def shutdown(self, how: int, /) -> None:
        """Ends sending (the peer sees the end of the stream after the data), receiving, or both.

        Raises:
            OSError: EINVAL, `how` is none of SHUT_RD, SHUT_WR and SHUT_RDWR; EBADF, this end is closed.
        """
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise _os_error(errno.EINVAL)
        with self._changed:
            self._check_open()
            if how != socket.SHUT_WR:
                self._in.abandoned = True
            if how != socket.SHUT_RD:
                self._out.finished = True
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the stream; what was sent still arrives, what was not received makes it a reset.

        Repeating it does nothing. Calls of other threads that wait on this end raise EBADF.
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            if not self._in.offering:  # an offer is the sender's, who withdraws it
                self._out.reset = bool(self._in.data)
                self._in.data.clear()
            self._in.abandoned = True
            self._out.finished = True
            self._changed.notify_all()

    def settimeout(self, value: float | None, /) -> None:
        """Sets what each later call may wait.

        Args:
            value: in seconds; None is for ever, with 0 a call that would wait raises BlockingIOError.

        Raises:
            ValueError: `value` is negative (the caller's doing).
            OSError: EBADF, this end is closed.
        """
        if value is not None and value < 0:
            raise ValueError("Timeout value out of range")
        with self._changed:
            self._check_open()
            self._timeout = value

    def gettimeout(self) -> float | None:
        """Seconds that a call may wait; None is for ever."""
        return self._timeout

    def setblocking(self, flag: bool, /) -> None:
        """The same as a time-out of None, or of 0 where `flag` is false."""
        self.settimeout(None if flag else 0.0)

    def stall(self) -> None:
        """Keeps under way what this end sends, the end of the stream too, until :meth:`resume`."""
        self._set_stalled(True)

    def resume(self) -> None:
        """Lets arrive what :meth:`stall` kept under way."""
        self._set_stalled(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<{type(self).__name__} {self._name} {state}, {len(self._in.data)} bytes to receive>"

    def _hook_send(self, data: Readable, view: memoryview) -> None:
        if view and self.on_send is not None:
            self.on_send(data)

    def _set_stalled(self, stalled: bool) -> None:
        with self._changed:
            self._out.stalled = stalled
            self._changed.notify_all()

    @abstractmethod
    def _send_some(self, view: memoryview, deadline: float | None) -> int:
        """Sends one piece of `view`, which is not empty; returns its size."""

    def _take(self, most: int) -> bytes:
        channel = self._in
        if channel.data:
            size = most if self.max_recv_bytes is None else min(most, self.max_recv_bytes)
            taken = bytes(channel.data[:size])
            del channel.data[:size]
            return taken
        if channel.reset:
            channel.reset = False
            raise _os_error(errno.ECONNRESET)
        return b""

    def _deadline(self) -> float | None:
        """When a call that begins now has to give up."""
        if not self._timeout:
            return None if self._timeout is None else _AT_ONCE
        return time.monotonic() + self._timeout

    def _wait(self, ready: Callable[[], bool], deadline: float | None) -> None:
        """Waits until `ready`; called with the lock held."""
        while not ready():
            if deadline == _AT_ONCE:
                raise _os_error(errno.EAGAIN)
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise TimeoutError("timed out")
            self._changed.wait(remaining)

    def _check_open(self) -> None:
        if self._closed:
            raise _os_error(errno.EBADF)

    def _check_sendable(self) -> None:
        self._check_open()
        if self._out.broken:
            raise _os_error(errno.EPIPE)


class _BufferedStream(MemoryStream):
    """An end of :func:`memory_pair`: sending is done when the data are in the buffer."""

    def __init__(
        self,
        name: str,
        changed: threading.Condition,
        incoming: _Channel,
        outgoing: _Channel,
        capacity_bytes: int,
    ) -> None:
        super().__init__(name, changed, incoming, outgoing)
        self._capacity = capacity_bytes

    def _send_some(self, view: memoryview, deadline: float | None) -> int:
        channel = self._out
        with self._changed:
            self._wait(lambda: self._closed or channel.broken or self._room() > 0, deadline)
            self._check_sendable()
            size = min(len(view), self._room(), self.max_send_bytes or len(view))
            channel.data += view[:size]
            self._changed.notify_all()
            return size

    def _room(self) -> int:
        return self._capacity - len(self._out.data)


class _LockstepStream(MemoryStream):
    """An end of :func:`lockstep_pair`: sending is done when the data are in the receiver's hands."""

    def _send_some(self, view: memoryview, deadline: float | None) -> int:
        channel = self._out
        size = min(len(view), self.max_send_bytes or len(view))
        at_once = deadline == _AT_ONCE
        with self._changed:
            self._wait(lambda: self._closed or channel.broken or self._may_offer(at_once), deadline)
            self._check_sendable()
            channel.offering = True
            channel.data += view[:size]
            self._changed.notify_all()
            failure: OSError | None = None
            try:
                if at_once:  # somebody waits for it: this lasts until that thread has run
                    self._wait(lambda: self._ended() or not self._awaited(), None)
                else:
                    self._wait(self._ended, deadline)
            except TimeoutError as error:
                failure = error
            finally:
                taken = size - len(channel.data)
                channel.data.clear()  # withdrawn: only what was received counts as sent
                channel.offering = False
                self._changed.notify_all()
            if taken == 0:
                self._check_sendable()
                raise failure or _os_error(errno.EAGAIN)
            return taken

    def _may_offer(self, at_once: bool) -> bool:
        return not self._out.offering and (self._awaited() or not at_once)

    def _awaited(self) -> bool:
        return self._out.receivers > 0 and not self._out.stalled

    def _ended(self) -> bool:
        """Whether an offer has come to its end, one way or another."""
        return self._closed or self._out.broken or not self._out.data


def memory_pair(capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> tuple[MemoryStream, MemoryStream]:
    """Two connected ends with a bounded buffer for each direction, like an AF_UNIX socketpair.

    Closing them is good manners only: they hold nothing but memory.

    Args:
        capacity_bytes: the most that one direction holds, in bytes; a sender waits for room.

    Raises:
        ValueError: `capacity_bytes` is not positive (the caller's doing); see :func:`lockstep_pair` for none.
    """
    if capacity_bytes <= 0:
        raise ValueError(f"capacity_bytes must be positive, not {capacity_bytes}")
    changed, one, other = threading.Condition(), _Channel(), _Channel()
    return (
        _BufferedStream("first", changed, one, other, capacity_bytes),
        _BufferedStream("second", changed, other, one, capacity_bytes),
    )


def lockstep_pair() -> tuple[MemoryStream, MemoryStream]:
    """Two connected ends with no buffer at all: flow control at its strictest.

    A send or sendall returns when the peer has received everything, and not before; where it runs into
    its time-out, what was not received is withdrawn and send returns how much was. With a time-out of 0
    a send succeeds only while the peer waits for data. As nothing is ever under way, a close discards
    nothing and is never a reset: the sender that it leaves behind gets BrokenPipeError.
    """
    changed, one, other = threading.Condition(), _Channel(), _Channel()
    return _LockstepStream("first", changed, one, other), _LockstepStream("second", changed, other, one)


def _receivable(channel: _Channel) -> bool:
    if channel.stalled:
        return False
    return bool(channel.data) or channel.broken or channel.reset


def _os_error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
