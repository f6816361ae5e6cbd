"""`hvsock service`: the group, and the commands that add, take out and show services."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from hvsock import transport
from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.cli.names import complete_services, describe_access, names_by_id, open_registry
from hvsock.cli.outcome import say
from hvsock.cli.output import Column, Table, json_option, mark, print_json, print_table, time_text, to_terminal
from hvsock.transport import Transport

_HERE: Final = "hvsock.cli.commands.service"
_SETTINGS: Final = "hvsock.cli.commands.settings"
_DEFAULTS: Final = "hvsock.cli.commands.service_defaults"
_FILES: Final = "hvsock.cli.commands.files"
_CODE: Final = "hvsock.cli.commands.service_code"
COMMANDS: Final = {
    "register": Entry(f"{_HERE}:register", "Register a service under a friendly name."),
    "forward": Entry(f"{_HERE}:forward", "Make a service of an existing server, or take that back."),
    "unregister": Entry(f"{_HERE}:unregister", "Take a service out of the registry."),
    "list": Entry(f"{_HERE}:list_", "List the registered services."),
    "show": Entry(f"{_HERE}:show", "Show everything about one service."),
    "enable": Entry(f"{_SETTINGS}:enable", "Enable a service, for all VMs or for one."),
    "disable": Entry(f"{_SETTINGS}:disable", "Disable a service, for all VMs or for one."),
    "access": Entry(f"{_SETTINGS}:access", "Say who may bind and connect."),
    "defaults": Entry(f"{_DEFAULTS}:defaults", "Say who may where no service says anything."),
    "export": Entry(f"{_FILES}:export", "Write the registry as .reg, PowerShell, JSON or HCS."),
    "import": Entry(f"{_FILES}:import_", "Register the services of a .reg, JSON or HCS file."),
    "new": Entry(f"{_CODE}:new", "Write a service of one's own to begin with."),
    "serve": Entry(f"{_CODE}:serve", "Serve a service of a Python module."),
}
ON_WINDOWS: Final = frozenset({"register", "unregister", "list", "show", "enable", "disable", "export", "import"})


@click.group(cls=LazyGroup, table=COMMANDS, on_windows=ON_WINDOWS)
def service() -> None:
    """The registry of services: what GuestCommunicationServices is on Windows.

    KEY is a service's name, GUID or port.
    """


def key_argument(function: Any) -> Any:
    """The argument KEY: a service's name, GUID or port."""
    return click.argument("key", shell_complete=complete_services)(function)


@click.command()
@click.argument("name")
@click.option("--id", "guid", metavar="GUID", help="Its GUID; by default a new one.")
@click.option("--port", type=click.IntRange(0, 0xFFFFFFFF), help="Register the service of this AF_VSOCK port.")
@click.option(
    "--port-alias",
    type=click.IntRange(0, 0xFFFFFFFE),
    help="AF_VSOCK port by which Linux guests reach it too.",
)
@click.option(
    "--forward",
    "target",
    metavar="TARGET",
    help="Make it stand for an existing server: unix:PATH or tcp:127.0.0.1:PORT.",
)
@click.option("--clip", is_flag=True, help="Copy the GUID to the clipboard.")
@json_option
def register(
    name: str,
    guid: str | None,
    port: int | None,
    port_alias: int | None,
    target: str | None,
    clip: bool,
    as_json: bool,
) -> None:
    """Register a service under the friendly name NAME.

    Prints its GUID; on a terminal with a word about it, else alone. With --forward, the relay takes its
    connections and passes them to an existing server: see hvsock forward.
    """
    from hvsock.addresses import ServiceId
    from hvsock.registry.forwards import parse_forward

    if guid is not None and port is not None:
        raise click.UsageError("--id and --port both say which GUID: give one of them")
    if port is not None:
        guid = ServiceId.from_port(port)
    where = None if target is None else parse_forward(target)
    with open_registry(make=True) as registry:
        entry = registry.register(name, guid, port_alias=port_alias, forward=where)
        defaults = registry.defaults()
    if as_json:
        print_json(entry_value(entry, defaults))
    elif to_terminal():
        click.echo(f"registered {entry.name} as {entry.id}")
    else:
        click.echo(entry.id)
    if clip:
        from hvsock.cli.clipboard import NOWHERE, copy

        say(copy(entry.id) or NOWHERE)


@click.command()
@key_argument
@click.argument("target", required=False)
@click.option("--none", "nowhere", is_flag=True, help="Instead of TARGET: it has programs of its own again.")
@json_option
def forward(key: str, target: str | None, nowhere: bool, as_json: bool) -> None:
    """Make a service stand for an existing server at TARGET: unix:PATH or tcp:127.0.0.1:PORT.

    New connections go there within a second; those under way stay where they are.
    """
    from hvsock.registry.forwards import parse_forward

    if (target is None) is not nowhere:
        raise click.UsageError("give either a TARGET or --none")
    where = None if target is None else parse_forward(target)
    if sys.platform == "win32":
        raise AssertionError("the table of commands has it on Linux alone")
    with open_registry() as registry:
        entry = registry.set_forward(key, where)
        defaults = registry.defaults()
    if as_json:
        print_json(entry_value(entry, defaults))
    elif to_terminal():
        click.echo(f"{entry.name} is forwarded to {where}" if where else f"{entry.name} is not forwarded")


