"""The services of this Windows host as the commands see them: the key, and what is enabled for which VM.

It has the interface of the fabric's registry, as far as Windows has what that is about.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Final

from hvsock.addresses import VmId
from hvsock.errors import UsageError
from hvsock.registry.entries import MAX_SERVICES, ServiceEntry, ServiceName
from hvsock.registry.forwards import Forward
from hvsock.registry.merging import Imported, check_distinct, checked_import, merged
from hvsock.topology.access import Defaults, Settings

from . import integration, powershell
from .integration import Ask, Policy, VmPolicy
from .registry import WindowsRegistry, Winreg, not_elevated

NO_ACCESS: Final = (
    "Windows' registry says nothing of who may bind and connect: for VMs of the Host Compute Service, "
    "their HCS documents do"
)
"""Why some things cannot be asked for."""


class HostRegistry(WindowsRegistry):
    """The registry of this host.

    Args:
        winreg: as for :class:`WindowsRegistry`.
        ask: puts questions to PowerShell.

    Raises:
        UsageError: this is not Windows.
    """

    def __init__(self, winreg: Winreg | None = None, ask: Ask = powershell.ask) -> None:
        super().__init__(winreg)
        self._ask = ask

    def defaults(self) -> Defaults | None:
        """None: Windows' registry has no defaults."""
        return None

    def register(
        self, name: str, id: str | None = None, *, port_alias: int | None = None, forward: Forward | None = None
    ) -> ServiceEntry:
        """Register a service: see :meth:`WindowsRegistry.register`.

        Raises:
            UsageError: there is no port alias and no forward on Windows; or a bad name or id.
        """
        if port_alias is not None:
            raise UsageError("Windows knows no port aliases: Linux guests reach a service of a port, by --port")
        if forward is not None:
            raise UsageError("there is no relay on Windows: a service has programs of its own there")
        return super().register(name, id)

    def set_enabled(self, key: str, enabled: bool | None, vm_id: VmId | None = None) -> ServiceEntry:
        """Enable or disable a service for a VM, or leave it to the VM's default.

        Args:
            key: what :meth:`find` takes.
            enabled: whether it is to be; None for the default.
            vm_id: the VM.

        Returns:
            The service, with what was set.

        Raises:
            UsageError: there is no VM given, as Windows has no such setting for all of them.
            NotFoundError, NotReadyError, RefusedError, RemoteError: as the functions of
                :mod:`hvsock.windows.integration` say.
        """
        if vm_id is None:
            raise UsageError(
                "Windows enables and disables a service for one VM: say which by --vm; "
                "hvsock service unregister takes it from all"
            )
        entry = self.find(key)
        if enabled is None:
            integration.remove_guest_service(vm_id, entry.id, self._ask)
            return entry
        policy = Policy.ENABLED if enabled else Policy.DISABLED
        integration.set_guest_service(vm_id, entry.id, policy, self._ask)
        return dataclasses.replace(entry, per_vm={vm_id: Settings(enabled=enabled)})

    def policies(self, entry: ServiceEntry) -> list[VmPolicy]:
        """The VMs that have a policy for a service.

        Raises:
            NotReadyError, RefusedError, RemoteError: PowerShell could not be asked, or this user may not.
        """
        return integration.policies_of(entry.id, self._ask)

    def import_entries(self, services: Iterable[ServiceEntry | ServiceName], replace: bool = False) -> Imported:
        """Register many services at once.

        All of them or none, unless this process or Windows ends in the midst: then some are registered, and the
        same import, with `replace`, does the rest.

        Args:
            services: what to register; of each the id and the name count.
            replace: whether services that are registered already take the new names.

        Raises:
            UsageError: a bad value among them, or too many services.
            DuplicateError: an id or a name is there twice, or in use and not to be replaced.
            RefusedError: this process is not elevated, or it would change an in-box service.
            NoFabricError: there is no such key, as Hyper-V is not there.
            OSError: Windows did not write one; none is registered then.
        """
        wanted = checked_import(ServiceName(one.id, one.name) for one in services)
        before = {entry.id: entry for entry in self.entries()}
        after = dict(before)
        for one in wanted:
            after[one.id] = merged(before.get(one.id), one, replace, 0.0)
        if len(after) > MAX_SERVICES:
            raise UsageError(f"that would be {len(after)} services; a registry holds {MAX_SERVICES}")
        check_distinct(after.values())
        added = [after[one.id] for one in wanted if one.id not in before]
        changed = [after[one.id] for one in wanted if before.get(one.id, after[one.id]).name != one.name]
        if added or changed:
            self._write_all(added, [(before[entry.id], entry) for entry in changed])
        return Imported(len(added), len(changed), len(wanted) - len(added) - len(changed))

    def _write_all(self, added: list[ServiceEntry], changed: list[tuple[ServiceEntry, ServiceEntry]]) -> None:
        """Write all of them, or take back those that were written."""
        try:
            with self._open_to_change() as root, ExitStack() as undo:
                for old, new in changed:
                    undo.callback(self._take_back, root, new, old.name)
                    self._write(root, new.id, new.name, replace=True)
                for entry in added:
                    try:
                        self._write(root, entry.id, entry.name)
                    except OSError:  # there may be a key by then
                        self._take_back(root, entry, None)
                        raise
                    undo.callback(self._take_back, root, entry, None)
                undo.pop_all()
        except PermissionError:
            raise not_elevated("hvsock service import, again") from None

    def _take_back(self, root: Any, entry: ServiceEntry, name: str | None) -> None:
        with contextlib.suppress(OSError):
            if name is None:
                self._delete(root, entry.id)
            else:
                self._write(root, entry.id, name, replace=True)


def names_of(services: Iterable[ServiceEntry | ServiceName]) -> tuple[list[ServiceName], list[str]]:
    """What of services Windows' registry takes, and a line for each kind of thing that it does not."""
    names, inbox, more = [], 0, 0
    for one in services:
        if isinstance(one, ServiceEntry):
            if one.inbox:
                inbox += 1
                continue
            more += one.touched or one.forward is not None or one.port_alias is not None
        names.append(ServiceName(one.id, one.name))
    notes = []
    if inbox:
        notes.append(
            f"{inbox} in-box services are passed over: those of Windows are there, and others are hvsock's"
        )
    if more:
        notes.append(f"of {more} services the id and the name alone are taken: {NO_ACCESS}")
    return names, notes
