"""Frames over a blocking socket, and the raw bytes between them."""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from hvsock.errors import HvsockError, LostError, ProtocolError
from hvsock.services.rates import Slowness

from .frames import BLOCK_BYTES, HEADER, MAX_BODY_BYTES, Kind, error_frame, error_of, frame, header_of

if sys.platform != "linux":
    raise ImportError("file copy needs Linux: folders are opened relative to each other, and never through links")

STALL_SECONDS: Final = 120.0
"""How long a peer may be silent: a file system that syncs gigabytes is."""
ALIVE_SECONDS: Final = 5.0
"""Pause between two ALIVE frames of a side that is busy with itself."""
MAX_ALIVE: Final = 10_000
"""Most ALIVE frames in a row: half a day of a side that is busy with itself."""
MIN_RATE: Final = 64
"""Bytes a second that a guest has to send while its host waits for it, over STALL_SECONDS: a tree of empty files
has more on the slowest of disks. An ALIVE frame gives it twice its pause; MAX_ALIVE of them count in one copy."""
BUFFER_BYTES: Final = 2 * BLOCK_BYTES
"""What is received at once; a whole frame of every kind but DATA fits in."""
FLUSH_BYTES: Final = 128 * 1024
"""Frames gather up to this size before they are sent: so small files cost no system call each."""
DRAIN_SECONDS: Final = 10.0
"""How long a side that gave up reads on, so that its ERROR arrives before the end of the connection."""


