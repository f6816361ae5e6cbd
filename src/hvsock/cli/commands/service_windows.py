"""`hvsock service show` on Windows: what its registry and WMI know of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hvsock.cli.outcome import say
from hvsock.cli.output import Column, Table, print_json, print_table, time_text
from hvsock.errors import HvsockError

from .service import entry_value

if TYPE_CHECKING:
    from hvsock.registry import ServiceEntry
    from hvsock.windows.host import HostRegistry
    from hvsock.windows.integration import VmPolicy


def show(registry: HostRegistry, entry: ServiceEntry, as_json: bool) -> None:
    """Print a service, with the VMs that it is enabled or disabled for.

    Where PowerShell cannot be asked, or this user may not, one line on standard error says so, and the rest is
    printed all the same.
    """
    policies = None
    try:
        policies = registry.policies(entry)
    except HvsockError as error:
        say(f"what VMs it is enabled for, is not known: {error}")
    if as_json:
        told = None if policies is None else [{**one._asdict(), "policy": _word(one)} for one in policies]
        print_json({**entry_value(entry, None), "vms": told})
        return
    facts = [
        ("name", entry.name),
        ("id", entry.id),
        ("port", "-" if entry.port is None else str(entry.port)),
        ("in-box", "yes" if entry.inbox else "no"),
        ("changed", time_text(entry.changed)),
    ]
    for label, text in facts:
        click.echo(f"{label:<11} {text}")
    if policies:
        click.echo()
        columns = (Column("VM", fold=True), Column("ID"), Column("POLICY"))
        print_table(Table(columns, [(one.name, one.id, _word(one)) for one in policies]))


def _word(one: VmPolicy) -> str:
    return one.policy.name.lower()
