"""`hvsock integration`: which integration services a VM may have, and which it has."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable
from typing import Any, Final

import click

from hvsock.addresses import ServiceId, VmId
from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.cli.names import complete_partitions, open_registry, vm_id_of
from hvsock.cli.outcome import text_of
from hvsock.cli.output import Column, Table, json_option, print_json, print_table, to_terminal
from hvsock.constants import INTEGRATION_SERVICES, IntegrationService
from hvsock.errors import HvsockError, NotFoundError, UsageError
from hvsock.topology.access import Settings

if sys.platform == "win32":
    from . import integration_windows

_HERE: Final = "hvsock.cli.commands.integration"
COMMANDS: Final = {
    "list": Entry(f"{_HERE}:list_", "List the integration services of VMs, and what they do."),
    "enable": Entry(f"{_HERE}:enable", "Let a VM have an integration service."),
    "disable": Entry(f"{_HERE}:disable", "Take an integration service from a VM."),
    "deny": Entry(f"{_HERE}:deny", "Take single operations of its services from a VM."),
    "allow": Entry(f"{_HERE}:allow", "Give operations back that were denied."),
}
ANSWER_SECONDS: Final = 5.0
"""How long an agent may take to say what it serves; it takes milliseconds, and a second in an emulated guest."""


@click.group(cls=LazyGroup, table=COMMANDS)
def integration() -> None:
    """Integration services: what Get-, Enable- and Disable-VMIntegrationService are on Windows.

    Enabled is the host's policy for each VM; the status is what was observed. A service runs where both the host
    has it enabled and the guest's agent serves it. On Windows these are Hyper-V's own services, by those cmdlets.
    """


@click.command("list")
@click.argument("vms", metavar="VM...", nargs=-1, required=True, shell_complete=complete_partitions)
@json_option
def list_(vms: tuple[str, ...], as_json: bool) -> None:
    """List the integration services of VMs."""
    if sys.platform == "win32":
        rows = integration_windows.rows_of(vms)
    else:
        rows = [row for found in asyncio.run(_all([(vm, vm_id_of(vm)) for vm in vms])) for row in found]
    if as_json:
        print_json(rows)
        return
    columns = ("VM", "NAME", "ENABLED", "PRIMARY STATUS", "SECONDARY STATUS")
    table = Table(
        tuple(Column(one, fold=one in ("VM", "SECONDARY STATUS")) for one in columns),
        [
            (
                one["vm"],
                one["name"],
                "yes" if one["enabled"] else "no",
                one["primary_status"] or "-",
                one["secondary_status"] or "-",
            )
            for one in rows
        ],
    )
    print_table(table)


async def _all(vms: list[tuple[str, VmId]]) -> list[list[dict[str, Any]]]:
    return await asyncio.gather(*(_services_of(name, vm_id) for name, vm_id in vms))


async def _services_of(name: str, vm_id: VmId) -> list[dict[str, Any]]:
    """The rows of one VM."""
    if sys.platform == "win32":
        raise AssertionError("hvsock's agent needs Linux")
    from hvsock.services.agent import GuestAgent, Question, Running
    from hvsock.services.connecting import connect

    troubles: dict[str, str] = {}
    contact = ""
    try:
        async with connect(GuestAgent, vm_id, timeout=ANSWER_SECONDS) as agent:
            report = await agent.report(Question(), timeout=ANSWER_SECONDS)
        for one in report.services:
            troubles[one.name] = (
                "" if one.state == Running.RUNNING else one.reason or one.state or "it is not served"
            )
    except (OSError, HvsockError) as error:
        contact = _why(name, error)
    contact = contact or "the guest's agent does not know it"
    with open_registry() as registry:
        entries = [(one, registry.get(ServiceId.from_port(one.port))) for one in INTEGRATION_SERVICES]
    return [
        _row(
            name,
            service,
            Settings() if entry is None else entry.service().settings_for(vm_id),
            troubles.get(service.name, contact),
        )
        for service, entry in entries
    ]


def _row(vm: str, service: IntegrationService, settings: Settings, trouble: str) -> dict[str, Any]:
    """What a VM's settings say of a service, and what was seen of it: `trouble`, or none."""
    enabled, denied = bool(settings.enabled), sorted(settings.denied or ())
    primary = secondary = ""
    if enabled:
        primary = "No Contact" if trouble else "OK"
        secondary = trouble or (f"denied: {', '.join(denied)}" if denied else "")
    return {
        "vm": vm,
        "name": service.name,
        "id": ServiceId.from_port(service.port),
        "enabled": enabled,
        "denied": denied,
        "primary_status": primary,
        "secondary_status": secondary,
    }


