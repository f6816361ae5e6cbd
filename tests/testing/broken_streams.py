"""Streams with one defect each, in the ways in which streams go wrong."""

from __future__ import annotations

import socket
import threading
from typing import Any, ClassVar

from hvsock.testing import MemoryStream
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
