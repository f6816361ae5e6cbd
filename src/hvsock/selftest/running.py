"""Runs checks one after the other, each bounded in time, whatever became of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final

from .check import Check, NotApplicable, Outcome, Result, words_of
from .ground import Ground

CHECK_SECONDS: Final = 90.0
"""Longest that one check may take. Each bounds its own steps; this is for calls that no time-out ends."""


def run(ground: Ground, checks: Iterable[Check], seconds: float = CHECK_SECONDS) -> Iterator[Outcome]:
    """Makes the checks on a ground, and yields what became of each as soon as it is known.

    Args:
        ground: what they stand on, which stays the caller's.
        checks: which.
        seconds: how long each may take; one that takes longer has failed, and its thread is left behind.
    """
    for check in checks:
        yield _made(ground, check, seconds)


def _made(ground: Ground, check: Check, seconds: float) -> Outcome:
    ends: list[tuple[Result, str]] = []

    def body() -> None:
        try:
            if check.name in ground.lacks:
                raise NotApplicable(ground.lacks[check.name])
            ends.append((Result.PASSED, check.function(ground) or ""))
        except NotApplicable as reason:
            ends.append((Result.NOT_APPLICABLE, str(reason)))
        except Exception as error:
            ends.append((Result.FAILED, words_of(error)))

    thread = threading.Thread(target=body, name=f"selftest {check.name}", daemon=True)
    began = time.monotonic()
    thread.start()
    thread.join(seconds)
    took = time.monotonic() - began
    if not ends:
        return Outcome(check.name, Result.FAILED, f"it has not ended after {seconds:g} s", took)
    return Outcome(check.name, *ends[0], took)
