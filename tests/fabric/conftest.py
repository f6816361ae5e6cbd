"""Fixtures of the fabric's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hvsock.fabric.embedded import EmbeddedFabric


@pytest.fixture
def fabric() -> Iterator[EmbeddedFabric]:
    """A fabric with a broker in a thread, for one test."""
    from hvsock.fabric.embedded import EmbeddedFabric

    with EmbeddedFabric() as made:
        yield made
