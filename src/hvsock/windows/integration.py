"""What is enabled for a VM of this Windows host: guest services by WMI, integration services by cmdlets.

Windows keeps a policy for a service and a VM in Msvm_GuestCommunicationServiceSettingData, of the namespace
root\\virtualization\\v2; a service without one follows the VM's default. Only ids that were parsed become part of
a script. No PowerShell has run these scripts yet.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final, NamedTuple

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import NotFoundError, NotReadyError, RefusedError, RemoteError
from hvsock.registry.entries import quoted

from . import powershell

Ask = Callable[[str], list[Any]]


class Policy(IntEnum):
    """EnabledStatePolicy, by its numbers."""

    ENABLED = 2
    DISABLED = 3
    DEFERRED = 8


class GuestService(NamedTuple):
    """A guest communication service that a VM has a policy for.

    Attributes:
        id: the service.
        policy: whether it is enabled; DEFERRED leaves that to the VM's default.
    """

    id: ServiceId
    policy: Policy


class Component(NamedTuple):
    """An integration service of a VM.

    Attributes:
        id: Windows' own id of it, whatever the language.
        name: in the language of the host.
        enabled: whether the host lets the guest have it.
        status: in the language of the host; empty where the VM does not run.
    """

    id: str
    name: str
    enabled: bool
    status: str


_VM: Final = """
$all = @{{ Namespace = 'root\\virtualization\\v2'; ErrorAction = 'Stop' }}
$realized = 'Microsoft:Hyper-V:System:Realized'
$vm = Get-WmiObject @all -Class Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='{vm}' AND VirtualSystemType='$realized'"
if (-not $vm) {{ return @{{ unknown = $true }} }}
$settings = @($vm.GetRelated('Msvm_GuestCommunicationServiceSettingData'))
"""  # noqa: E501 - one line of PowerShell
_LIST: Final = _VM + "$settings | ForEach-Object {{ @{{ id = $_.Name; policy = [int]$_.EnabledStatePolicy }} }}"
_SET: Final = (
    _VM
    + """
$manager = Get-WmiObject @all -Class Msvm_VirtualSystemManagementService
$one = $settings | Where-Object {{ $_.Name -eq '{service}' }} | Select-Object -First 1
if ($one) {{
    $one.EnabledStatePolicy = [uint16]{policy}
    $done = $manager.ModifyGuestServiceSettings(@($one.GetText(1)))
}} else {{
    $one = ([wmiclass]'root\\virtualization\\v2:Msvm_GuestCommunicationServiceSettingData').CreateInstance()
    $one.Name = '{service}'
    $one.EnabledStatePolicy = [uint16]{policy}
    $done = $manager.AddGuestServiceSettings($vm.Path.Path, @($one.GetText(1)))
}}
$code = [int]$done.ReturnValue
$why = ''
if ($code -eq 4096) {{
    do {{ Start-Sleep -Milliseconds 100; $job = [wmi]$done.Job }} while ($job.JobState -lt 7)
    $code = if ($job.JobState -eq 7) {{ 0 }} else {{ [int]$job.ErrorCode }}
    if ($job.JobState -ne 7) {{ $why = [string]$job.ErrorDescription; if (-not $code) {{ $code = 2 }} }}
}}
@{{ code = $code; why = $why }}
"""
)
_COMPONENTS: Final = """
$vm = Get-VM | Where-Object {{ $_.Id.ToString() -eq '{vm}' }}
if (-not $vm) {{ return @{{ unknown = $true }} }}
$vm | Get-VMIntegrationService | ForEach-Object {{
    @{{ id = [string]$_.Id; name = $_.Name; enabled = $_.Enabled; status = [string]$_.PrimaryStatusDescription }}
}}
"""

_DENIED: Final = frozenset({32769})
_BUSY: Final = frozenset({5, 32774, 32775})
"""Return values: invalid state, in use, invalid state for this."""


def guest_services(vm: VmId, ask: Ask = powershell.ask) -> list[GuestService]:
    """The services that a VM has a policy for.

    Raises:
        NotFoundError: this host has no such VM, or not for this user.
        NotReadyError, RefusedError, RemoteError: as :func:`hvsock.windows.powershell.ask` says.
    """
    found = []
    for one in _known(vm, ask(_LIST.format(vm=str(vm).upper()))):
        try:
            found.append(GuestService(ServiceId(one["id"].strip("{}")), Policy(_number(one["policy"]))))
        except (LookupError, TypeError, AttributeError, ValueError):
            raise RemoteError(f"WMI told of something that is no guest service: {quoted(str(one))}") from None
    return found


def set_guest_service(vm: VmId, service: ServiceId, policy: Policy, ask: Ask = powershell.ask) -> None:
    """Enable or disable a service for one VM, or leave it to the VM's default; done when this returns.

    Where Windows takes too long, it may still be done later: :func:`guest_services` tells.

    Raises:
        NotFoundError: this host has no such VM, or not for this user.
        RefusedError: this user may not.
        NotReadyError: the VM is in a state in which that cannot be done; or as :func:`hvsock.windows.powershell.ask` says.
        RemoteError: it failed in another way.
    """  # noqa: E501 - a reference
    script = _SET.format(vm=str(vm).upper(), service=str(service), policy=int(policy))
    answer = _known(vm, ask(script))
    try:
        (one,) = answer
        code, why = _number(one["code"]), one["why"]
    except (LookupError, TypeError, ValueError):
        raise RemoteError(f"WMI answered something else: {quoted(str(answer))}") from None
    if code == 0:
        return
    text = (
        f"Windows did not change the service for this VM: {quoted(str(why)) if why else 'no reason'} (code {code})"
    )
    if code in _DENIED:
        raise RefusedError(f"{text}; run this in an elevated prompt")
    if code in _BUSY:
        raise NotReadyError(f"{text}; try again when the VM is off or runs")
    raise RemoteError(text)


def components(vm: VmId, ask: Ask = powershell.ask) -> list[Component]:
    """The integration services of a VM, as Get-VMIntegrationService tells.

    Raises:
        NotFoundError: this host has no such VM, or not for this user.
        NotReadyError, RefusedError, RemoteError: as :func:`hvsock.windows.powershell.ask` says.
    """
    found = []
    for one in _known(vm, ask(_COMPONENTS.format(vm=str(vm).lower()))):
        try:
            component = Component(one["id"], one["name"], one["enabled"], one["status"])
        except (LookupError, TypeError):
            component = None
        if component is None or [type(value) for value in component] != [str, str, bool, str]:
            raise RemoteError(f"Get-VMIntegrationService told of something that is none: {quoted(str(one))}")
        found.append(component)
    return found


def _known(vm: VmId, found: list[Any]) -> list[Any]:
    if found == [{"unknown": True}]:
        raise NotFoundError(f"this host has no VM {vm} (who is not elevated, sees none): see Get-VM")
    return found


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError("not a number")
    return value
