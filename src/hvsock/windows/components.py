"""The integration services of a VM of this Windows host, by Get-, Enable- and Disable-VMIntegrationService.

Their names are in the language of the host, so each is meant by its GUID, the end of the Id that the cmdlets show
(``Microsoft:VMID\\GUID``). Only ids that were parsed become part of a script, and never a name. No PowerShell has
run these scripts yet.
"""

from __future__ import annotations

import uuid
from typing import Any, Final, NamedTuple

from hvsock.addresses import VmId
from hvsock.errors import NotFoundError, RemoteError
from hvsock.registry.entries import name_key, quoted

from . import powershell
from .integration import Ask, known

NAMES: Final = {
    "84eaae65-2f2e-45f5-9bb5-0e857dc8eb47": "Heartbeat",
    "9f8233ac-be49-4c79-8ee3-e7e1985b2077": "Shutdown",
    "2497f4de-e9fa-4204-80e4-4b75c46419c0": "Time Synchronization",
    "2a34b1c2-fd73-4043-8a5b-dd2159bc743f": "Key-Value Pair Exchange",
    "5ced1297-4598-4915-a5fc-ad21bb4d02a4": "VSS",
    "6c09bb55-d683-4da0-8931-c9bf705f6480": "Guest Service Interface",
}
"""The English names by GUID, as scripts of others have them that are to run in any language."""


class Component(NamedTuple):
    """An integration service of a VM.

    Attributes:
        id: its GUID, in lower case.
        name: in the language of the host.
        enabled: whether the host lets the guest have it.
        primary: its status, in the language of the host; empty where the VM does not run.
        secondary: more of that.
    """

    id: str
    name: str
    enabled: bool
    primary: str
    secondary: str


_COMPONENTS: Final = """
$vm = Get-VM | Where-Object {{ $_.Id.ToString() -eq '{vm}' }}
if (-not $vm) {{ return @{{ unknown = $true }} }}
"""
_LIST: Final = (
    _COMPONENTS
    + """
$vm | Get-VMIntegrationService | ForEach-Object {{
    @{{
        id = [string]$_.Id
        name = [string]$_.Name
        enabled = [bool]$_.Enabled
        primary = [string]$_.PrimaryStatusDescription
        secondary = [string]$_.SecondaryStatusDescription
    }}
}}
"""
)
_SET: Final = (
    _COMPONENTS
    + """
$one = @($vm | Get-VMIntegrationService | Where-Object {{ [string]$_.Id -like '*\\{component}' }})
if ($one.Count -ne 1) {{ return @{{ missing = $true }} }}
{verb}-VMIntegrationService -VMIntegrationService $one[0]
"""
)


def listed(vm: VmId, ask: Ask = powershell.ask) -> list[Component]:
    """The integration services of a VM.

    Raises:
        NotFoundError: this host has no such VM, or not for this user.
        NotReadyError, RefusedError, RemoteError: as :func:`hvsock.windows.powershell.ask` says.
    """
    return [_component(one) for one in known(vm, ask(_LIST.format(vm=str(vm).lower())))]


def find(components: list[Component], wanted: str) -> Component:
    """The one that `wanted` means: its name here, its English name, in any case, or its GUID.

    Raises:
        NotFoundError: there is none, or several have that name.
    """
    key = name_key(wanted.strip("{}"))
    found = [
        one for one in components if key in (one.id, name_key(one.name), name_key(NAMES.get(one.id, one.name)))
    ]
    if len(found) == 1:
        return found[0]
    there = ", ".join(repr(one.name) for one in components)
    many = f"several integration services are called {quoted(wanted)}; say which by its GUID"
    raise NotFoundError(many if found else f"the VM has no integration service {quoted(wanted)}; it has {there}")


def set_enabled(vm: VmId, component: Component, enabled: bool, ask: Ask = powershell.ask) -> None:
    """Let a VM have an integration service, or take it from it; done when this returns.

    Raises:
        NotFoundError: this host has no such VM any more, or the VM no such service.
        NotReadyError, RefusedError, RemoteError: as :func:`hvsock.windows.powershell.ask` says.
    """
    verb = "Enable" if enabled else "Disable"
    script = _SET.format(vm=str(vm).lower(), component=uuid.UUID(component.id), verb=verb)
    found = known(vm, ask(script))
    if found == [{"missing": True}]:
        raise NotFoundError(f"the VM has no integration service {component.name!r} any more")
    if found:
        raise RemoteError(f"{verb}-VMIntegrationService said something: {quoted(str(found))}")


def _component(one: Any) -> Component:
    try:
        guid = str(uuid.UUID(powershell.text(one["id"]).rpartition("\\")[2]))
        names = powershell.text(one["name"]), powershell.text(one["primary"]), powershell.text(one["secondary"])
        if not isinstance(one["enabled"], bool):
            raise TypeError("neither true nor false")
        return Component(guid, names[0], one["enabled"], *names[1:])
    except (LookupError, TypeError, ValueError):
        raise RemoteError(f"Get-VMIntegrationService told of something that is none: {quoted(str(one))}") from None
