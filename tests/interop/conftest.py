"""The two partitions that the libraries talk between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.interop.support import Wire

if TYPE_CHECKING:
    from hvsock.fabric.embedded import EmbeddedFabric


@pytest.fixture
def wire(hvsock_fabric: EmbeddedFabric) -> Wire:
    """A fabric of this test's own, with a guest that reaches a service of its host."""
    return Wire.make(hvsock_fabric)
