"""How far a freeze has come, and what has to be thawed (pure).

One thread freezes, which may take long and cannot be interrupted; another watches, and may end it at any moment.
Callers hold a lock around each method.
"""

from __future__ import annotations


class Machine:
    """One freeze of some file systems, which are numbers here.

    Args:
        count: how many there are.

    Attributes:
        is_over: whether it has ended.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._next = 0
        self._frozen: list[int] = []
        self.is_over = False

    @property
    def is_frozen(self) -> bool:
        """Whether all are frozen."""
        return not self.is_over and len(self._frozen) == self._count

    def begin_next(self) -> int | None:
        """The one to freeze next; None when there is none, or it is over."""
        if self.is_over or self._next == self._count:
            return None
        self._next += 1
        return self._next - 1

    def frozen(self, number: int) -> bool:
        """One is frozen. Returns whether it stays so; if not, it came too late, and the caller thaws it."""
        if self.is_over:
            return False
        self._frozen.append(number)
        return True

    def end(self) -> list[int]:
        """It is over. Returns those to thaw: the one frozen last first, since it is below the others."""
        self.is_over = True
        frozen, self._frozen = self._frozen, []
        return frozen[::-1]
