"""What is enabled for a VM of this Windows host, by WMI.

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


class VmPolicy(NamedTuple):
    """What a VM's policy for a service is.

    Attributes:
        id: the VM.
        name: its name.
        policy: whether the service is enabled for it; DEFERRED leaves that to the VM's default.
    """

    id: VmId
    name: str
    policy: Policy


_WMI: Final = """
$all = @{{ Namespace = 'root\\virtualization\\v2'; ErrorAction = 'Stop' }}
$realized = 'Microsoft:Hyper-V:System:Realized'
"""
_VM: Final = (
    _WMI
    + """
$vm = Get-WmiObject @all -Class Msvm_VirtualSystemSettingData -Filter "VirtualSystemIdentifier='{vm}' AND VirtualSystemType='$realized'"
if (-not $vm) {{ return @{{ unknown = $true }} }}
$settings = @($vm.GetRelated('Msvm_GuestCommunicationServiceSettingData'))
"""  # noqa: E501 - one line of PowerShell
)
_ALL: Final = (
    _WMI
    + """
Get-WmiObject @all -Class Msvm_VirtualSystemSettingData -Filter "VirtualSystemType='$realized'" | ForEach-Object {{
    $vm = $_
    $vm.GetRelated('Msvm_GuestCommunicationServiceSettingData') | Where-Object {{ $_.Name -eq '{service}' }} |
        ForEach-Object {{
            @{{
                id = [string]$vm.VirtualSystemIdentifier
                name = [string]$vm.ElementName
                policy = [int]$_.EnabledStatePolicy
            }}
        }}
}}
"""
)
_ONE: Final = (
    _VM
    + """
$manager = Get-WmiObject @all -Class Msvm_VirtualSystemManagementService
$one = $settings | Where-Object {{ $_.Name -eq '{service}' }} | Select-Object -First 1
"""
)
_DONE: Final = """
$code = [int]$done.ReturnValue
$why = ''
if ($code -eq 4096) {{
    do {{ Start-Sleep -Milliseconds 100; $job = [wmi]$done.Job }} while ($job.JobState -lt 7)
    $code = if ($job.JobState -eq 7) {{ 0 }} else {{ [int]$job.ErrorCode }}
    if ($job.JobState -ne 7) {{ $why = [string]$job.ErrorDescription; if (-not $code) {{ $code = 2 }} }}
}}
@{{ code = $code; why = $why }}
"""
_SET: Final = (
    _ONE
    + """
if ($one) {{
    $one.EnabledStatePolicy = [uint16]{policy}
    $done = $manager.ModifyGuestServiceSettings(@($one.GetText(1)))
}} else {{
    $one = ([wmiclass]'root\\virtualization\\v2:Msvm_GuestCommunicationServiceSettingData').CreateInstance()
    $one.Name = '{service}'
    $one.EnabledStatePolicy = [uint16]{policy}
    $done = $manager.AddGuestServiceSettings($vm.Path.Path, @($one.GetText(1)))
}}
"""
    + _DONE
)
_REMOVE: Final = (
    _ONE
    + """
if (-not $one) {{ return @{{ code = 0; why = '' }} }}
$done = $manager.RemoveGuestServiceSettings(@($one.Path.Path))
"""
    + _DONE
)

_DENIED: Final = frozenset({32769})
_BUSY: Final = frozenset({5, 32774, 32775})
"""Return values: invalid state, in use, invalid state for this."""


def set_guest_service(vm: VmId, service: ServiceId, policy: Policy, ask: Ask = powershell.ask) -> None:
    """Enable or disable a service for one VM, or leave it to the VM's default; done when this returns.

    Where Windows takes too long, it may still be done later.

    Raises:
        NotFoundError: this host has no such VM, or not for this user.
        RefusedError: this user may not.
        NotReadyError: the VM is in a state in which that cannot be done; or as :func:`hvsock.windows.powershell.ask` says.
        RemoteError: it failed in another way.
    """  # noqa: E501 - a reference
    _change(vm, ask(_SET.format(vm=str(vm).upper(), service=str(service), policy=int(policy))))


def remove_guest_service(vm: VmId, service: ServiceId, ask: Ask = powershell.ask) -> None:
    """Take back what was said of a service for one VM, so that its default holds; done when this returns.

    Raises:
        NotFoundError, RefusedError, NotReadyError, RemoteError: as :func:`set_guest_service` says.
    """
    _change(vm, ask(_REMOVE.format(vm=str(vm).upper(), service=str(service))))


def policies_of(service: ServiceId, ask: Ask = powershell.ask) -> list[VmPolicy]:
    """The VMs that have a policy for a service.

    Raises:
        NotReadyError, RefusedError, RemoteError: as :func:`hvsock.windows.powershell.ask` says.
    """
    found = []
    for one in ask(_ALL.format(service=str(service))):
        try:
            found.append(VmPolicy(VmId(one["id"]), powershell.text(one["name"]), Policy(_number(one["policy"]))))
        except (LookupError, TypeError, AttributeError, ValueError):
            raise RemoteError(f"WMI told of something that is no VM's policy: {quoted(str(one))}") from None
    return found


def _change(vm: VmId, found: list[Any]) -> None:
    """Hold that a change was made, by what its script said."""
    answer = known(vm, found)
    try:
        (one,) = answer
        code, why = _number(one["code"]), one["why"]
    except (LookupError, TypeError, ValueError):
        raise RemoteError(f"WMI answered something else: {quoted(str(answer))}") from None
    if code == 0:
        return
    said = quoted(str(why)) if why else "no reason"
    failure = f"Windows did not change the service for this VM: {said} (code {code})"
    if code in _DENIED:
        raise RefusedError(f"{failure}; run this in an elevated prompt")
    if code in _BUSY:
        raise NotReadyError(f"{failure}; try again when the VM is off or runs")
    raise RemoteError(failure)


def known(vm: VmId, found: list[Any]) -> list[Any]:
    """What a script about a VM found.

    Raises:
        NotFoundError: this host has no such VM, or not for this user.
    """
    if found == [{"unknown": True}]:
        raise NotFoundError(f"this host has no VM {vm} (who is not elevated, sees none): see Get-VM")
    return found


def _number(value: object) -> int:
    if type(value) is not int:
        raise TypeError("not a number")
    return value
