"""Heartbeat and time synchronisation of a real guest by its own agent, with the installed commands."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, Final

import pytest

assert sys.platform == "linux"

from hvsock.fabric import paths
from hvsock.vm.runs import Run
from tests.cli.helpers import environment
from tests.cli.helpers import hvsock as command
from tests.faults.processes import BrokerProcess
from tests.vm.support import PATIENCE, guest_image, needs_qemu, wait_for_line, wait_until

pytestmark = [needs_qemu, pytest.mark.timeout(3 * PATIENCE)]

LATE: Final = 3600
"""Seconds by which the guest's clock is set back."""
NEAR_NANOSECONDS: Final = 100_000_000
"""How near it has to be in the end."""
BEHIND: Final = f'date -s "@$(($(date +%s) - {LATE}))" && echo "the clock is behind" && exec sleep 99999'


@pytest.fixture
def fabric() -> Iterator[str]:
    """A fabric's folder, with a broker in a process of its own."""
    folder = tempfile.mkdtemp(prefix="hvsock-vm-")
    broker = BrokerProcess(folder)
    yield folder
    broker.kill()
    shutil.rmtree(folder)


def test_a_guest_is_watched_and_its_clock_set(fabric: str) -> None:
    guest_image()
    env = environment(**{paths.FOLDER_VARIABLE: fabric})

    def asked(*words: str) -> Any:
        return json.loads(command(*words, "--json", env=env, seconds=PATIENCE).stdout)

    def becomes(status: str) -> None:
        wait_until(lambda: asked("heartbeat", "web01")["heartbeats"][0]["primary_status"] == status)

    command("vm", "start", "web01", "--accel", "tcg", "--wait", "--run", BEHIND, env=env, seconds=PATIENCE)
    try:
        wait_for_line(Run(fabric, "web01"), "the clock is behind")
        found = asked("timesync", "web01", "--wait", str(PATIENCE))
        assert found["offset_ns"] == pytest.approx(LATE * 10**9, abs=10 * 10**9)
        refused = command("timesync", "web01", "--slew", env=env, code=1, seconds=PATIENCE)
        assert b"set it" in refused.stderr
        assert asked("timesync", "web01", "--set")["done"] == "set"
        found = asked("timesync", "web01")
        assert abs(found["offset_ns"]) - found["round_trip_ns"] // 2 < NEAR_NANOSECONDS
        assert asked("timesync", "web01", "--slew")["done"] == "slewed"

        becomes("OK")
        command("vm", "pause", "web01", env=env)
        becomes("Paused")
        command("vm", "resume", "web01", env=env)
        becomes("OK")
    finally:
        command("vm", "stop", "web01", "--now", env=env, seconds=PATIENCE)
