"""The VMs of this Windows host by name: by Get-VM, by hvc, by hcsdiag, and WSL's own.

Get-VM knows the VMs of Hyper-V, running or not, and needs the group Hyper-V Administrators. `hvc id NAME` knows
the same and is there without PowerShell's module for Hyper-V. `hcsdiag list` knows all that the Host Compute
Service runs, WSL and containers' VMs too. These two need the same. `wslinfo --vm-id` tells everybody the id of
WSL's VM, which changes whenever that starts; asking starts it where it does not run.

What `hvc list` prints is documented nowhere; that `hvc id` prints the id alone, Microsoft's OpenVMM relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from hvsock.addresses import VmId
from hvsock.errors import HvsockError, NotFoundError, NotReadyError, RemoteError
from hvsock.registry.entries import name_key, quoted

from . import powershell
from .programs import in_system, output_of

GET_VM: Final = (
    "Get-VM | ForEach-Object { @{ id = $_.Id.ToString(); name = $_.Name; state = $_.State.ToString() } }"
)
"""Ids as text, since ConvertTo-Json makes an object of a GUID in some versions."""
HVC: Final = (in_system("hvc.exe"), "id")
HCSDIAG: Final = (in_system("hcsdiag.exe"), "list")
WSLINFO: Final = (in_system("wsl.exe"), "--exec", "wslinfo", "--vm-id", "-n")
WSL: Final = "WSL"
"""What WSL calls itself as owner of its VM, and the name of that VM here."""
UNKNOWN: Final = "unknown"
"""The state of a VM whose source tells none."""
_OWNER_OF_NAMED: Final = "VMMS"
"""Owner of the VMs that Get-VM names."""

Ask = Callable[[str], list[Any]]
Output = Callable[[tuple[str, ...]], bytes]
Source = Callable[[str], "list[Vm]"]
"""Gives VMs, those with a name among them."""


class Vm(NamedTuple):
    """A VM of this host.

    Attributes:
        id: its VmId.
        name: its name, which others may have too.
        state: what Windows calls its state, or :data:`UNKNOWN`.
    """

    id: VmId
    name: str
    state: str


def by_powershell(ask: Ask = powershell.ask) -> list[Vm]:
    """The VMs of Hyper-V.

    Raises:
        NotReadyError, RefusedError, RemoteError: as :func:`hvsock.windows.powershell.ask` says.
    """
    found = []
    for one in ask(GET_VM):
        try:
            found.append(Vm(VmId(one["id"]), powershell.text(one["name"]), powershell.text(one["state"])))
        except (LookupError, TypeError, AttributeError, ValueError):
            raise RemoteError(f"Get-VM told of something that is no VM: {quoted(str(one))}") from None
    return found


def by_hvc(name: str, output: Output = output_of) -> list[Vm]:
    """The VM of Hyper-V with that name; none where hvc tells no id, as of a name that no VM has.

    Raises:
        NotReadyError: there is no hvc, it took too long, or it cannot be asked for such a name.
        RemoteError: it told something else than one id, as of a name that several have.
    """
    if name.startswith(("-", "/")) or "\0" in name:
        why = "a name for it begins with neither - nor / and has no NUL"
        raise NotReadyError(f"hvc cannot be asked for {quoted(name)}: {why}")
    text = output((*HVC, name)).decode("utf-8", "replace").strip()
    vm_id = _vm_id(text)
    if vm_id is None and text:
        raise RemoteError(f"hvc says: {quoted(text)}")
    return [] if vm_id is None else [Vm(vm_id, name, UNKNOWN)]


def by_hcsdiag(output: Output = output_of) -> list[Vm]:
    """The VMs that the Host Compute Service runs.

    The name of one that has only an id is that of its owner, as of WSL's; those of Hyper-V are left to Get-VM.

    Raises:
        NotReadyError: there is no hcsdiag, or it took too long.
        RemoteError: it said no list, as to a user who may not see it.
    """
    text = output(HCSDIAG).decode("utf-8", "replace")
    vms, title = [], ""
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 1:
            title = line.strip()
        elif len(fields) >= 3 and fields[0] == "VM" and (vm_id := _vm_id(fields[2])) is not None:
            owner = fields[3] if len(fields) > 3 else ""
            name = owner if _vm_id(title) is not None else title
            if name and name != _OWNER_OF_NAMED:
                vms.append(Vm(vm_id, name, fields[1]))
    if not vms and title and _vm_id(title) is None:
        raise RemoteError(f"hcsdiag says: {quoted(title)}")
    return vms


def by_wslinfo(output: Output = output_of) -> list[Vm]:
    """WSL's VM.

    Raises:
        NotReadyError: there is no WSL, or it took too long.
        RemoteError: it told no id; it may be too old for that.
    """
    text = output(WSLINFO).decode("utf-8", "replace").replace("\0", "").strip()  # its errors are UTF-16
    vm_id = _vm_id(text)
    if vm_id is None:
        raise RemoteError(f"wslinfo told no id of a VM (wsl --update may help): {quoted(text)}")
    return [Vm(vm_id, WSL, "Running")]


SOURCES: Final[tuple[Source, ...]] = (lambda name: by_powershell(), by_hvc, lambda name: by_hcsdiag())
"""Who is asked for a name, in turn, until somebody knows it."""


def find(name: str, sources: Iterable[Source] = SOURCES) -> Vm:
    """The VM with that name, in any case; "wsl" is WSL's.

    Args:
        name: what to look for.
        sources: who is asked, each where those before know none.

    Raises:
        NotFoundError: nobody knows one, or there are several; the text says who could not be asked.
    """
    reasons = []
    for source in (lambda name: by_wslinfo(),) if name_key(name) == name_key(WSL) else sources:
        try:
            found = [vm for vm in source(name) if name_key(vm.name) == name_key(name)]
        except HvsockError as error:
            reasons.append(str(error))
            continue
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(vm.id for vm in found)
            raise NotFoundError(f"{len(found)} VMs are called {quoted(name)}; say which by its id: {ids}")
    why = f"; not all could be asked: {'; '.join(reasons)}" if reasons else ""
    raise NotFoundError(f"this host has no VM {quoted(name)}{why}")


def _vm_id(text: str) -> VmId | None:
    try:
        return VmId(text)
    except ValueError:
        return None
