"""One check of a transport, and what became of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

from hvsock.errors import HvsockError

from .ground import Ground


class NotApplicable(Exception):  # noqa: N818 (nothing is wrong)
    """A check cannot be made here; the text is the reason, and what to do to make it."""


class Result(StrEnum):
    """What became of a check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


class Check(NamedTuple):
    """One check.

    Attributes:
        name: of it, which the report has.
        function: makes it on a ground. It returns a few words on what was found, or None; it raises NotApplicable,
            and anything else where something is wrong.
    """

    name: str
    function: Callable[[Ground], str | None]


class Outcome(NamedTuple):
    """What became of one check.

    Attributes:
        name: the check's.
        result: whether it passed.
        found: what was found, the error, or why it was not made.
        seconds: how long it took.
    """

    name: str
    result: Result
    found: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Itself as JSON takes it."""
        return {**self._asdict(), "result": str(self.result), "seconds": round(self.seconds, 3)}


def words_of(error: BaseException) -> str:
    """`error` for a report: the name of its number, and the number of Windows, lead its text."""
    if isinstance(error, OSError) and not isinstance(error, HvsockError) and error.errno is not None:
        name = errno.errorcode.get(error.errno, str(error.errno))
        number = getattr(error, "winerror", None)
        return f"{name}{f' (winerror {number})' if number else ''}: {error.strerror}"
    if isinstance(error, (AssertionError, HvsockError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
