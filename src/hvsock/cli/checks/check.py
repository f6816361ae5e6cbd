"""One check of `hvsock doctor`, and groups of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from hvsock import availability
from hvsock.cli.outcome import text_of
from hvsock.errors import HvsockError
from hvsock.transport import Transport


class Check(NamedTuple):
    """What one check found.

    Attributes:
        question: what was asked.
        found: the answer.
        ok: whether that is as it should be.
        cure: what to do about it; None where nothing is to be done.
    """

    question: str
    found: str
    ok: bool = True
    cure: str | None = None


class Answer(NamedTuple):
    """What the function behind a check returns; made by :func:`yes` and :func:`no`."""

    found: str
    ok: bool = True
    cure: str | None = None


CheckFunction = Callable[[], Check]
"""A check: it never raises because of what it finds."""


class Group(NamedTuple):
    """Checks of one subject.

    Attributes:
        name: of the subject; for a transport, its own.
        checks: what the transport needs; they look, and speak to nobody.
        when_chosen: they use the transport, so they are run where it is the chosen one.
        of_use_when_chosen: the same, and nothing is wrong where it fails.
        optional: what is of use, and nothing is wrong where it is missing.
        always_needed: whether what they find counts whichever transport is chosen.
    """

    name: str
    checks: tuple[CheckFunction, ...] = ()
    when_chosen: tuple[CheckFunction, ...] = ()
    of_use_when_chosen: tuple[CheckFunction, ...] = ()
    optional: tuple[CheckFunction, ...] = ()
    always_needed: bool = False


def yes(found: str) -> Answer:
    """All is well."""
    return Answer(found)


def no(found: str, cure: str) -> Answer:
    """It is not, and `cure` is what to do about it."""
    return Answer(found, ok=False, cure=cure)


def asks(question: str, cure: str | None = None) -> Callable[[Callable[[], Answer]], CheckFunction]:
    """Makes a function a check.

    Args:
        question: what it asks.
        cure: what to do where it raises HvsockError, OSError or ImportError, whose words are what was found then.
    """

    def decorate(function: Callable[[], Answer]) -> CheckFunction:
        @functools.wraps(function)
        def check() -> Check:
            try:
                return Check(question, *function())
            except (HvsockError, OSError, ImportError) as error:
                return Check(question, f"no: {text_of(error)}", ok=False, cure=cure)

        return check

    return decorate


def usable(which: Transport) -> CheckFunction:
    """Whether a transport can be used now, by what there is of it."""

    @asks("Can it be used?")
    def check() -> Answer:
        found = availability.of(which)
        return Answer(f"{'yes' if found.ok else 'no'}: {found.found}", found.ok, found.cure)

    return check
