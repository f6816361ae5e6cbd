"""Streams with one defect each, in the ways in which streams go wrong; `DEFECTS` says which check finds which."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hvsock.testing import ByteStream, MakePair, MemoryStream, memory_pair
from hvsock.testing.streams import Readable, Writable


class Sound:
    """Passes everything on; the subclasses spoil one thing."""

    CAPACITY_BYTES: ClassVar[int] = 64 * 1024

    def __init__(self, inner: MemoryStream) -> None:
        self.inner = inner
        self.peer: Sound = self
        self.closed = threading.Event()
        self.sent_bytes = 0
        self.received_bytes = 0

    def take(self, data: Readable) -> int:
        """One send; what most defects of sending spoil."""
        return self.inner.send(data)

    def give(self, size: int) -> bytes:
        """One receive; what most defects of receiving spoil."""
        return self.inner.recv(size)

    def send(self, data: Readable, /) -> int:
        taken = self.take(data)
        self.sent_bytes += taken
        return taken

    def sendall(self, data: Readable, /) -> None:
        data = bytes(data)
        while data:
            data = data[self.send(data) :]

    def recv(self, bufsize: int, /) -> bytes:
        data = self.give(bufsize)
        self.received_bytes += len(data)
        return data

    def recv_into(self, buffer: Writable, /) -> int:
        data = self.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def shutdown(self, how: int, /) -> None:
        self.inner.shutdown(how)

    def close(self) -> None:
        self.inner.close()
        self.closed.set()

    def settimeout(self, value: float | None, /) -> None:
        self.inner.settimeout(value)

    def hang(self) -> None:
        """Waits for ever, that is until the stream is closed."""
        self.closed.wait()
        raise OSError("closed meanwhile")


class CorruptsFirstByte(Sound):
    def give(self, size: int) -> bytes:
        data = super().give(size)
        return bytes([data[0] ^ 1]) + data[1:] if data and self.received_bytes == 0 else data


class DropsByte(Sound):
    AT_BYTES: ClassVar[int] = 70_000

    def take(self, data: Readable) -> int:
        if self.sent_bytes <= self.AT_BYTES < self.sent_bytes + len(data):
            at = self.AT_BYTES - self.sent_bytes
            self.inner.sendall(data[:at])
            self.inner.sendall(data[at + 1 :])
            return len(data)
        return super().take(data)


class DoublesByte(Sound):
    def take(self, data: Readable) -> int:
        if self.sent_bytes <= DropsByte.AT_BYTES < self.sent_bytes + len(data):
            self.inner.sendall(data)
            self.inner.sendall(data[-1:])
            return len(data)
        return super().take(data)


class Reorders(Sound):
    """A large message is overtaken by the one after it."""

    held = b""

    def sendall(self, data: Readable, /) -> None:
        if len(data) > 10_000 and not self.held:
            self.held = bytes(data)
        else:
            super().sendall(data)
            super().sendall(self.held)
            self.held = b""


class SendsPartOnly(Sound):
    def sendall(self, data: Readable, /) -> None:
        self.send(data)


class LosesLaterMessage(Sound):
    messages = 0

    def sendall(self, data: Readable, /) -> None:
        self.messages += 1
        if self.messages != 1_500:
            super().sendall(data)


class ReturnsTooMuch(Sound):
    def give(self, size: int) -> bytes:
        return super().give(size + 1)


class RecvOfZeroTakes(Sound):
    def give(self, size: int) -> bytes:
        return super().give(size or 1)


class RecvIntoClearsRest(Sound):
    def recv_into(self, buffer: Writable, /) -> int:
        whole = bytearray(len(buffer) + 4)
        data = self.recv(len(buffer))
        whole[: len(data)] = data
        buffer[:] = whole[: len(buffer)]
        return len(data)


class RecvIntoCountsBuffer(Sound):
    def recv_into(self, buffer: Writable, /) -> int:
        return max(super().recv_into(buffer), len(buffer))


class CountsItems(Sound):
    """Takes a memoryview of numbers for one of bytes."""

    def sendall(self, data: Readable, /) -> None:
        super().sendall(bytes(data)[: len(data)])


class KeepsBuffer(Sound):
    """Sends later, from the caller's own buffer."""

    kept: Readable = b""

    def sendall(self, data: Readable, /) -> None:
        super().sendall(self.kept)
        self.kept = data


