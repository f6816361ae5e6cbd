"""Steps of a demonstration: who watches them, how long they took, and what was measured in them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from hvsock.errors import HvsockError


class DemoError(HvsockError):
    """Something in the walk was not as it has to be."""


class Audience(Protocol):
    """Who watches the walk."""

    def begin(self, title: str) -> None:
        """A step begins."""

    def progress(self, done: int, total: int) -> None:
        """`done` of the `total` bytes of this step went through."""

    def end(self, title: str, found: str, ok: bool, seconds: float) -> None:
        """The step is over; `found` is what was measured, or what is wrong."""


class Steps:
    """The steps of a demonstration, and what was sent and received in them.

    Args:
        audience: is told of every step.

    Attributes:
        audience: the same.
        sent, received: bytes that went through the sockets of this process.
        taken: the steps so far, as `--json` prints them.
        error: what was not as it has to be, of the first step that failed.
    """

    def __init__(self, audience: Audience) -> None:
        self.audience = audience
        self.sent = 0
        self.received = 0
        self.taken: list[dict[str, Any]] = []
        self.error: str | None = None

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """One step; what the block says by the function that it gets is what was found."""
        texts: list[str] = []
        started = time.monotonic()
        self.audience.begin(title)
        try:
            yield texts.append
        except (HvsockError, OSError) as error:
            self.error = f"{title}: {error}"
            self._end(title, str(error), False, started)
            raise
        self._end(title, texts[0], True, started)

    def _end(self, title: str, text: str, ok: bool, started: float) -> None:
        seconds = round(time.monotonic() - started, 6)
        self.taken.append({"title": title, "found": text, "ok": ok, "seconds": seconds})
        self.audience.end(title, text, ok, seconds)


def check(holds: bool, otherwise: str) -> None:
    """Raise DemoError with the text `otherwise` unless `holds`."""
    if not holds:
        raise DemoError(otherwise)
