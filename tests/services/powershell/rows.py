"""Conversations of PowerShell Direct by rows, and a guest without I/O that plays them to clients, in any cuts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from string import digits
from typing import NamedTuple, TypeVar

from hvsock.services.powershell.lockstep import Lockstep

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


def sizes_of(cuts: Iterable[int]) -> Iterator[int]:
    """How many bytes come at once, without end."""
    return chain(cuts, repeat(4096))


def play(side: Lockstep[R], script: Script) -> R:
    """Play a script against a client, without I/O; checks what it says, that it says it in time, and how it ends.

    Raises:
        AssertionError: it says something else, or is neither content with nor done after the rows.
        HvsockError: what it raises.
    """
    sizes = sizes_of(script.cuts)
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