@click.command()
@key_argument
@json_option
def unregister(key: str, as_json: bool) -> None:
    """Take a service out of the registry, with its settings.

    New connections to it are refused; those under way between two local processes go on.
    """
    with open_registry() as registry:
        entry = registry.unregister(key)
        defaults = registry.defaults()
    if as_json:
        print_json(entry_value(entry, defaults))
    elif to_terminal():
        click.echo(f"unregistered {entry.name} ({entry.id})")


@click.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the registered services, by name; in a guest those that are enabled for it."""
    if transport.chosen() is Transport.VSOCK:
        _list_of_guest(as_json)
        return
    with open_registry() as registry:
        entries, defaults = registry.entries(), registry.defaults()
        if sys.platform == "win32":
            for line in registry.oddities():
                say(line)
    if as_json:
        print_json([entry_value(entry, defaults) for entry in entries])
        return
    if defaults is None:
        columns = [Column("NAME", fold=True), Column("ID"), Column("PORT", right=True), Column("IN-BOX")]
        facts = [(one.name, one.id, _port(one.port), "yes" if one.inbox else "no") for one in entries]
        print_table(Table(columns, facts))
        return
    columns = [Column("NAME", fold=True), Column("ID"), Column("PORT", right=True), Column("STATE")]
    if any(one.forward is not None for one in entries):
        columns.append(Column("FORWARD", fold=True))
    rows = [(one.name, one.id, _port(one.port), _state(one), _forward(one))[: len(columns)] for one in entries]
    print_table(Table(columns, rows))


def _list_of_guest(as_json: bool) -> None:
    from hvsock.addresses import ServiceId
    from hvsock.fabric import client, paths

    services = client.call(paths.partition_folder(), "services")
    for one in services:
        one["port"] = one["port_alias"] if one["port_alias"] is not None else ServiceId(one["id"]).port
    if as_json:
        print_json(services)
        return
    columns = (Column("NAME", fold=True), Column("ID"), Column("PORT", right=True))
    print_table(Table(columns, [(one["name"], one["id"], _port(one["port"])) for one in services]))


def _port(port: int | None) -> str:
    return "-" if port is None else str(port)


def _forward(entry: Any) -> str:
    return "-" if entry.forward is None else str(entry.forward)


def _state(entry: Any) -> str:
    enabled = entry.service().settings_for(None).enabled
    others = sum(one.enabled is not None and one.enabled is not enabled for one in entry.per_vm.values())
    state = "enabled" if enabled else "disabled"
    if others:
        state += f", {'disabled' if enabled else 'enabled'} for {others} VM{'s' if others > 1 else ''}"
    return f"{state}, in-box" if entry.inbox else state


@click.command()
@key_argument
@json_option
def show(key: str, as_json: bool) -> None:
    """Show everything about one service, with its settings for single VMs."""
    with open_registry() as registry:
        entry, defaults = registry.find(key), registry.defaults()
        if sys.platform == "win32":
            from . import service_windows

            service_windows.show(registry, entry, as_json)
            return
    print_entry(entry, defaults, as_json)


def print_entry(entry: Any, defaults: Any, as_json: bool) -> None:
    """Print one service, with the settings in force over the registry's defaults."""
    if as_json:
        print_json(entry_value(entry, defaults))
        return
    service = entry.service(defaults)
    facts = [
        ("name", entry.name),
        ("id", entry.id),
        ("port", _port(entry.port) + (" (alias)" if entry.port_alias is not None else "")),
        ("forward", _forward(entry)),
        ("in-box", "yes" if entry.inbox else "no"),
        ("registered", time_text(entry.created)),
        ("changed", time_text(entry.changed)),
    ]
    for label, text in facts:
        click.echo(f"{label:<11} {text}")
    vms = sorted({*entry.per_vm, *filter(None, defaults)})
    names = names_by_id() if vms else {}
    columns = [
        Column("SETTINGS FOR", fold=True),
        Column("ENABLED"),
        Column("WILDCARD BINDS"),
        Column("MAY BIND", fold=True),
        Column("MAY CONNECT", fold=True),
    ]
    rows = []
    for vm_id in (None, *vms):
        settings = service.settings_for(vm_id)
        rows.append(
            (
                "all VMs" if vm_id is None else names.get(vm_id, str(vm_id)),
                mark(bool(settings.enabled)),
                mark(bool(settings.wildcard_binds)),
                describe_access(settings.bind),
                describe_access(settings.connect),
            )
        )
    click.echo()
    print_table(Table(columns, rows))


def entry_value(entry: Any, defaults: Any) -> dict[str, Any]:
    """One service as `--json` prints it: as it is exported, with its port and the settings in force.

    Args:
        entry: the service.
        defaults: those of the registry; None where it has none, as on Windows, where nobody is told what holds.
    """
    from hvsock.registry.formats.jsonfile import entry_to_value
    from hvsock.registry.values import settings_to_value

    value = {**entry_to_value(entry), "port": entry.port}
    if defaults is not None:
        value["effective"] = settings_to_value(entry.service(defaults).settings_for(None))
    return value
