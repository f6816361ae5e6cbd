"""`hvsock heartbeat`: how VMs are, and in a VM, how a program is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from hvsock import transport
from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.cli.names import complete_partitions, vm_id_of
from hvsock.cli.output import Column, Table, json_option
from hvsock.cli.watching import Page, show, watch_options
from hvsock.errors import HvsockError, NotFoundError, StateError, UsageError
from hvsock.fabric import client, paths
from hvsock.services.agenthood import default_state_folder
from hvsock.services.predefined.heartbeat.applications import ApplicationState, tell_for, telling
from hvsock.services.predefined.heartbeat.monitor import Monitor
from hvsock.transport import Transport
from hvsock.vm.runs import Run, State

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

_HERE: Final = "hvsock.cli.commands.heartbeat"
COMMANDS: Final = {
    "show": Entry(f"{_HERE}:show_", "Show how VMs are; what this command does where no other is named."),
    "set": Entry(f"{_HERE}:set_", "In a guest: tell how a program is."),
}
FIRST_SECONDS: Final = 5.0
"""How long VMs may take for the first answer; it takes milliseconds, and a second in an emulated guest."""


class _Heartbeat(LazyGroup):
    """Shows, where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.table, *ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Heartbeat, table=COMMANDS)
def heartbeat() -> None:
    """Show how VMs are: hvsock heartbeat [VM...] [--watch] [--json]."""


@click.command("show")
@click.argument("vms", metavar="[VM]...", nargs=-1, shell_complete=complete_partitions)
@watch_options
@json_option
def show_(vms: tuple[str, ...], watch: bool, interval: float, as_json: bool) -> None:
    """Show how VMs are; all of them where none is named.

    The statuses are those of Msvm_HeartbeatComponent: OK, Degraded, Non-Recoverable Error, No Contact, Lost
    Communication, Paused. With --watch, all VMs are asked every two seconds.
    """
    names = _named(vms)
    with _monitoring(Monitor(names, paused=_paused(names))) as monitor:
        show(
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
        return {str(vm_id_of(vm)): vm for vm in vms}
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


def _row(name: str, vm: str, health: Any) -> dict[str, Any]:
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
        "reason": health.reason,
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


_STATES: Final = {state.name.lower(): state for state in ApplicationState}


@click.command("set")
@click.argument("state", type=click.Choice(list(_STATES)))
@click.option("--name", default="operator", show_default=True, help="The program's name; each has a state.")
@click.option("--for", "seconds", metavar="SECONDS", type=float, help="Tell it for so long, and return at once.")
@click.option("--state-folder", "folder", metavar="FOLDER", help="The agent's, where that is not the default.")
def set_(state: str, name: str, seconds: float | None, folder: str | None) -> None:
    """Tell how a program in this guest is: until this command is ended, or --for some time.

    The worst state of all programs is the guest's. unknown takes back what was told --for some time.
    """
    where = _state_folder() if folder is None else folder
    chosen = _STATES[state]
    if not os.path.isdir(where):
        raise NotFoundError(f"no agent keeps its state in {where}; run it: hvsock agent")
    if chosen is ApplicationState.UNKNOWN:
        tell_for(name, where, chosen, 1.0)
    elif seconds is not None:
        tell_for(name, where, chosen, seconds)
    else:
        ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        with telling(name, where, chosen):
            signal.sigwait(ends)


def _state_folder() -> str:
    own_machine = transport.chosen() is Transport.VSOCK
    if not own_machine and paths.speaks_for_host(paths.fabric_folder()):
        raise UsageError("this is the host; programs tell their state in guests, see: hvsock run --help")
    return default_state_folder(own_machine, paths.partition_folder())
