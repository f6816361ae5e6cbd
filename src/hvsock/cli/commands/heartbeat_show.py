"""`hvsock heartbeat show`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from hvsock.cli.names import complete_partitions, peer_id_of
from hvsock.cli.output import Column, Table, json_option
from hvsock.cli.silent import why_not_up
from hvsock.cli.watching import Page, watch_options
from hvsock.cli.watching import show as show_report
from hvsock.errors import HvsockError, StateError
from hvsock.fabric import client, paths
from hvsock.services.predefined.heartbeat.monitor import Monitor
from hvsock.services.predefined.heartbeat.status import Health, Status
from hvsock.vm.runs import Run, State

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

FIRST_SECONDS: Final = 5.0
"""How long VMs may take for the first answer; it takes milliseconds, and a second in an emulated guest."""


@click.command()
@click.argument("vms", metavar="[VM]...", nargs=-1, shell_complete=complete_partitions)
@watch_options
@json_option
def show(vms: tuple[str, ...], watch: bool, interval: float, as_json: bool) -> None:
    """Show how VMs are; all of them where none is named.

    The statuses are those of Msvm_HeartbeatComponent: OK, Degraded, Non-Recoverable Error, No Contact, Lost
    Communication, Paused. With --watch, all VMs are asked every two seconds.
    """
    names = _named(vms)
    with _monitoring(Monitor(names, paused=_paused(names))) as monitor:
        show_report(
            lambda: {"heartbeats": [_row(names[vm], vm, health) for vm, health in monitor.all().items()]},
            _page,
            watch=watch,
            interval=interval,
            as_json=as_json,
            passing=StateError,
        )


def _named(vms: tuple[str, ...]) -> dict[str, str]:
    """The names by VmId."""
    if vms:
        return {str(peer_id_of(vm)): vm for vm in vms}
    found = client.call(paths.partition_folder(), "partition.list")
    return {one["id"]: one["name"] for one in found if one["parent"] is not None}


def _paused(names: dict[str, str]) -> Callable[[str], bool]:
    """Tells whether a VM of `hvsock vm` is paused."""
    fabric = paths.fabric_folder()

    def is_paused(vm: str) -> bool:
        with contextlib.suppress(HvsockError, OSError):
            return Run(fabric, names[vm]).record().state is State.PAUSED
        return False

    return is_paused


@contextlib.contextmanager
def _monitoring(monitor: Monitor) -> Iterator[Monitor]:
    """A monitor that runs in a thread for as long as the context lasts, with its first answers."""
    first, over = threading.Event(), asyncio.Event()
    failed: list[BaseException] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with monitor:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await monitor.wait_tried()
            first.set()
            await over.wait()

    def loop() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
        finally:
            first.set()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        first.wait()
        if not failed:
            yield monitor
    finally:
        with contextlib.suppress(RuntimeError, IndexError):  # it has ended
            loops[0].call_soon_threadsafe(over.set)
        thread.join()
    if failed:
        raise failed[0]


def _row(name: str, vm: str, health: Health) -> dict[str, Any]:
    return {
        "vm": name,
        "id": vm,
        "primary_status": health.primary.words,
        "primary": health.primary.value,
        "secondary_status": health.secondary.words,
        "secondary": health.secondary.value,
        "application_state": health.application_state.name.lower(),
        "version": health.version,
        "answered_seconds_ago": health.answered,
        "round_trip_seconds": health.round_trip,
        "reason": (health.secondary is Status.COMMUNICATION_FAILED and why_not_up(name)) or health.reason,
    }


def _page(value: dict[str, Any]) -> Page:
    columns = (
        *(Column("VM", fold=True), Column("PRIMARY STATUS"), Column("SECONDARY STATUS"), Column("APPLICATIONS")),
        *(Column("ROUND TRIP", right=True), Column("REASON", fold=True)),
    )
    rows = [
        (
            *(one["vm"], one["primary_status"], one["secondary_status"], one["application_state"]),
            "-" if one["round_trip_seconds"] is None else f"{one['round_trip_seconds'] * 1000:.1f} ms",
            one["reason"] or "-",
        )
        for one in value["heartbeats"]
    ]
    return [Table(columns, rows)]
