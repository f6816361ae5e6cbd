"""Which operations may be called, by name: the last word of whoever runs a side (pure).

A name is that of a service's operation, like ``filecopy.write``; a pattern may end in a star, ``filecopy.*``.
What is denied is denied whatever is allowed, and where there is an allow list, what is not on it is denied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

from hvsock.constants import OPERATION_PATTERN
from hvsock.errors import RefusedError, UsageError

_PATTERN = re.compile(OPERATION_PATTERN)


class Policy(NamedTuple):
    """What one side lets the other do.

    Attributes:
        allow: patterns; None allows everything that is not denied.
        deny: patterns.
    """

    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()

    @classmethod
    def of(cls, allow: Iterable[str] | None = None, deny: Iterable[str] = ()) -> Self:
        """The policy of two lists of patterns.

        Raises:
            UsageError: a pattern is none.
        """
        lists = [None if one is None else frozenset(one) for one in (allow, deny)]
        for pattern in frozenset().union(*(one or () for one in lists)):
            if not _PATTERN.fullmatch(pattern):
                raise UsageError(f"{pattern!r} is no operation: they are like heartbeat.beat, or filecopy.*")
        return cls(lists[0], lists[1] or frozenset())

    def without(self, denied: Iterable[str]) -> Self:
        """This policy, with more patterns denied."""
        return self._replace(deny=self.deny | frozenset(denied))

    def allows(self, operation: str) -> bool:
        """Whether `operation` may be called."""
        if _matches(operation, self.deny):
            return False
        return self.allow is None or _matches(operation, self.allow)

    def check(self, operation: str) -> None:
        """Refuse `operation` unless it may be called.

        Raises:
            RefusedError: it may not.
        """
        if not self.allows(operation):
            raise RefusedError(
                f"{operation} is denied by the policy of the side that serves it, or by its host's "
                "(hvsock integration deny)"
            )


ALLOW_ALL = Policy()
"""Nothing is denied."""


def _matches(operation: str, patterns: frozenset[str]) -> bool:
    if operation in patterns or "*" in patterns:
        return True
    parts = operation.split(".")
    return any(".".join([*parts[:count], "*"]) in patterns for count in range(1, len(parts)))
