"""The conformance suite for streams between a real guest and its host.

The guest's end is a :class:`~tests.vm.traffic.world.RemoteSocket`: each call travels to the guest over another
connection, and is made there. What takes a descriptor of both ends is left to the guest's own tests over loopback.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.testing import Features, applicable_checks, check_stream
from tests.support import SOAK, sample
from tests.vm.support import needs_qemu
from tests.vm.traffic.conftest import KINDS
from tests.vm.traffic.world import World

pytestmark = [needs_qemu, pytest.mark.timeout(sample(180, 600))]

FEATURES = Features(
    # Linux shows a reset of AF_VSOCK as an end of stream, and sends none for data left unread at a close
    resets=False,
    delivers_before_reset=False,
    descriptor=False,
    peek=False,
    makefile=False,
    sendfile=False,
    vectored=False,
)
WAIT_SECONDS = 20.0
"""For one step; a guest under software emulation is slow."""


CHECKS = applicable_checks(FEATURES)
EVERYWHERE = [(name, by_guest, CHECKS) for name in KINDS for by_guest in (True, False)]
WHERE = EVERYWHERE if SOAK else [("web01", True, CHECKS[::16]), ("web02", False, CHECKS[8::16])]
"""In `make test` each kernel and each direction occurs, and an eighth of the checks."""


@pytest.mark.parametrize(("name", "by_guest", "checks"), WHERE)
def test_streams(world: World, name: str, by_guest: bool, checks: tuple[str, ...]) -> None:
    guest = world.guest(name)

    def pair() -> tuple[Any, Any]:
        return world.pair(guest, by_guest)

    assert check_stream(pair, features=FEATURES, checks=checks, wait_seconds=WAIT_SECONDS) == checks
    guest.wait_until_quiet()
