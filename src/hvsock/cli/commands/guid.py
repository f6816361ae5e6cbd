"""`hvsock guid`."""

from __future__ import annotations

import click

from hvsock.addresses import ServiceId
from hvsock.cli.outcome import CommandError, say
from hvsock.cli.output import json_option, print_json


@click.command()
@click.option("--clip", is_flag=True, help="Copy it to the clipboard.")
@json_option
def guid(clip: bool, as_json: bool) -> None:
    """Print a new GUID."""
    made = ServiceId.new()
    if as_json:
        print_json({"guid": made})
    else:
        click.echo(made)
    if clip:
        from hvsock.cli.clipboard import NOWHERE, copy

        how = copy(made)
        if how is None:
            raise CommandError(NOWHERE)
        say(how)
