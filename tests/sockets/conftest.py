"""A world for the tests of a module, and a broker that a test plays by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.fabric.embedded import EmbeddedFabric
from tests.sockets.support import FakeBroker, World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with EmbeddedFabric() as fabric:
        yield World.make(fabric)


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBroker]:
    broker = FakeBroker(tmp_path)
    yield broker
    broker.close()
