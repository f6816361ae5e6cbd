"""Fixtures of the fabric's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from hvsock.fabric.embedded import EmbeddedFabric

# how long one example takes says more about the machine than about what is tested
settings.register_profile("fabric", deadline=None)
settings.load_profile("fabric")


@pytest.fixture
def fabric() -> Iterator[EmbeddedFabric]:
    """A fabric with a broker in a thread, for one test."""
    from hvsock.fabric.embedded import EmbeddedFabric

    with EmbeddedFabric() as made:
        yield made
