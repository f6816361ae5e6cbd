"""Fixtures of the tests of VMs."""

from __future__ import annotations

import sys

import pytest

if sys.platform == "linux":
    from hvsock.vm.image import Image
    from tests.vm.support import guest_image

    @pytest.fixture(scope="session")
    def guest() -> Image:
        """The default guest."""
        return guest_image()

else:
    collect_ignore_glob = ["test_*.py"]  # VMs need Linux
