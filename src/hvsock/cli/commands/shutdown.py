"""`hvsock shutdown`."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any, Final

import click

from hvsock.cli.names import complete_partitions
from hvsock.cli.outcome import printable, say
from hvsock.cli.output import json_option, print_json
from hvsock.cli.silent import asking
from hvsock.constants import SHUTDOWN
from hvsock.errors import UsageError
from hvsock.fabric import paths
from hvsock.services.predefined.shutdown import host
from hvsock.services.predefined.shutdown.interface import Action, Pending, Phase

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

WAIT_SECONDS: Final = 120.0
"""How long --wait waits after the time-out; an emulated guest takes some seconds."""


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@click.option("--reboot", is_flag=True, help="Start it again instead.")
@click.option("--hibernate", is_flag=True, help="Hibernate it instead.")
@click.option("--reason", default="", help="Why, for the guest's log.")
@click.option("--timeout", type=int, default=0, metavar="S", help="Seconds until it does, to call it off within.")
@click.option("--force", is_flag=True, help="Do not ask its programs to end first.")
@click.option("--wait", is_flag=True, help="Wait until it is off or, of a reboot, there again.")
@click.option("--cancel", is_flag=True, help="Call off what waits for its time-out.")
@click.option("--status", is_flag=True, help="Only say how far it is.")
@json_option
def shutdown(
    vm: str,
    reboot: bool,
    hibernate: bool,
    reason: str,
    timeout: int,
    force: bool,
    wait: bool,
    cancel: bool,
    status: bool,
    as_json: bool,
) -> None:
    """Shut VM down, start it again, or hibernate it, from within by its agent.

    A VM's own machine is switched off. A partition that is a folder of this machine ends its own processes, and
    its agent; nothing would start them again, so reboot is refused there.
    """
    if reboot + hibernate + cancel + status > 1:
        raise UsageError("give one of --reboot, --hibernate, --cancel and --status")
    action = Action.REBOOT if reboot else Action.HIBERNATE if hibernate else Action.SHUTDOWN
    if cancel:
        asked = host.cancel(vm)
    elif status:
        asked = host.pending(vm)
    else:
        asked = host.shut_down(
            vm,
            action,
            reason=reason,
            timeout=timeout,
            force=force,
            wait=WAIT_SECONDS if wait else None,
            told=_Teller(as_json),
        )
    with asking(vm, SHUTDOWN.name):
        found = asyncio.run(asked)
    if wait and action is not Action.REBOOT and not (cancel or status):
        wait_for_vm(vm)
    if as_json:
        print_json({"vm": vm, "over": wait and not (cancel or status), **_row(found)})
    elif cancel or status:
        click.echo(f"{vm}: {_sentence(found)}")


class _Teller:
    """Tells people what a guest says, once each."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._last: Phase | None = None

    def __call__(self, pending: Pending) -> None:
        if not self._silent and pending.phase is not self._last:
            say(_sentence(pending))
        self._last = pending.phase


def _sentence(pending: Pending) -> str:
    words = {
        Phase.IDLE: "nothing is under way",
        Phase.WAITING: f"{pending.action.word} in {pending.seconds} s",
        Phase.ACTING: f"{pending.action.word} is being done",
        Phase.FAILED: f"{pending.action.word} failed: {pending.error}",
    }
    because = f" ({pending.reason})" if pending.reason and pending.phase is not Phase.IDLE else ""
    return printable(words[pending.phase] + because)


def _row(pending: Pending) -> dict[str, Any]:
    return {
        "phase": pending.phase.name.lower(),
        "action": pending.action.word,
        "reason": pending.reason,
        "asked_by": pending.asked_by,
        "seconds": pending.seconds,
        "error": pending.error or None,
    }


def wait_for_vm(vm: str) -> None:
    """Wait until a VM of this fabric's is off, if it is one.

    Its agent is away already, yet other units of systemd's may end for long, and so may memory that is written to
    a disk.
    """
    from hvsock.vm.runs import Run

    folder = paths.fabric_folder()
    if os.sep not in vm and os.path.isdir(Run(folder, vm).folder):
        Run(folder, vm).wait_for_end(WAIT_SECONDS)
