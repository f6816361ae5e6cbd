"""A side of a conversation in lockstep, without I/O and without a clock: say something, read exactly what is due.

The messages of PowerShell Direct have no frames: each side takes what one recv gives it for a message. That is not
relied on here. A side is a generator of turns, and a turn says how many bytes may be read at most; it never reads
beyond a message, and what it does depends on the bytes alone, not on where a stream was cut. Where a message is
text of any length its end is a pause: the other side waits for an answer then.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from string import digits
from typing import ClassVar, Final, Generic, TypeAlias, TypeVar

from hvsock.errors import LostError, ProtocolError, UsageError

R = TypeVar("R")

MAX_TRAILING_BYTES: Final = 16
"""Most NULs (and digits of a version) after a message; a peer's own buffer for short ones has 16 bytes."""
NUL: Final = b"\x00"


class Signal(Enum):
    """What happened in place of data."""

    PAUSE = "pause"
    """Nothing came for a while, in a turn that asks for that."""
    END = "end"
    """The peer's stream ended."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a side does next.

    Attributes:
        send: to be sent first.
        due: most bytes to read then; zero: nothing is read, and b"" is received at once.
        what: what is read, for errors.
        pausable: whether a pause is told, once the message has begun.
        verdict: whether somebody has to decide before b"" is received.
    """

    send: bytes = b""
    due: int = 0
    what: str = ""
    pausable: bool = False
    verdict: bool = False


Script: TypeAlias = Generator[Turn, bytes | Signal, R]


class Lockstep(Generic[R]):
    """One side. A subclass has its script, which raises what is wrong with the other side.

    Attributes:
        PEER: what errors call the other side.
        turn: what is to be done now; meaningless once :attr:`done`.
        done: whether the script ended well.
    """

    PEER: ClassVar[str] = "the peer"

    def __init__(self) -> None:
        self.turn = Turn()
        self.done = False
        self._result: R | None = None
        self._trailing = NUL
        self._running = self.script()
        self._advance(None)

    def script(self) -> Script[R]:
        """The conversation."""
        raise NotImplementedError

    @property
    def result(self) -> R:
        """What came of it, once it is done."""
        if not self.done or self._result is None:
            raise UsageError("the conversation is not done")
        return self._result

    def receive(self, data: bytes) -> None:
        """Take what was read, one byte to as many as are due; b"" where nothing is due.

        Raises:
            HvsockError: what the other side did; the conversation is over.
        """
        if len(data) > self.turn.due or (self.turn.due and not data):
            raise UsageError(f"{len(data)} bytes were read where 1 to {self.turn.due} are due")
        self._advance(data)

    def pause(self) -> None:
        """Nothing came for a while. Raises as :meth:`receive`."""
        self._advance(Signal.PAUSE)

    def end(self) -> None:
        """The other side's stream ended. Raises as :meth:`receive`."""
        self._advance(Signal.END)

    def _advance(self, event: bytes | Signal | None) -> None:
        if self.done:
            raise UsageError("the conversation is over")
        try:
            self.turn = next(self._running) if event is None else self._running.send(event)
        except StopIteration as stop:
            self._result, self.done = stop.value, True

    # -- parts of scripts

    def skip_version(self) -> None:
        """The message before was a version: more of its digits may come before the next word."""
        self._trailing = NUL + digits.encode()

    def say(self, data: bytes) -> Script[None]:
        """Send, and read nothing."""
        yield Turn(data)

    def word(self, send: bytes, words: tuple[bytes, ...], what: str) -> Script[bytes]:
        """Send, and read one of `words`, none of which begins with another.

        Raises:
            ProtocolError: it is none of them.
            LostError: the stream ended.
        """
        got, skipped = b"", 0
        while got not in words:
            due = min(len(one) for one in words if one.startswith(got)) - len(got)
            data = yield Turn(send, due, what)
            send = b""
            if data is Signal.END:
                raise self.lost(what)
            if isinstance(data, Signal):
                continue
            if not got:  # what trails the message before
                rest = data.lstrip(self._trailing)
                skipped += len(data) - len(rest)
                data = rest
                if skipped > MAX_TRAILING_BYTES:
                    raise ProtocolError(f"{self.PEER} fills {what} with NULs")
            for byte in data:
                got += bytes((byte,))
                if not any(one.startswith(got) for one in words):
                    raise self.wrong(what, got, words)
        self._trailing = NUL
        return got

    def wrong(self, what: str, got: bytes, words: tuple[bytes, ...]) -> ProtocolError:
        """The error of another word; `got` ends with the first byte that is wrong."""
        known = ", ".join(one.decode("ascii") for one in words)
        return ProtocolError(f"{self.PEER} has sent, as {what}, what begins with {got!r}, and is none of: {known}")

    def lost(self, what: str) -> LostError:
        """The error of a stream that ended."""
        return LostError(f"{self.PEER} ended the connection in place of {what}")
