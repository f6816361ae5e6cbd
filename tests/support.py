"""What tests share: how much of everything a run does."""

from __future__ import annotations

import os

SOAK = os.environ.get("HVSOCK_SOAK") == "1"
"""Whether this is `make soak`, with the long counts; `make test` runs a bounded sample of the same tests."""


FEW_VARIABLE = "HVSOCK_FEW"
FEW = os.environ.get(FEW_VARIABLE) == "1"
"""Whether counts are only to be small: tests under coverage, which what is tried at random does not add to."""
FEW_SHARE = 10
"""How many times fewer that is."""


def sample(normal: int, soak: int) -> int:
    """The count to use in this run: `normal` in `make test`, `soak` in `make soak`."""
    if FEW:
        return max(1, normal // FEW_SHARE)
    return soak if SOAK else normal
