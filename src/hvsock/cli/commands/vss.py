"""`hvsock vss`: freeze a guest for a backup of its disks."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import click

from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.cli.names import complete_partitions
from hvsock.cli.outcome import CommandError, ExitCode, printable, say
from hvsock.cli.output import Column, Table, json_option, mark, print_json, print_table
from hvsock.cli.silent import asking
from hvsock.constants import VSS
from hvsock.services.connecting import connect
from hvsock.services.predefined.vss.host import Freeze, ThawedError, frozen
from hvsock.services.predefined.vss.interface import FREEZE_SECONDS, MAX_FREEZE_SECONDS, Check, Checked, Vss

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

T = TypeVar("T")

_HERE: Final = "hvsock.cli.commands.vss"
COMMANDS: Final = {
    "check": Entry(f"{_HERE}:check", "Tell whether a guest could be frozen, and what is in the way."),
    "freeze": Entry(f"{_HERE}:freeze", "Run a command while a guest's file systems are frozen."),
}


@click.group(cls=LazyGroup, table=COMMANDS)
def vss() -> None:
    """Freeze and thaw a guest's file systems, for backups of its disks."""


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@json_option
def check(vm: str, as_json: bool) -> int:
    """Tell which file systems of VM could be frozen, which hooks there are, and what is in the way.

    The exit code is 1 where it could not be frozen.
    """
    found = _run(vm, _checked(vm))
    systems = [
        {"path": one.path, "source": one.source, "kind": one.kind, "obstacle": one.obstacle or None}
        for one in found.file_systems
    ]
    hooks = [{"name": one.name, "obstacle": one.obstacle or None} for one in found.hooks]
    if as_json:
        print_json(
            {
                "vm": vm,
                "ready": not found.obstacle,
                "obstacle": found.obstacle or None,
                "frozen": found.frozen,
                "file_systems": systems,
                "hooks": hooks,
            }
        )
    else:
        _print(found)
    if found.obstacle:
        say(f"{vm} cannot be frozen: {found.obstacle}")
        return ExitCode.FAILED
    return ExitCode.OK


def _print(found: Checked) -> None:
    columns = (Column("FILE SYSTEM", fold=True), Column("KIND"), Column("SOURCE", fold=True), Column("FREEZES"))
    rows = [
        [
            *(printable(text) for text in (one.path, one.kind, one.source)),
            mark(not one.obstacle),
            printable(one.obstacle) or "-",
        ]
        for one in found.file_systems
    ]
    print_table(Table((*columns, Column("OBSTACLE", fold=True)), rows))
    for hook in found.hooks:
        click.echo(printable(f"hook {hook.name}{f': {hook.obstacle}' if hook.obstacle else ''}"))
    if found.frozen:
        click.echo("a freeze is under way")


def _run(vm: str, work: Coroutine[Any, Any, T]) -> T:
    with asking(vm, VSS.name):
        return asyncio.run(work)


async def _checked(vm: str) -> Checked:
    async with connect(Vss, vm) as service:
        return await service.check(Check())


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@click.option(
    "--timeout",
    type=click.FloatRange(0, MAX_FREEZE_SECONDS, min_open=True),
    default=FREEZE_SECONDS,
    show_default=True,
    help="Seconds after which the guest thaws whatever happens.",
)
@json_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def freeze(vm: str, timeout: float, as_json: bool, command: tuple[str, ...]) -> int:
    """Run COMMAND on this host while the file systems of VM are frozen: hvsock vss freeze VM -- COMMAND.

    The exit code is COMMAND's. Where the guest thawed before COMMAND had ended, it is 1 at least: what COMMAND
    copied is no good backup.
    """
    if shutil.which(command[0]) is None:
        raise CommandError(f"there is no command {command[0]!r}", ExitCode.NO_SUCH_COMMAND)
    return _run(vm, _freeze(vm, timeout, as_json, command))


async def _freeze(vm: str, timeout: float, as_json: bool, command: tuple[str, ...]) -> int:
    held: Freeze | None = None
    code: int | None = None
    trouble = ""
    try:
        async with frozen(vm, timeout=timeout) as held:
            for one in held.left_out:
                say(f"{one.path} is not frozen: {one.obstacle}")
            code = await _ran(command, held)
    except ThawedError as error:
        trouble = str(error)
    assert held is not None
    assert code is not None
    for warning in held.warnings:
        say(f"after the thaw: {warning}")
    if as_json:
        print_json(
            {
                "vm": vm,
                "good": not trouble,
                "trouble": trouble or None,
                "exit_code": code,
                "file_systems": [one.path for one in held.file_systems],
                "left_out": [{"path": one.path, "obstacle": one.obstacle} for one in held.left_out],
                "freezing_seconds": held.freezing_seconds,
                "frozen_seconds": held.frozen_seconds,
                "warnings": held.warnings,
            }
        )
    if trouble:
        say(trouble)
    return code or (ExitCode.FAILED if trouble else ExitCode.OK)


async def _ran(command: tuple[str, ...], held: Freeze) -> int:
    """The exit code of the command; when the guest thaws too early, that is said at once."""
    try:
        process = await asyncio.create_subprocess_exec(*command)
    except OSError as error:
        raise CommandError(f"cannot run {command[0]!r}: {error.strerror}", ExitCode.CANNOT_EXECUTE) from None
    ended = asyncio.create_task(process.wait())
    thawed = asyncio.create_task(held.wait_thawed())
    try:
        await asyncio.wait({ended, thawed}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            say(f"{held.vm} has thawed already, and {command[0]} goes on for nothing")
        code = await asyncio.shield(ended)
    finally:
        thawed.cancel()
        if not ended.done():
            process.terminate()
        await asyncio.wait({ended, thawed})
    return code if code >= 0 else 128 - code
