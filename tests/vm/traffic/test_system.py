"""Guests with each kernel, on one and two processors, have what they need."""

from __future__ import annotations

import sys

import pytest

assert sys.platform == "linux"

from tests.vm.guest_system import LOOK, is_as_expected
from tests.vm.support import needs_qemu
from tests.vm.traffic.conftest import KINDS
from tests.vm.traffic.world import World

pytestmark = needs_qemu


@pytest.mark.parametrize("name", ["web01", "web02"])
def test_what_is_there(world: World, name: str) -> None:
    code, said = world.guest(name).output("sh", "-c", f". /etc/profile; {LOOK}")
    assert code == 0, said
    is_as_expected(said.decode(), name, KINDS[name].series, KINDS[name].cpus)