class NothingIsEnd(Sound):
    def sendall(self, data: Readable, /) -> None:
        if not data:
            self.inner.shutdown(socket.SHUT_WR)
        super().sendall(data)


class CountsWhatItDidNotTake(Sound):
    def take(self, data: Readable) -> int:
        super().take(data)
        return len(data)


class EndsEarly(Sound):
    def give(self, size: int) -> bytes:
        return super().give(size) if self.received_bytes < 200_000 else b""


class EndsOnce(Sound):
    ended = False

    def give(self, size: int) -> bytes:
        if self.ended:
            self.hang()
        data = super().give(size)
        self.ended = not data and size > 0
        return data


class HalfCloseIsClose(Sound):
    def shutdown(self, how: int, /) -> None:
        super().shutdown(socket.SHUT_RDWR)


class LosesDataOnClose(Sound):
    """What was not received when the sender closed never is."""

    def give(self, size: int) -> bytes:
        return b"" if self.peer.closed.is_set() else super().give(size)


class ClosesOnce(Sound):
    def close(self) -> None:
        if self.closed.is_set():
            raise OSError("closed already")
        super().close()


class ShutsDownOnce(Sound):
    shut = False

    def shutdown(self, how: int, /) -> None:
        if self.shut:
            raise OSError("shut down already")
        self.shut = True
        super().shutdown(how)


class SendsIntoTheVoid(Sound):
    """Nobody learns that a send was in vain."""

    def take(self, data: Readable) -> int:
        try:
            return super().take(data)
        except BrokenPipeError:
            return len(data)


class UsableWhenClosed(Sound):
    def give(self, size: int) -> bytes:
        return b"" if self.closed.is_set() else super().give(size)


class SwallowsReset(Sound):
    def give(self, size: int) -> bytes:
        try:
            return super().give(size)
        except ConnectionResetError:
            return b""


class ResetOvertakes(Sound):
    """The peer's last words are lost with the reset."""

    def give(self, size: int) -> bytes:
        if self.peer.closed.is_set():
            while super().give(size):
                pass
        return super().give(size)


class EndIsReset(Sound):
    def give(self, size: int) -> bytes:
        data = super().give(size)
        if not data and size:
            raise ConnectionResetError
        return data


class NeverWakes(Sound):
    """What is there is received; what comes later is slept through."""

    def give(self, size: int) -> bytes:
        self.inner.settimeout(0)
        try:
            return super().give(size)
        except BlockingIOError:
            self.hang()
            raise
        finally:
            if not self.closed.is_set():
                self.inner.settimeout(None)


class WakesOnDataOnly(Sound):
    def give(self, size: int) -> bytes:
        data = super().give(size)
        if not data and size:
            self.hang()
        return data


class IgnoresTimeouts(Sound):
    def settimeout(self, value: float | None, /) -> None:
        pass


class TimesOutEarly(Sound):
    def settimeout(self, value: float | None, /) -> None:
        super().settimeout(value and value / 10)


class TimesOutAsBlocking(Sound):
    def give(self, size: int) -> bytes:
        try:
            return super().give(size)
        except TimeoutError:
            raise BlockingIOError from None


class RecvTimeoutLoses(Sound):
    """What comes after a time-out went to the call that is gone."""

    timed_out = False

    def give(self, size: int) -> bytes:
        if self.timed_out:
            super().give(1)
            self.timed_out = False
        try:
            return super().give(size)
        except TimeoutError:
            self.timed_out = True
            raise


class SendTimeoutDoubles(Sound):
    """A send that timed out has taken a byte all the same."""

    late = b""

    def take(self, data: Readable) -> int:
        if self.late:
            self.inner.sendall(self.late)
            self.late = b""
        try:
            return super().take(data)
        except TimeoutError:
            self.late = bytes(data[:1])
            raise


