"""A world for the tests of a module, and a broker that a test plays by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.sockets.support import FakeBroker, World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A fabric with partitions of every kind."""
    from hvsock.fabric.embedded import EmbeddedFabric
    from tests.sockets.support import World

    with EmbeddedFabric() as fabric:
        yield World.make(fabric)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBroker]:
    """A partition without a broker."""
    from tests.sockets.support import FakeBroker

    broker = FakeBroker(tmp_path)
    yield broker
    broker.close()
