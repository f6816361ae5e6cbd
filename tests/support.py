"""What tests share: how much of everything a run does."""

from __future__ import annotations

import os

SOAK = os.environ.get("HVSOCK_SOAK") == "1"
"""Whether this is `make soak`, with the long counts; `make test` runs a bounded sample of the same tests."""


def sample(normal: int, soak: int) -> int:
    """The count to use in this run: `normal` in `make test`, `soak` in `make soak`."""
    return soak if SOAK else normal
