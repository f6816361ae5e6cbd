"""A guest that plays what it is told: the rows of a conversation, without I/O and over a fabric, in any cuts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from string import digits
from typing import NamedTuple, TypeVar

assert sys.platform == "linux"

from hvsock.constants import VM_SESSION_SERVICE, VM_SESSION_SERVICE_2
from hvsock.services.caller import Caller
from hvsock.services.powershell.lockstep import Lockstep
from hvsock.services.serving import RawService
from hvsock.sockets.chosen import socket

R = TypeVar("R")

WHOLE: tuple[int, ...] = ()
"""Cuts of a message that comes whole."""
TRAILING = b"\0" + digits.encode()
"""What may trail an answer that is complete already."""
BYTES = (1,) * 4096
"""Cuts of one that comes byte by byte."""


def wide(text: str) -> bytes:
    """Text as it travels."""
    return text.encode("utf-16-le")


class Row(NamedTuple):
    """What the client says, and what the guest answers.

    Attributes:
        said: nothing else is taken.
        answer: sent in one go; b"" for none.
    """

    said: bytes
    answer: bytes = b""


GREETING = (Row(b"VERSION", b"VERSION_2"), Row(b"VERSION_2", b"PASS"))
TOKEN = "FakeTokenaaaaaaaaaAAAAAAAAAAAAAAAAAAAAAA0+/="
"""As the original's own tests have it."""


def login(
    password: str = "secret", last: bytes = b"CONF", user: str = "anna", domain: str = ""
) -> tuple[Row, ...]:
    """The rows of credentials."""
    names = (Row(wide(domain or "localhost"), b"PASS"), Row(wide(user), b"PASS"))
    if not password:
        return (*names, Row(b"EMPTYPW", last))
    return (*names, Row(b"NONEMPTYPW", b"PASS"), Row(wide(password), last))


def ending(configuration: str = "", token: str = TOKEN) -> tuple[Row, ...]:
    """The rows after CONF."""
    given = Row(wide(configuration) if configuration else b"EMPTYCF", b"TOKEN " + token.encode())
    first = (Row(b"NONEMPTYCF", b"PASS"),) if configuration else ()
    return (*first, given, Row(b"PASS"))


PROBE = (
    *(Row(b"VERSION", b"PASS"), Row(wide("?<PSDirectVMLegacy>"), b"PASS")),
    *(Row(b"EMPTYPW", b"FAIL"), Row(b"FAIL")),
)
"""What an older broker and a client say until the client gives up."""
SESSION = (*GREETING, Row(b"TOKEN " + TOKEN.encode(), b"PASS"))
"""The second connection."""


@dataclass
class Script:
    """One connection's rows.

    Attributes:
        rows: in their order.
        cuts: how many bytes of the answers come at once, in turn; what is left after them comes whole.
        end: whether the guest ends the connection after them; else it is silent.
    """

    rows: Sequence[Row]
    cuts: Sequence[int] = WHOLE
    end: bool = True
    said: bytes = b""

    def expected(self) -> bytes:
        """All that the client says."""
        return b"".join(row.said for row in self.rows)


def _sizes(cuts: Iterable[int]) -> Iterator[int]:
    return chain(cuts, repeat(4096))


def play(side: Lockstep[R], script: Script) -> R:
    """Play a script against a client, without I/O; checks what it says, that it says it in time, and how it ends.

    Raises:
        AssertionError: it says something else, or is neither content with nor done after the rows.
        HvsockError: what it raises.
    """
    sizes = _sizes(script.cuts)
    rows = list(script.rows)
    waiting, script.said = b"", b""
    while True:
        if side.done:
            assert not rows
            assert not waiting.strip(TRAILING)
            return side.result
        turn = side.turn
        script.said += turn.send
        heard = script.said[len(b"".join(row.said for row in script.rows[: len(script.rows) - len(rows)])) :]
        if rows and heard == rows[0].said:
            assert not waiting.strip(TRAILING), "the client did not hear all of an answer before it spoke"
            waiting += rows.pop(0).answer
        elif heard:
            raise AssertionError(f"{heard!r} was said where {rows[:1]} was due")
        if not turn.due:
            side.receive(b"")
        elif waiting:
            size = min(next(sizes), turn.due)
            data, waiting = waiting[:size], waiting[size:]
            side.receive(data)
        elif rows and rows[0].said:
            assert turn.pausable, "the client waits for more than the guest has"
            side.pause()
        elif turn.pausable and not script.end:
            side.pause()
        else:
            side.end()


@dataclass
class Playing:
    """Scripts for the connections of a service, one after the other.

    Attributes:
        scripts: those that are left.
        played: those that were played to their end, or until the client ended the connection.
        strange: what was said and not due.
    """

    scripts: list[Script]
    played: list[Script] = field(default_factory=list)
    strange: list[bytes] = field(default_factory=list)

    async def play(self, connection: socket) -> None:
        """Play the next script."""
        script = self.scripts.pop(0)
        self.played.append(script)
        loop = asyncio.get_running_loop()
        sizes = _sizes(script.cuts)
        for row in script.rows:
            heard = b""
            while len(heard) < len(row.said):
                data = await loop.sock_recv(connection, len(row.said) - len(heard))
                if not data:
                    return
                heard += data
            script.said += heard
            if heard != row.said:
                self.strange.append(heard)
                return
            rest = row.answer
            while rest:
                size = next(sizes)
                await loop.sock_sendall(connection, rest[:size])
                rest = rest[size:]
                await asyncio.sleep(0)
        if not script.end:
            while await loop.sock_recv(connection, 4096):
                pass


class ScriptedBroker(RawService, name=VM_SESSION_SERVICE.name, id=VM_SESSION_SERVICE.id):
    """The first connection."""

    def __init__(self, *scripts: Script) -> None:
        self.playing = Playing(list(scripts))

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Play."""
        await self.playing.play(connection)


class ScriptedSession(RawService, name=VM_SESSION_SERVICE_2.name, id=VM_SESSION_SERVICE_2.id):
    """The second connection."""

    def __init__(self, *scripts: Script) -> None:
        self.playing = Playing(list(scripts))

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Play."""
        await self.playing.play(connection)
