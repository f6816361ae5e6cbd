"""The pytest plugin that comes with the package: the fixture `hvsock_fabric`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if sys.platform == "linux":
    if TYPE_CHECKING:
        from hvsock.fabric.embedded import EmbeddedFabric

    @pytest.fixture
    def hvsock_fabric(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedFabric]:
        """A fabric for this test alone; HVSOCK_DIR names it, so that sockets and child processes are in it."""
        from hvsock.testing.fabric import fabric

        with fabric() as made:
            monkeypatch.setenv("HVSOCK_DIR", made.folder)
            monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
            yield made
