"""What the log is told of connections that fail: of a flood the first, and how many more there were."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Final

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor

log = logging.getLogger(__name__)

COMPLAINT_SECONDS: Final = 1.0
"""Pause between two lines of the log about one thing: a guest may connect as often as it likes."""


class Complaints:
    """Warnings of one process; all methods are for the reactor's thread.

    Args:
        reactor: knows the time.
    """

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._more: dict[str, int] = {}

    def say(self, name: str, what: str) -> None:
        """Say `what` went wrong with `name`, unless something was said of it just now."""
        if name in self._more:
            self._more[name] += 1
            return
        self._more[name] = 0
        log.warning("%r: %s", name, what)

        def over() -> None:
            more = self._more.pop(name)
            if more:
                log.warning("%r: %d more such lines", name, more)

        self._reactor.after(COMPLAINT_SECONDS, over)
