"""What heartbeat and time synchronisation do for a real guest with its own agent, by the installed commands."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

import pytest

assert sys.platform == "linux"

from tests.cli.helpers import hvsock as command
from tests.vm.support import PATIENCE, wait_until
from tests.vm.traffic.world import World

LATE: Final = 3600
"""Seconds by which the guest's clock is set back."""
NEAR_NANOSECONDS: Final = 100_000_000
"""How near it has to be in the end."""


def watched_and_set(world: World) -> None:
    """Require that a guest with a wrong clock is watched, and its clock set, by itself and when asked for.

    Args:
        world: a fabric that keeps clocks right, whose guest web01 boots in the year 2020.
    """
    env = world.environment

    def asked(*words: str) -> Any:
        return json.loads(command(*words, "--json", env=env, seconds=PATIENCE).stdout)

    def becomes(status: str) -> None:
        wait_until(lambda: asked("heartbeat", "web01")["heartbeats"][0]["primary_status"] == status)

    def is_right() -> bool:
        found = asked("timesync", "web01")
        return bool(abs(found["offset_ns"]) - found["round_trip_ns"] // 2 < NEAR_NANOSECONDS)

    def set_back() -> None:
        code, said = guest.output("sh", "-c", f'date -s "@$(($(date +%s) - {LATE}))"')
        assert code == 0, said

    guest = world.guest("web01")
    assert guest.output("date", "+%Y")[1] == b"2020\n"
    asked("timesync", "web01", "--wait", str(PATIENCE))
    wait_until(is_right)  # nobody has asked for it
    assert guest.output("date", "+%Y")[1] != b"2020\n"

    set_back()
    found = asked("timesync", "web01")
    assert found["offset_ns"] == pytest.approx(LATE * 10**9, abs=10 * 10**9)
    refused = command("timesync", "web01", "--slew", env=env, code=1, seconds=PATIENCE)
    assert b"set it" in refused.stderr

    becomes("OK")
    command("vm", "pause", "web01", env=env)
    becomes("Paused")
    command("vm", "resume", "web01", env=env)
    becomes("OK")
    wait_until(is_right)  # a guest that was paused is set, and nobody has asked for it

    set_back()
    assert asked("timesync", "web01", "--set")["done"] == "set"
    assert is_right()
    assert asked("timesync", "web01", "--slew")["done"] == "slewed"
