"""The vsock transport in real guests without a device, over the kernel's own loopback."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hvsock.testing import applicable_checks

assert sys.platform == "linux"

from hvsock.vm.overlay import overlay
from hvsock.vm.runs import Run
from tests.vm.guest_scripts import vsock_conformance, vsock_sockets
from tests.vm.support import default_guest, guest_image, needs_qemu, started, wait_for_line

pytestmark = [needs_qemu, pytest.mark.timeout(300)]

SCRIPTS = Path(__file__).parent / "guest_scripts"
END = "\nthat was all"


def results_of(series: str, script: str, folder: Path) -> dict[str, Any]:
    """What a script in the guest with that kernel says of its checks."""
    made = guest_image(series)
    brought = folder / "overlay" / "root"
    brought.mkdir(parents=True)
    brought.joinpath(script).write_bytes(SCRIPTS.joinpath(script).read_bytes())
    run = Run(str(folder), "loopback")
    command = f"python3 /root/{script}; echo; echo that was all"
    archive = overlay(str(brought.parent), command)
    with started(run, default_guest("loopback", made), made=made, overlay=archive):
        said = wait_for_line(run, END)
    # the guest's shell writes its prompt whenever it likes
    found, _ = json.JSONDecoder().raw_decode(said, said.index('{"checks"'))
    checks: dict[str, Any] = found["checks"]
    return checks


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_conformance(series: str, tmp_path: Path) -> None:
    """Every check of the suite that the kernel's AF_VSOCK can pass."""
    results = results_of(series, "vsock_conformance.py", tmp_path)
    assert results == dict.fromkeys(applicable_checks(vsock_conformance.FEATURES), "passed")


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_sockets(series: str, tmp_path: Path) -> None:
    results = results_of(series, "vsock_sockets.py", tmp_path)
    assert results == dict.fromkeys(vsock_sockets.CHECKS, "passed")
