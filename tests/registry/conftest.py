"""What tests of the registry share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY_FOLDER = "/dev/shm"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory, where there is some: who writes is killed here, and no test takes the power away."""
    in_memory = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="hvsock-test-", dir=in_memory) as name:
        yield Path(name)
