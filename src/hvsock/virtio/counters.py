"""What is counted of connections: per service and for the whole VM (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from .connection import Connection, Reason

SUMS: Final = ("packets_from_guest", "packets_to_guest", "bytes_from_guest", "bytes_to_guest", "stalls")
"""What is counted of a connection, and summed up."""


class Totals:
    """Sums over the connections of one service, those that ended and those that are open.

    Attributes:
        opened: connections that were established.
        ended: how many ended, by reason.
    """

    __slots__ = ("_sums", "ended", "opened")

    def __init__(self) -> None:
        self.opened = 0
        self.ended: Counter[Reason] = Counter()
        self._sums = dict.fromkeys(SUMS, 0)

    def add(self, connection: Connection, reason: Reason) -> None:
        """Take over the counts of a connection that ended."""
        self.ended[reason] += 1
        for name in SUMS:
            self._sums[name] += getattr(connection, name)

    def report(self, live: Iterable[Connection]) -> dict[str, Any]:
        """The sums with those of the connections that are open."""
        sums, count = dict(self._sums), 0
        for connection in live:
            count += 1
            for name in SUMS:
                sums[name] += getattr(connection, name)
        ended = {reason.value: number for reason, number in sorted(self.ended.items())}
        return {"open": count, "opened": self.opened, **sums, "ended": ended}
