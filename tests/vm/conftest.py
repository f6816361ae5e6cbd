"""Fixtures of the tests of VMs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]  # VMs need Linux

if TYPE_CHECKING:
    from hvsock.vm.image import Image


@pytest.fixture(scope="session")
def guest() -> Image:
    """The default guest."""
    from tests.vm.support import guest_image

    return guest_image()
