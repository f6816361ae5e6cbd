"""Ratios of figures that were measured in turn, and what is within their spread (pure)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Ratio(NamedTuple):
    """A figure over the yardstick's.

    Attributes:
        value: the median of the runs' ratios.
        spread: the middle half of the yardstick against itself.
    """

    value: float
    spread: tuple[float, float]

    @classmethod
    def of(cls, own: Sequence[float], other: Sequence[float], again: Sequence[float]) -> Ratio:
        """Of runs that took turns: `own`, and twice the yardstick's; two at least of each."""
        value = statistics.median(a / ((b + c) / 2) for a, b, c in zip(own, other, again, strict=True))
        low, _, high = statistics.quantiles([b / c for b, c in zip(other, again, strict=True)], n=4)
        return cls(round(value, 3), (round(low, 3), round(high, 3)))

    def meets(self, aim: float, *, more_is_better: bool) -> bool:
        """Whether it meets `aim`, or misses it by less than the spread."""
        low, high = self.spread
        if more_is_better:
            return self.value >= aim or self.value >= aim * low
        return self.value <= aim or self.value <= aim * high
