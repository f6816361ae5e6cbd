"""`hvsock timesync --keep`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from typing import Final

import click

from hvsock.cli.output import print_json
from hvsock.fabric import paths
from hvsock.services.predefined.timesync.arithmetic import milliseconds
from hvsock.services.predefined.timesync.keeping import News, Timekeeper
from hvsock.services.predefined.timesync.protocol import Act
from hvsock.vm.runs import running_names

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

LOOK_SECONDS: Final = 1.0
"""Pause between two looks which VMs run."""


def keep_right(vm_id: str | None, vm: str | None, as_json: bool) -> None:
    """Keep clocks right until SIGINT or SIGTERM.

    Args:
        vm_id: whose; None for all VMs of `hvsock vm` that run.
        vm: what to call it.
        as_json: print JSON, a line each.
    """

    def told(news: News) -> None:
        name = news.vm if vm is None else vm
        if as_json:
            print_json(
                {
                    "vm": name,
                    "offset_ns": None if news.outcome is None else news.outcome.offset,
                    "done": Act.NONE.name.lower() if news.outcome is None else news.outcome.act.name.lower(),
                    "problem": news.problem,
                },
                one_line=True,
            )
        else:
            click.echo(f"{name}: {_words(news)}")

    asyncio.run(_run(vm_id, told))


def _words(news: News) -> str:
    if news.problem or news.outcome is None:
        return news.problem
    done = {Act.SET: "the clock was set", Act.SLEWED: "the clock catches up"}
    return f"offset {milliseconds(news.outcome.offset)}: {done.get(news.outcome.act, 'the clock is right')}"


async def _run(vm_id: str | None, told: Callable[[News], object]) -> None:
    over = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    fabric = paths.fabric_folder()
    ending = asyncio.create_task(over.wait())
    async with Timekeeper(told) as keeper:
        while not ending.done():
            await keeper.follow(running_names(fabric) if vm_id is None else [vm_id])
            await asyncio.wait({ending}, timeout=LOOK_SECONDS)
