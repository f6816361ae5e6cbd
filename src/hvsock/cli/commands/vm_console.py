"""`hvsock vm console`."""

from __future__ import annotations

import sys

import click

from hvsock.cli.outcome import say
from hvsock.vm import console as consoles

from .vm import name_argument, run_of

if sys.platform != "linux":
    raise ImportError("VMs need Linux")


@click.command()
@name_argument
def console(name: str) -> None:
    """Sit down at the serial console of the VM NAME; Ctrl-] leaves.

    Where standard input is no terminal, it is typed in, and the console is left when the guest has gone quiet.
    What the guest wrote before is in the file console.log of the VM's folder.
    """
    with consoles.connect(run_of(name)) as link:
        if sys.stdin.isatty():
            say(f"the console of {name}; Ctrl-] leaves")
        goes_on = consoles.attend(link, sys.stdin.fileno(), sys.stdout.fileno())
    if not goes_on:
        say(f"the VM {name} has ended, or somebody else is at its console")
