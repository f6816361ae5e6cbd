"""What it costs to watch the heartbeats of many local guests: `python -m benchmarks.services`.

The guests' services are in another process; what is measured is the one that watches.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from typing import Final

from rich.console import Console
from rich.table import Table

from hvsock.fabric import client
from hvsock.services.agenthood import Surroundings
from hvsock.services.predefined.heartbeat.monitor import Monitor
from hvsock.services.predefined.heartbeat.protocol import Heartbeat
from hvsock.services.predefined.heartbeat.status import Status
from hvsock.services.serving import open_serving

from .connects import broker_process, child

if sys.platform != "linux":
    raise SystemExit("the benchmarks need Linux")

GUESTS: Final = 100
SECONDS: Final = 20.0
"""How long is measured: ten beats of each guest."""
MOST: Final = 0.02
"""Of one core, for all guests."""


def serve_guests(folders: list[str], ready: int) -> None:
    """Serve the heartbeat of all guests, for ever."""

    async def run() -> None:
        with tempfile.TemporaryDirectory() as state:
            for folder in folders:
                service = Heartbeat(Surroundings(own_machine=False, state_folder=state))
                await open_serving(service, "parent", folder)
            os.write(ready, b"!")
            await asyncio.Event().wait()

    asyncio.run(run())


async def measure(vms: list[str], host: str) -> tuple[float, int]:
    """Seconds of CPU per second, and how many guests were OK all the while."""
    async with Monitor(vms, partition=host) as monitor:
        await monitor.wait(lambda: all(one.primary is Status.OK for one in monitor.all().values()))
        cpu, started = time.process_time(), time.monotonic()
        await asyncio.sleep(SECONDS)
        share = (time.process_time() - cpu) / (time.monotonic() - started)
        return share, sum(one.primary is Status.OK and one.reason == "" for one in monitor.all().values())


def main() -> None:
    """Measure, print, and fail where it costs too much."""
    console = Console()
    with broker_process() as broker:
        made = [
            client.call(broker.host, "partition.create", name=f"guest-{number:03}", kind="vm")
            for number in range(GUESTS)
        ]
        with (
            child(lambda ready: serve_guests([one["folder"] for one in made], ready)),
            console.status("measuring"),
        ):
            share, well = asyncio.run(measure([one["id"] for one in made], broker.host))
    met = share <= MOST and well == GUESTS
    table = Table("work", "measured", "aim", "met")
    table.add_row(
        f"heartbeat of {well} local guests",
        f"{share:.2%} of one core",
        f"at most {MOST:.0%}",
        "yes" if met else "NO",
    )
    console.print(table)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