def _why(vm: str, error: OSError | HvsockError) -> str:
    from hvsock.cli.silent import why_not_up

    if why := why_not_up(vm):
        return why
    if isinstance(error, ConnectionRefusedError):
        return "no agent answers; run it there: hvsock agent"
    return text_of(error)


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@click.argument("name")
@json_option
def enable(vm: str, name: str, as_json: bool) -> None:
    """Let VM have the integration service NAME; its agent serves it within a second."""
    _set(vm, name, True, as_json)


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@click.argument("name")
@json_option
def disable(vm: str, name: str, as_json: bool) -> None:
    """Take the integration service NAME from VM, with the connections that it has."""
    _set(vm, name, False, as_json)


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@click.argument("operations", metavar="OPERATION...", nargs=-1, required=True)
@json_option
def deny(vm: str, operations: tuple[str, ...], as_json: bool) -> None:
    """Have VM's agent refuse operations of its services, like direct.shell or kvp.*, to all programs of this host.

    It heeds that within a second. Connections of the services in question end.
    """
    _change(vm, operations, as_json, lambda named, before: before | named)


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@click.argument("operations", metavar="OPERATION...", nargs=-1, required=True)
@json_option
def allow(vm: str, operations: tuple[str, ...], as_json: bool) -> None:
    """Take back what `hvsock integration deny` said of VM, in the same words; what its guest denies stays."""
    _change(vm, operations, as_json, lambda named, before: before - named, there=True)


def _change(
    vm: str,
    operations: tuple[str, ...],
    as_json: bool,
    changed: Callable[[frozenset[str], frozenset[str]], frozenset[str]],
    *,
    there: bool = False,
) -> None:
    """Change what is denied.

    Args:
        vm: the VM.
        operations: what is named.
        as_json: how to tell what is denied then.
        changed: makes of what is named of a service, and what is denied of it, what is denied then.
        there: require that all that is named is denied already.
    """
    if sys.platform == "win32":
        raise HvsockError("Hyper-V's services have no operations that could be denied; disable them")
    from hvsock.services import agent

    vm_id = vm_id_of(vm)
    known = agent.operations()
    everything = frozenset().union(*known.values())
    for one in operations:
        if not agent.covered(one, everything):
            raise UsageError(f"there is no operation {one!r}; there are: {', '.join(sorted(everything))}")
    found: dict[str, list[str]] = {}
    with open_registry() as registry:
        denied = {name: registry.find(name).service().settings_for(vm_id).denied or frozenset() for name in known}
        if there and (missing := set(operations).difference(*denied.values())):
            told = ", ".join(sorted(frozenset().union(*denied.values()))) or "nothing"
            raise NotFoundError(f"{min(missing)!r} is not denied for {vm!r}; denied is: {told}")
        for name in known:
            named = frozenset(one for one in operations if agent.covered(one, known[name]))
            if changed(named, denied[name]) != denied[name]:
                entry = registry.change_settings(name, vm_id, denied=functools.partial(changed, named))
                denied[name] = entry.service().settings_for(vm_id).denied or frozenset()
            if denied[name]:
                found[name] = sorted(denied[name])
    if as_json:
        print_json({"vm": vm, "denied": found})
    elif to_terminal():
        for name, names in found.items():
            click.echo(f"{name} of {vm}: denied: {', '.join(names)}")


def _set(vm: str, name: str, enabled: bool, as_json: bool) -> None:
    if sys.platform == "win32":
        component = integration_windows.switch(vm, name, enabled)
        found, found_id = component.name, component.id
    else:
        service = _find(name)
        found, found_id = service.name, str(ServiceId.from_port(service.port))
        vm_id = vm_id_of(vm)
        with open_registry() as registry:
            registry.set_enabled(found_id, enabled, vm_id)
    if as_json:
        print_json({"vm": vm, "name": found, "id": found_id, "enabled": enabled})
    elif to_terminal():
        click.echo(f"{found} is {'enabled' if enabled else 'disabled'} for {vm}")


def _find(name: str) -> IntegrationService:
    """The integration service that `name`, a friendly name, a port or a GUID, means.

    Raises:
        NotFoundError: there is none.
    """
    wanted = name.casefold()
    for service in INTEGRATION_SERVICES:
        if wanted in (service.name.casefold(), str(service.port), str(ServiceId.from_port(service.port))):
            return service
    known = ", ".join(repr(one.name) for one in INTEGRATION_SERVICES)
    raise NotFoundError(f"there is no integration service {name!r}; there are {known}")
