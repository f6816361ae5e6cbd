"""Folders whose paths are short: hybrid sockets are files, and AF_UNIX takes 107 bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's own, which is long where several processes run tests."""
    with tempfile.TemporaryDirectory(prefix="hvsock-") as folder:
        yield Path(folder)
