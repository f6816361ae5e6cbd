"""What heartbeat and time synchronisation do for a real guest with its own agent, by the installed commands."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

import pytest

assert sys.platform == "linux"

from hvsock.services.connecting import connect
from hvsock.services.predefined.timesync.host import exchange
from hvsock.services.predefined.timesync.protocol import Kind, TimeSynchronization
from tests.cli.helpers import hvsock as command
from tests.cli.helpers import line_of, started
from tests.support import SOAK
from tests.vm.support import PATIENCE
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
        return json.loads(command("timesync", "web01", *words, "--json", env=env, seconds=PATIENCE).stdout)

    async def is_right() -> None:
        """Wait until the clock is right; one connection, since each costs an emulated guest a second."""
        async with (
            asyncio.timeout(PATIENCE),
            connect(TimeSynchronization, "web01", wait=True, timeout=PATIENCE) as clock,
        ):
            while True:
                found = await exchange(clock, lambda best: Kind.PROBE)
                if abs(found.offset) - found.round_trip // 2 < NEAR_NANOSECONDS:
                    return

    def set_back() -> None:
        code, said = guest.output("sh", "-c", f'date -s "@$(($(date +%s) - {LATE}))"')
        assert code == 0, said

    guest = world.guest("web01")
    assert guest.output("date", "+%Y")[1] == b"2020\n"
    asyncio.run(is_right())  # nobody has asked for it
    assert guest.output("date", "+%Y")[1] != b"2020\n"

    set_back()
    assert asked()["offset_ns"] == pytest.approx(LATE * 10**9, abs=10 * 10**9)
    refused = command("timesync", "web01", "--slew", env=env, code=1, seconds=PATIENCE)
    assert b"set it" in refused.stderr

    with started("heartbeat", "web01", "--watch", "--json", "--interval", "0.1", env=env) as watching:

        def becomes(status: str) -> None:
            while json.loads(line_of(watching.stdout))["heartbeats"][0]["primary_status"] != status:
                pass

        becomes("OK")
        command("vm", "pause", "web01", env=env)
        becomes("Paused")
        command("vm", "resume", "web01", env=env)
        becomes("OK")
    asyncio.run(is_right())  # a guest that was paused is set, and nobody has asked for it

    set_back()
    assert asked("--set")["done"] == "set"
    if SOAK:
        assert asked("--slew")["done"] == "slewed"