class Channel:
    """One connection.

    Args:
        sock: connected; this object makes it blocking, with a time-out. The caller owns and closes it.
        min_rate: bytes a second that the peer has to send while it is waited for; 0 for no such bound.
        clock: seconds.
    """

    def __init__(
        self, sock: socket.socket, min_rate: float = 0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        sock.settimeout(STALL_SECONDS)
        self._slowness = Slowness(min_rate, STALL_SECONDS)
        self._alive = 0
        self._clock = clock
        self._sock = sock
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._out = bytearray()
        self._alive_at = time.monotonic()
        self._said: HvsockError | OSError | None = None
        self._poll = select.poll()
        self._poll.register(sock.fileno(), select.POLLIN)

    # -- sending

    def send(self, data: bytes) -> None:
        """Send a frame, at the latest with the next :meth:`flush`."""
        self._out += data
        if len(self._out) >= FLUSH_BYTES:
            self.flush()

    def send_block(self, data: memoryview) -> None:
        """Send a DATA frame; `data` may be used again after this."""
        self._out += HEADER.pack(Kind.DATA, len(data))
        if len(data) + len(self._out) < FLUSH_BYTES:
            self._out += data
            return
        self.flush()
        self._put(data)

    def flush(self) -> None:
        """Send what has gathered.

        Raises:
            HvsockError, OSError: the ERROR that the peer sent before it left.
            LostError: the connection ended.
            TimeoutError: the peer takes nothing any more.
        """
        out, self._out = self._out, bytearray()
        self._put(out)

    def busy(self) -> None:
        """Tell the peer now and then that this side is at work; call it as often as you like."""
        now = time.monotonic()
        if now - self._alive_at >= ALIVE_SECONDS:
            self._alive_at = now
            self.send(frame(Kind.ALIVE))
            self.flush()

    def _put(self, data: bytearray | memoryview) -> None:
        try:
            if data:
                self._sock.sendall(data)
        except TimeoutError:
            raise TimeoutError(f"the peer took nothing for {STALL_SECONDS:g} s") from None
        except OSError as error:
            self._last_words()
            raise LostError(f"the connection ended: {error.strerror}") from error

    def _last_words(self) -> None:
        """Raise the ERROR that the peer sent before it left, if it did."""
        try:
            while True:
                self.receive()
        except (LostError, ProtocolError, TimeoutError) as error:
            if error is self._said:
                raise

    def check_incoming(self) -> None:
        """Raise the ERROR that has come, if one has; a sender looks between two files.

        Raises:
            ProtocolError: something else has come.
        """
        if self._start == self._end and not self._poll.poll(0):
            return
        kind, _ = self.receive()
        raise ProtocolError(f"the peer sent {kind.name} where it has nothing to say")

    # -- receiving

    def receive(self) -> tuple[Kind, bytes]:
        """The next frame, other than ALIVE; the body of DATA is left for :meth:`pieces`.

        Returns:
            Its kind and body; for DATA, the body's length as four bytes.

        Raises:
            HvsockError, OSError: the peer's ERROR.
            ProtocolError: it sent what is no frame.
            LostError: the connection ended.
            TimeoutError: nothing came for STALL_SECONDS, or too little.
        """
        for _ in range(MAX_ALIVE):
            self._fill(HEADER.size)
            kind, length = header_of(self._buffer, self._start)
            self._start += HEADER.size
            if kind is Kind.DATA:
                if length == 0:
                    raise ProtocolError("the peer sent an empty block")
                return kind, length.to_bytes(4, "big")
            self._fill(length)
            body = bytes(self._view[self._start : self._start + length])
            self._start += length
            if kind is Kind.ERROR:
                self._said = error_of(body)
                raise self._said
            if kind is not Kind.ALIVE:
                return kind, body
            self._alive += 1
            if self._alive <= MAX_ALIVE:
                self._slowness.excuse(2 * ALIVE_SECONDS)
        raise ProtocolError("the peer says that it is busy, and nothing else")

    def expect(self, *kinds: Kind) -> tuple[Kind, bytes]:
        """The next frame, which is one of `kinds`; errors are those of :meth:`receive`."""
        kind, body = self.receive()
        if kind not in kinds:
            raise ProtocolError(f"the peer sent {kind.name} instead of {' or '.join(one.name for one in kinds)}")
        return kind, body

    def pieces(self, length: int) -> Iterator[memoryview]:
        """The `length` bytes that follow, in pieces; each is valid until the next one is asked for."""
        while length:
            if self._start == self._end:
                self._start = self._end = 0
                self._receive_some()
            count = min(length, self._end - self._start)
            piece = self._view[self._start : self._start + count]
            self._start += count
            length -= count
            yield piece

    def _fill(self, count: int) -> None:
        """Have at least `count` bytes in the buffer."""
        if self._end - self._start >= count:
            return
        left = self._end - self._start
        self._buffer[:left] = self._buffer[self._start : self._end]
        self._start, self._end = 0, left
        while self._end < count:
            self._receive_some()

    def _receive_some(self) -> None:
        since = self._clock()
        try:
            count = self._sock.recv_into(self._view[self._end :])
        except TimeoutError:
            raise TimeoutError(f"the peer sent nothing for {STALL_SECONDS:g} s") from None
        except OSError as error:
            raise LostError(f"the connection ended: {error.strerror}") from error
        if not count:
            raise LostError("the connection ended in the midst of a copy; ask again, and it goes on from there")
        self._end += count
        if not self._slowness.waited(self._clock() - since, count):
            raise TimeoutError(
                f"the peer sends less than {self._slowness.rate:g} bytes a second for {STALL_SECONDS:g} s; the "
                "same copy again goes on from there"
            )

    def give_up(self, error: HvsockError | OSError, *, drain: bool) -> None:
        """Tell the peer why this side ends, and read on for a while where it is to be heard.

        Args:
            error: why.
            drain: read what the peer has under way, so that the connection is not reset over it; not for a peer
                that is not trusted.
        """
        try:
            self._out.clear()
            self._sock.settimeout(DRAIN_SECONDS)
            self._sock.sendall(error_frame(error))
            if not drain:
                return
            self._sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + DRAIN_SECONDS
            while time.monotonic() < deadline and self._sock.recv_into(self._buffer):
                pass
        except OSError:
            return


assert max(size for kind, size in MAX_BODY_BYTES.items() if kind is not Kind.DATA) < BUFFER_BYTES
