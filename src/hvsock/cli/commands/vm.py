"""`hvsock vm`: the group, and the commands for VMs that run."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.cli.output import Column, Table, duration_text, json_option, print_json, print_table, to_terminal
from hvsock.errors import NotFoundError
from hvsock.fabric import client, paths
from hvsock.vm import control
from hvsock.vm.runs import Record, Run, State, all_runs

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

_HERE: Final = "hvsock.cli.commands.vm"
COMMANDS: Final = {
    "image": Entry(f"{_HERE}_image:image", "Make the default guest, or look whether Debian has a newer one."),
    "start": Entry(f"{_HERE}_start:start", "Start a VM, with the default guest or one of your own."),
    "stop": Entry(f"{_HERE}:stop", "Have a guest switch itself off."),
    "pause": Entry(f"{_HERE}:pause", "Stop a VM's processors."),
    "resume": Entry(f"{_HERE}:resume", "Let a paused VM go on."),
    "reset": Entry(f"{_HERE}:reset", "Restart a guest, as by its reset button."),
    "list": Entry(f"{_HERE}:list_", "List the VMs."),
    "stats": Entry(f"{_HERE}_stats:stats", "Show what a VM's connections move."),
    "console": Entry(f"{_HERE}_console:console", "Sit down at a guest's serial console."),
    "rm": Entry(f"{_HERE}:rm", "Remove a VM that is stopped, and its partition."),
}


@click.group(cls=LazyGroup, table=COMMANDS)
def vm() -> None:
    """Real virtual machines as partitions, run by QEMU."""


def complete_vms(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Names of VMs that begin with `incomplete`."""
    names = (one.name for one in all_runs(paths.fabric_folder()))
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def name_argument(function: Any) -> Any:
    """The argument NAME: a VM's name."""
    return click.argument("name", shell_complete=complete_vms)(function)


def run_of(name: str) -> Run:
    """The folder of the VM `name` of this fabric."""
    return Run(paths.fabric_folder(), name)


def conclude(record: Record | dict[str, Any], as_json: bool) -> None:
    """Print what there is to tell of a VM after something was done with it."""
    found = record.to_json() if isinstance(record, Record) else record
    if as_json:
        print_json(found)
    elif to_terminal():
        click.echo(f"{found['name']}: {_state_text(found)}")


@click.command()
@name_argument
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=control.STOP_SECONDS,
    show_default=True,
    help="How long the guest has; then the VM is switched off.",
)
@click.option("--now", is_flag=True, help="Do not ask the guest: switch the VM off.")
@json_option
def stop(name: str, timeout: float, now: bool, as_json: bool) -> None:
    """Have the guest of the VM NAME switch itself off, as by its power button."""
    run = run_of(name)
    if now:
        control.ask(run, "kill")
    else:
        control.ask(run, "stop", seconds=timeout)
    run.wait_for_end()
    conclude(run.record(), as_json)


@click.command()
@name_argument
@json_option
def pause(name: str, as_json: bool) -> None:
    """Stop the processors of the VM NAME.

    Its connections are reset, except those that were made with HVSOCKET_CONNECTED_SUSPEND.
    """
    conclude(control.ask(run_of(name), "pause"), as_json)


@click.command()
@name_argument
@json_option
def resume(name: str, as_json: bool) -> None:
    """Let the VM NAME go on after a pause."""
    conclude(control.ask(run_of(name), "resume"), as_json)


@click.command()
@name_argument
@json_option
def reset(name: str, as_json: bool) -> None:
    """Restart the guest of the VM NAME without asking it; its connections are reset."""
    conclude(control.ask(run_of(name), "reset"), as_json)


@click.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the VMs that run, and those that ran and were not removed."""
    found = [one.to_json() for one in all_runs(paths.fabric_folder())]
    if as_json:
        print_json(found)
    else:
        print_table(_table(found))


@click.command()
@name_argument
@click.option("--force", is_flag=True, help="Switch it off first, if it runs.")
@json_option
def rm(name: str, force: bool, as_json: bool) -> None:
    """Remove the VM NAME, which is stopped, with its partition, listeners and logs."""
    run = run_of(name)
    record = run.record()
    if force and record.state is not State.STOPPED:
        control.ask(run, "kill")
        run.wait_for_end()
        record = run.record()
    with run.stopped():
        with contextlib.suppress(NotFoundError):  # somebody removed it before
            client.call(paths.partition_folder(), "partition.remove", name=name)
        run.remove()
    if as_json:
        print_json(record.to_json())
    elif to_terminal():
        click.echo(f"removed {name}")


def _table(found: Sequence[dict[str, Any]]) -> Table:
    columns = [
        *(Column("VM", fold=True), Column("ID"), Column("CID", right=True), Column("STATE", fold=True)),
        *(Column("KERNEL", fold=True), Column("ACCEL"), Column("MIB", right=True), Column("CPUS", right=True)),
        *(Column("PROCESS", right=True), Column("UPTIME", right=True)),
    ]
    rows = []
    for one in found:
        up = duration_text(time.time() - one["started"]) if one["pid"] else "-"
        rows.append(
            [
                *(one["name"], one["vm_id"], str(one["cid"]), _state_text(one)),
                *(one["kernel"], one["accelerator"], str(one["memory"]), str(one["cpus"])),
                *(str(one["pid"] or "-"), up),
            ]
        )
    return Table(columns, rows)


def _state_text(one: dict[str, Any]) -> str:
    return f"{one['state']}: {one['reason']}" if one["reason"] else str(one["state"])