class SleepsThroughRoom(Sound):
    """A sender that waits does not notice that there is room again."""

    def take(self, data: Readable) -> int:
        timeout = self.inner.gettimeout()
        self.inner.settimeout(0)
        try:
            return super().take(data)
        except BlockingIOError:
            self.closed.wait(timeout)
            raise TimeoutError from None
        finally:
            if not self.closed.is_set():
                self.inner.settimeout(timeout)


class Endless(Sound):
    """Takes whatever is sent, and never makes the sender wait."""

    CAPACITY_BYTES = 1 << 40


class WaitsForPeersClose(Sound):
    """A sender that waits does not notice that the peer is gone."""

    def take(self, data: Readable) -> int:
        try:
            return super().take(data)
        except BrokenPipeError:
            self.hang()
            raise


class OneLockForBothWays(Sound):
    def __init__(self, inner: MemoryStream) -> None:
        super().__init__(inner)
        self.lock = threading.Lock()

    def send(self, data: Readable, /) -> int:
        with self.lock:
            return super().send(data)

    def recv(self, bufsize: int, /) -> bytes:
        with self.lock:
            return super().recv(bufsize)


class OneLockForAllStreams(Sound):
    lock: ClassVar[threading.Lock] = threading.Lock()

    def send(self, data: Readable, /) -> int:
        with self.lock:
            return super().send(data)


class TakesAndRefuses(Sound):
    """A send that may not wait takes a part, and says that it took nothing."""

    def take(self, data: Readable) -> int:
        taken = super().take(data)
        if taken < len(data) and self.inner.gettimeout() == 0:
            raise BlockingIOError
        return taken


class EmptyIsEnd(Sound):
    def give(self, size: int) -> bytes:
        try:
            return super().give(size)
        except BlockingIOError:
            return b""


class SoundSocket:
    """A socket that passes everything on; the subclasses spoil one thing of what a descriptor brings."""

    def __init__(self, inner: socket.socket) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class ForeignDescriptor(SoundSocket):
    """The descriptor tells of another stream, one that is never readable and always writable."""

    def __init__(self, inner: socket.socket) -> None:
        super().__init__(inner)
        self.others = socket.socketpair()

    def fileno(self) -> int:
        return self.others[0].fileno()

    def close(self) -> None:
        self.inner.close()
        for other in self.others:
            other.close()


class Inheritable(SoundSocket):
    def __init__(self, inner: socket.socket) -> None:
        super().__init__(inner)
        inner.set_inheritable(True)


class PeekTakes(SoundSocket):
    def recv(self, size: int, flags: int = 0) -> bytes:
        return self.inner.recv(size)


class FileTakesStream(SoundSocket):
    """Closing a file made of the stream ends the stream."""

    def makefile(self, *args: Any, **kwargs: Any) -> Any:
        file = self.inner.makefile(*args, **kwargs)
        self.inner.close()  # in truth when the last file is closed
        return file


class IgnoresOffset(SoundSocket):
    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        return self.inner.sendfile(file, 0, count)


class FirstBufferOnly(SoundSocket):
    def sendmsg(self, buffers: list[Readable]) -> int:
        return self.inner.send(buffers[0])


def in_memory(kind: type[Sound], other: type[Sound] | None = None) -> MakePair:
    """Makes pairs of which both ends are of `kind`, or the second one is of the `other`."""

    def make() -> tuple[ByteStream, ByteStream]:
        near_inner, far_inner = memory_pair(kind.CAPACITY_BYTES)
        near, far = kind(near_inner), (other or kind)(far_inner)
        near.peer, far.peer = far, near
        return near, far

    return make


def of_sockets(kind: Callable[[socket.socket], Any]) -> MakePair:
    """Makes pairs of which both ends are of `kind`."""

    def make() -> tuple[ByteStream, ByteStream]:
        near, far = socket.socketpair()
        return kind(near), kind(far)

    return make


