"""`hvsock service defaults`."""

from __future__ import annotations

import sys
from typing import Any

import click

from hvsock.cli.commands.settings import access_options, vm_option
from hvsock.cli.names import describe_access, names_by_id, open_registry, vm_id_of
from hvsock.cli.output import Column, Table, json_option, mark, print_json, print_table

if sys.platform == "win32":
    raise ImportError("Windows' registry has no defaults")


@click.command()
@vm_option
@access_options
@json_option
def defaults(vm: str | None, changes: dict[str, Any], as_json: bool) -> None:
    """Say who may bind and connect where a service says nothing, for all VMs or for one.

    A VM with defaults of its own is one as HCS makes it: they decide about services that are not registered, too,
    between it and the host. Without options the command shows what holds.
    """
    with open_registry(make=bool(changes)) as registry:
        if changes:
            registry.change_defaults(None if vm is None else vm_id_of(vm), **changes)
        found = registry.defaults()
    if as_json:
        from hvsock.registry.formats.jsonfile import defaults_to_value

        print_json(defaults_to_value(found))
        return
    _print(found)


def _print(found: Any) -> None:
    from hvsock.addresses import ServiceId
    from hvsock.topology.access import Service

    any_service = Service(ServiceId.new(), "", defaults=found)
    vms = sorted(filter(None, found))
    names = names_by_id() if vms else {}
    columns = [
        Column("DEFAULTS FOR", fold=True),
        Column("WILDCARD BINDS"),
        Column("MAY BIND", fold=True),
        Column("MAY CONNECT", fold=True),
    ]
    rows = []
    for vm_id in (None, *vms):
        settings = any_service.settings_for(vm_id)
        rows.append(
            (
                "all VMs" if vm_id is None else names.get(vm_id, str(vm_id)),
                mark(bool(settings.wildcard_binds)),
                describe_access(settings.bind),
                describe_access(settings.connect),
            )
        )
    print_table(Table(columns, rows))
