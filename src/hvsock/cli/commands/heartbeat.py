"""`hvsock heartbeat`: how VMs are, and in a VM, how a program is.

What shows is in a module of its own, since a guest that only tells needs no gRPC.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

import click

from hvsock import transport
from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.errors import NotFoundError, UsageError
from hvsock.fabric import paths
from hvsock.services.agenthood import own_state_folder
from hvsock.services.predefined.heartbeat.applications import ApplicationState, tell_for, telling
from hvsock.transport import Transport

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

_HERE: Final = "hvsock.cli.commands.heartbeat"
COMMANDS: Final = {
    "show": Entry(f"{_HERE}_show:show", "Show how VMs are; what this command does where no other is named."),
    "set": Entry(f"{_HERE}:set_", "In a guest: tell how a program is."),
}


class _Heartbeat(LazyGroup):
    """Shows, where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.table, *ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Heartbeat, table=COMMANDS)
def heartbeat() -> None:
    """Show how VMs are: hvsock heartbeat [VM...] [--watch] [--json]."""


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
        raise NotFoundError(
            f"no agent keeps its state in {where}; run it: hvsock agent; or give its folder by --state-folder"
        )
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
    return own_state_folder()