@dataclass(frozen=True, slots=True)
class Defect:
    """A way to be broken.

    Attributes:
        kind: the stream.
        check: the name of the check that finds it.
        hangs: it shows in something that does not happen, which takes the whole waiting time to see.
    """

    kind: type[Sound | SoundSocket]
    check: str
    hangs: bool = False

    @property
    def make_pair(self) -> MakePair:
        return in_memory(self.kind) if issubclass(self.kind, Sound) else of_sockets(self.kind)


DEFECTS = [
    Defect(CorruptsFirstByte, "small_both_ways"),
    Defect(DropsByte, "large_duplex"),
    Defect(DoublesByte, "large_duplex"),
    Defect(SendsPartOnly, "large_duplex"),
    Defect(Reorders, "order_kept"),
    Defect(LosesLaterMessage, "many_small_messages"),
    Defect(ReturnsTooMuch, "recv_at_most_asked"),
    Defect(RecvOfZeroTakes, "recv_of_zero_bytes", hangs=True),
    Defect(RecvIntoClearsRest, "recv_into_partial"),
    Defect(RecvIntoCountsBuffer, "recv_into_partial"),
    Defect(CountsItems, "sends_any_buffer", hangs=True),
    Defect(KeepsBuffer, "buffer_is_free_after_send"),
    Defect(NothingIsEnd, "send_of_nothing"),
    Defect(CountsWhatItDidNotTake, "send_returns_count"),
    Defect(EndsEarly, "eof_after_all_data"),
    Defect(EndsOnce, "eof_without_data", hangs=True),
    Defect(HalfCloseIsClose, "half_close_keeps_other_direction"),
    Defect(LosesDataOnClose, "close_delivers_everything"),
    Defect(ClosesOnce, "close_twice"),
    Defect(ShutsDownOnce, "shutdown_twice"),
    Defect(SendsIntoTheVoid, "send_after_own_shutdown"),
    Defect(SendsIntoTheVoid, "send_after_peer_closed"),
    Defect(UsableWhenClosed, "use_after_own_close"),
    Defect(SwallowsReset, "unread_data_at_close_is_reset"),
    Defect(ResetOvertakes, "unread_data_at_close_is_reset"),
    Defect(SwallowsReset, "blocked_recv_wakes_on_reset"),
    Defect(EndIsReset, "close_after_reading_all_is_no_reset"),
    Defect(NeverWakes, "blocked_recv_wakes_on_data", hangs=True),
    Defect(WakesOnDataOnly, "blocked_recv_wakes_on_eof", hangs=True),
    Defect(IgnoresTimeouts, "recv_timeout_loses_nothing", hangs=True),
    Defect(TimesOutEarly, "recv_timeout_loses_nothing"),
    Defect(TimesOutAsBlocking, "recv_timeout_loses_nothing"),
    Defect(RecvTimeoutLoses, "recv_timeout_loses_nothing"),
    Defect(SendTimeoutDoubles, "send_timeout_loses_nothing"),
    Defect(SleepsThroughRoom, "blocked_send_proceeds_when_peer_reads", hangs=True),
    Defect(Endless, "blocked_send_proceeds_when_peer_reads"),
    Defect(WaitsForPeersClose, "blocked_send_fails_when_peer_closes", hangs=True),
    Defect(OneLockForBothWays, "clogged_direction_leaves_other_free", hangs=True),
    Defect(OneLockForAllStreams, "pairs_are_independent", hangs=True),
    Defect(TakesAndRefuses, "nonblocking_send_fills_then_drains"),
    Defect(EmptyIsEnd, "nonblocking_recv"),
    Defect(ForeignDescriptor, "select_tells_readiness", hangs=True),
    Defect(ForeignDescriptor, "poll_tells_readiness", hangs=True),
    Defect(ForeignDescriptor, "epoll_tells_readiness", hangs=True),
    Defect(ForeignDescriptor, "epoll_edges", hangs=True),
    Defect(Inheritable, "descriptor_is_stable"),
    Defect(PeekTakes, "peek_takes_nothing"),
    Defect(FileTakesStream, "makefile_round_trip"),
    Defect(IgnoresOffset, "sendfile_sends_all"),
    Defect(FirstBufferOnly, "sendmsg_and_recvmsg_into"),
]
