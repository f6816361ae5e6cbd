"""`hvsock timesync`."""

from __future__ import annotations

import asyncio
import sys

import click

from hvsock.cli.names import complete_partitions, peer_id_of
from hvsock.cli.outcome import CommandError, ExitCode
from hvsock.cli.output import json_option, print_json
from hvsock.cli.silent import asking
from hvsock.constants import TIME_SYNCHRONIZATION
from hvsock.services.connecting import CONNECT_SECONDS
from hvsock.services.predefined.timesync.arithmetic import milliseconds
from hvsock.services.predefined.timesync.host import synchronize
from hvsock.services.predefined.timesync.protocol import Act, Kind

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


@click.command()
@click.argument("vm", required=False, shell_complete=complete_partitions)
@click.option("--set", "set_it", is_flag=True, help="Set the guest's clock, as after a boot or a restore.")
@click.option("--slew", is_flag=True, help="Let it catch up slowly, if it is less than half a second off.")
@click.option(
    "--wait", metavar="SECONDS", type=click.FloatRange(min=0), help="Wait so long for the guest's agent."
)
@click.option("--keep", is_flag=True, help="Keep it right, until Ctrl-C; without VM, of all that run.")
@json_option
def timesync(vm: str | None, set_it: bool, slew: bool, wait: float | None, keep: bool, as_json: bool) -> None:
    """Measure how far the clock of VM is off, and set it or let it catch up if asked.

    The offset is what has to be added to the guest's clock; it is right within half the round trip. With --keep,
    the clock is set after a boot, a reset, a pause and a restore, and catches up else; `hvsock up` does so for
    all VMs of `hvsock vm`.
    """
    if set_it + slew + keep > 1:
        raise click.UsageError("--set, --slew and --keep exclude each other")
    if keep:
        from .timesync_keep import keep_right

        keep_right(None if vm is None else str(peer_id_of(vm)), vm, as_json)
        return
    if vm is None:
        raise click.UsageError("say which VM, or --keep")
    kind = Kind.SYNC if set_it else Kind.SAMPLE if slew else Kind.PROBE
    vm_id = str(peer_id_of(vm))
    patience = CONNECT_SECONDS if wait is None else wait
    with asking(vm, TIME_SYNCHRONIZATION.name):
        found = asyncio.run(synchronize(vm_id, kind, wait=wait is not None, connect_timeout=patience))
    if as_json:
        print_json(
            {
                "vm": vm,
                "id": vm_id,
                "offset_ns": found.offset,
                "round_trip_ns": found.round_trip,
                "done": found.act.name.lower(),
                "reason": found.reason,
            }
        )
    else:
        done = {Act.NONE: "measured", Act.SET: "the clock was set", Act.SLEWED: "the clock catches up"}
        said = done.get(found.act, "the clock was left")
        click.echo(
            f"{vm}: offset {milliseconds(found.offset)}, round trip {milliseconds(found.round_trip)}: {said}"
        )
    if found.act is Act.REFUSED:
        raise CommandError(f"{vm} refused: {found.reason}", ExitCode.FAILED)
