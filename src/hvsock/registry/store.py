"""The registry of services, in the fabric's folder, for the broker and for everybody who lists or changes it."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self

from hvsock.addresses import ServiceId
from hvsock.errors import DuplicateError, RefusedError, StateError, UsageError
from hvsock.topology.access import Access, Defaults, Service, Settings

from . import rows
from .database import BUSY_TIMEOUT_MS, GLANCE_TIMEOUT_MS, BusyError, Database
from .entries import (
    KEEP,
    MAX_SERVICES,
    MAX_VMS_WITH_DEFAULTS,
    NO_SETTINGS,
    Keep,
    ServiceEntry,
    ServiceName,
    check_defaults,
    check_entry,
    check_port_alias,
    check_service_id,
    check_service_name,
    check_settings,
    check_vm_id,
    name_key,
)
from .forwards import Forward, check_forward
from .merging import Imported, check_distinct, checked_import, merged, of_vm
from .values import rounded_time


class _Snapshot(NamedTuple):
    version: int
    services: Mapping[ServiceId, Service]
    defaults: Defaults
    aliases: Mapping[int, ServiceId]


class Registry:
    """The registry of services of one fabric.

    A registry lists the in-box services: those of the original, and hvsock's integration services. They are
    read-only: their id, name and port alias never change and they cannot be unregistered or registered over.
    Their settings can be changed like any other's, for an operator may well want them disabled.

    Those that a registry of an earlier version lacks are put in when somebody opens it who may change it. Where
    an operator has registered the id, the name or the port of one, theirs stays, and that one is left out.

    Every change is one transaction: when a method returns, it is on disk, and when it raises, nothing was
    changed. Changes of several processes come one after the other. Any thread may use a registry, one
    at a time; a process that forks opens its own afterwards.

    Args:
        folder: the fabric's folder. The registry is made there if its owner (or root) opens it and there is none.
        read_only_because: refuse every change with this text, for a caller who speaks for a partition that
            is not the host; None lets the folder's owner and its admin group change the registry.

    Raises:
        NoFabricError: there is no such folder, or no registry in it yet and the caller is not its owner.
        RefusedError: the caller may not read the registry.
        StateError: the file is damaged, of another program, or of a newer version.
    """

    def __init__(self, folder: str | os.PathLike[str], *, read_only_because: str | None = None) -> None:
        self._snapshot: _Snapshot | None = None
        self._displaced: tuple[str, ...] = ()
        self._database = Database(os.fsdecode(folder), rows.fill, rows.upgrade, read_only_because)
        try:
            if self._database.refusal is None:
                self._complete()
        except BaseException:
            self._database.close()
            raise

    def _complete(self) -> None:
        """Make the file one of this version, and complete; one that cannot be written stays as it was."""
        free, displaced = self._database.read(rows.missing_inbox)
        if free or self._database.is_of_earlier_version:
            try:
                with self._database.write() as connection:
                    free, displaced = rows.missing_inbox(connection)
                    for entry in free:
                        rows.insert(connection, entry)
            except (RefusedError, StateError) as error:
                import logging  # here, as every command that opens a registry would load it for this line

                logging.getLogger(__name__).warning("the registry stays that of an earlier version: %s", error)
        self._displaced = tuple(displaced)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice does nothing; any other use afterwards is a ValueError."""
        self._database.close()

    @property
    def path(self) -> str:
        """The registry's file."""
        return self._database.path

    @property
    def read_only_because(self) -> str | None:
        """Why the caller may not change the registry, as every change will say; None when it may."""
        return self._database.refusal

    @property
    def displaced(self) -> tuple[str, ...]:
        """One line for each in-box service that was left out, as the registry was opened, for an operator's."""
        return self._displaced

    # Reading

    def version(self) -> int:
        """A number that is another one once any process has committed a change.

        Numbers of one object compare with each other only. Takes some ten microseconds; while another
        process is committing, up to GLANCE_TIMEOUT_MS, and then the number is the one from before.

        Raises:
            StateError: the file cannot be read any more.
        """
        return self._database.version()

    def entries(self) -> list[ServiceEntry]:
        """Every registered service, by name.

        Raises:
            StateError: the file cannot be read.
        """
        return sorted(self._database.read(rows.all_entries), key=lambda entry: (name_key(entry.name), entry.id))

    def get(self, service_id: ServiceId) -> ServiceEntry | None:
        """The service with that id, or None.

        Raises:
            StateError: the file cannot be read.
        """
        return self._database.read(lambda connection: rows.entry_of(connection, service_id))

    def find(self, text: str) -> ServiceEntry:
        """The service that `text` means.

        Args:
            text: a GUID; a port (decimal, or hexadecimal with 0x), which is the service of the vsock
                template if that is registered, else the one with this port alias; or a friendly name,
                without regard to case.

        Raises:
            NotFoundError: there is none; the text names what is spelt like it.
            StateError: the file cannot be read.
        """
        return self._database.read(lambda connection: rows.find(connection, text))

    def defaults(self) -> Defaults:
        """What holds where no service says anything: by VM, and under None for all.

        Raises:
            StateError: the file cannot be read.
        """
        return self._database.read(rows.defaults)

    def known_defaults(self) -> Defaults:
        """The defaults that the last :meth:`services` has in its answer."""
        return {} if self._snapshot is None else self._snapshot.defaults

    def services(self) -> Mapping[ServiceId, Service]:
        """Every registered service as the rules of access take it; the same object until something changes.

        While another process is committing, the services from before.

        Raises:
            StateError: the file cannot be read.
        """
        return self._current().services

    def alias(self, port: int) -> ServiceId | None:
        """The service that has AF_VSOCK port `port` as its port alias, or None.

        As fast as :meth:`services`.

        Raises:
            StateError: the file cannot be read.
        """
        return self._current().aliases.get(port)

    # Changing

    def register(
        self,
        name: str,
        id: str | None = None,
        *,
        port_alias: int | None = None,
        forward: Forward | None = None,
        now: float | None = None,
    ) -> ServiceEntry:
        """Register a service.

        Args:
            name: its friendly name: 1 to 255 characters of any script, and nothing that reads as a GUID or a port.
            id: its GUID; None for a fresh one.
            port_alias: the AF_VSOCK port by which Linux guests reach it too, 0 to 0xFFFFFFFE; None for none.
            forward: where the existing server is that it stands for (:mod:`.forwards`); None for none.
            now: seconds since 1970 (UTC); None for the time of this call.

        Returns:
            The new entry.

        Raises:
            UsageError: a bad name, id, port alias or forward, or the registry is full.
            DuplicateError: the id, the name or the port is in use.
            RefusedError: the caller may not change the registry, or the id is that of an in-box service.
            StateError: the file cannot be written.
        """
        service_id = ServiceId.new() if id is None else check_service_id(id)
        name = check_service_name(name)
        check_port_alias(port_alias, service_id)
        moment = _moment(now)
        entry = ServiceEntry(
            service_id, name, port_alias, created=moment, changed=moment, forward=check_forward(forward)
        )
        with self._database.write() as connection:
            there = rows.entry_of(connection, service_id)
            if there is not None and there.inbox:
                raise RefusedError(f"{service_id} is the in-box service {there.name!r}, which stays as it is")
            rows.check_free(connection, entry)
            if rows.count(connection) >= MAX_SERVICES:
                raise UsageError(f"the registry is full: {MAX_SERVICES} services; unregister some first")
            rows.insert(connection, entry)
        return entry

    def unregister(self, key: str) -> ServiceEntry:
        """Take a service out, with all its settings.

        Args:
            key: what :meth:`find` takes.

        Returns:
            The entry as it was.

        Raises:
            NotFoundError: there is no such service.
            RefusedError: the caller may not change the registry, or it is an in-box service.
            StateError: the file cannot be written.
        """
        with self._database.write() as connection:
            entry = rows.find(connection, key)
            if entry.inbox:
                raise RefusedError(f"{entry.name!r} is an in-box service and stays registered; disable it instead")
            rows.delete(connection, entry.id)
        return entry

    def set_enabled(
        self, key: str, enabled: bool | None, vm_id: str | None = None, *, now: float | None = None
    ) -> ServiceEntry:
        """Enable or disable a service, for all VMs or for one; a short form of :meth:`change_settings`."""
        return self.change_settings(key, vm_id, enabled=enabled, now=now)

    def change_settings(
        self,
        key: str,
        vm_id: str | None = None,
        *,
        enabled: bool | Keep | None = KEEP,
        wildcard_binds: bool | Keep | None = KEEP,
        bind: Access | Keep | None = KEEP,
        connect: Access | Keep | None = KEEP,
        denied: frozenset[str] | Callable[[frozenset[str]], frozenset[str]] | Keep | None = KEEP,
        now: float | None = None,
    ) -> ServiceEntry:
        """Change settings of a service, in-box services included.

        A setting for one VM goes over the setting for all; None takes a setting back, so that the level
        below decides again (for all VMs, then the defaults); KEEP leaves it as it is.

        Args:
            key: what :meth:`find` takes.
            vm_id: the VmId of the VM that the settings are for; None for all VMs.
            enabled: whether the service can be listened on and connected to.
            wildcard_binds: whether listeners bound to HV_GUID_WILDCARD or HV_GUID_CHILDREN take connections.
            bind: who may bind.
            connect: who may connect.
            denied: operations that the service's guest half refuses, like ``kvp.set`` or ``kvp.*``; or what
                makes them of those in force, so that two who change them at once lose nothing.
            now: seconds since 1970 (UTC); None for the time of this call.

        Returns:
            The entry as it is now. If nothing is different, nothing was written.

        Raises:
            NotFoundError: there is no such service.
            UsageError: a VmId that is none, a setting out of range, or settings for too many VMs.
            RefusedError: the caller may not change the registry.
            StateError: the file cannot be written.
        """
        vm = None if vm_id is None else check_vm_id(vm_id)
        moment = _moment(now)
        with self._database.write() as connection:
            entry = rows.find(connection, key)
            before = entry.settings if vm is None else entry.per_vm.get(vm, NO_SETTINGS)
            if callable(denied):
                denied = denied(entry.service().settings_for(vm).denied or frozenset())
            after = check_settings(_changed(before, enabled, wildcard_binds, bind, connect, denied))
            if after == before:
                return entry
            if vm is None:
                entry = dataclasses.replace(entry, settings=after, changed=moment)
            else:
                per_vm = {**entry.per_vm, vm: after}
                if after == NO_SETTINGS:
                    del per_vm[vm]
                entry = check_entry(dataclasses.replace(entry, per_vm=per_vm, changed=moment))
            rows.update_settings(connection, entry, vm)
        return entry

    def change_defaults(
        self,
        vm_id: str | None = None,
        *,
        wildcard_binds: bool | Keep | None = KEEP,
        bind: Access | Keep | None = KEEP,
        connect: Access | Keep | None = KEEP,
    ) -> Settings:
        """Change what holds where no service says anything.

        Defaults for one VM go over those for all; None takes one back, KEEP leaves it as it is. With the first
        default of its own, a VM is one as HCS makes it: services that are not registered are decided by its
        defaults (:func:`hvsock.topology.access.unlisted`).

        Args:
            vm_id: the VmId of the VM that they are for; None for all VMs.
            wildcard_binds: whether listeners bound to HV_GUID_WILDCARD or HV_GUID_CHILDREN take connections.
            bind: who may bind.
            connect: who may connect.

        Returns:
            The defaults for that VM, or for all, as they are now. If nothing is different, nothing was written.

        Raises:
            UsageError: a VmId that is none, a setting out of range, or defaults for too many VMs.
            RefusedError: the caller may not change the registry.
            StateError: the file cannot be written.
        """
        vm = None if vm_id is None else check_vm_id(vm_id)
        with self._database.write() as connection:
            there = rows.defaults(connection)
            before = there.get(vm, NO_SETTINGS)
            after = check_defaults(_changed(before, KEEP, wildcard_binds, bind, connect))
            if after != before:
                _check_room_for_defaults({**there, vm: after})
                rows.update_defaults(connection, vm, None if after == NO_SETTINGS else after)
        return after

    def set_forward(self, key: str, forward: Forward | None, *, now: float | None = None) -> ServiceEntry:
        """Say where the existing server is that a service stands for.

        Args:
            key: what :meth:`find` takes.
            forward: where (:mod:`.forwards`); None for a service with programs of its own.
            now: seconds since 1970 (UTC); None for the time of this call.

        Returns:
            The entry as it is now. If nothing is different, nothing was written.

        Raises:
            NotFoundError: there is no such service.
            UsageError: that is no forward, or it is an in-box service.
            RefusedError: the caller may not change the registry.
            StateError: the file cannot be written.
        """
        moment = _moment(now)
        with self._database.write() as connection:
            before = rows.find(connection, key)
            entry = check_entry(dataclasses.replace(before, forward=forward, changed=moment))
            if entry.forward == before.forward:
                return before
            rows.update_forward(connection, entry)
        return entry

    def forget_vm(self, vm_id: str, *, now: float | None = None) -> int:
        """Drop every setting for one VM, because that partition was removed.

        Args:
            vm_id: its VmId.
            now: seconds since 1970 (UTC); None for the time of this call.

        Returns:
            How many services had settings for it.

        Raises:
            UsageError: that is no VmId of one partition.
            RefusedError: the caller may not change the registry.
            StateError: the file cannot be written.
        """
        vm = check_vm_id(vm_id)
        moment = _moment(now)
        with self._database.write() as connection:
            return rows.forget_vm(connection, vm, moment)

    def import_entries(
        self,
        services: Iterable[ServiceEntry | ServiceName],
        replace: bool = False,
        *,
        defaults: Defaults | None = None,
        now: float | None = None,
    ) -> Imported:
        """Register many services at once: all of them, or none.

        An entry of JSON is taken over whole, with its times; of a ServiceName (out of a ``.reg`` file) id
        and name. In-box services may be among them under their own names: their settings are taken over
        where none were made here.

        Args:
            services: what to register.
            replace: whether services that are registered already take the new values; what a ServiceName
                does not say stays. Services that are not among them stay in any case.
            defaults: what holds where no service says anything, to be taken over too; replaced like services.
            now: seconds since 1970 (UTC), the times of services that come without; None for the time of this call.

        Raises:
            UsageError: a bad value among them, or more services than a registry holds.
            DuplicateError: an id, a name or a port is there twice, or in use and not to be replaced.
            RefusedError: the caller may not change the registry, or it would change what is fixed of an
                in-box service.
            StateError: the file cannot be written.
        """
        wanted = checked_import(services)
        wanted_defaults = {vm_id: check_defaults(settings) for vm_id, settings in (defaults or {}).items()}
        moment = _moment(now)
        with self._database.write() as connection:
            there = {entry.id: entry for entry in rows.all_entries(connection)}
            added = []
            replaced = []
            for one in wanted:
                entry = merged(there.get(one.id), one, replace, moment)
                if one.id not in there:
                    added.append(entry)
                elif entry != there[one.id]:
                    replaced.append(entry)
            there.update({entry.id: entry for entry in (*added, *replaced)})
            if len(there) > MAX_SERVICES:
                raise UsageError(f"that would be {len(there)} services; a registry holds {MAX_SERVICES}")
            check_distinct(there.values())
            for entry in replaced:
                rows.delete(connection, entry.id)
            for entry in (*added, *replaced):
                rows.insert(connection, entry)
            _import_defaults(connection, wanted_defaults, replace)
        return Imported(len(added), len(replaced), len(wanted) - len(added) - len(replaced))

    def import_of_vm(
        self,
        vm_id: str | None,
        defaults: Settings,
        services: Mapping[ServiceId, Settings],
        replace: bool = False,
        *,
        now: float | None = None,
    ) -> Imported:
        """Take over what an HCS document says of one VM, or of all: all of it, or nothing.

        A service that is not registered is registered under a name of its own, and without wildcard binds for
        other VMs, as the document opens it to this one alone.

        Args:
            vm_id: the VmId of the VM; None for all VMs.
            defaults: the defaults for it.
            services: the settings of services for it, whole: what one leaves open is open afterwards.
            replace: whether what is there already and different is replaced.
            now: seconds since 1970 (UTC); None for the time of this call.

        Raises:
            UsageError: a bad value among them, or more of something than a registry holds.
            DuplicateError: there are other settings for the VM, not to be replaced, or a name is in use.
            RefusedError: the caller may not change the registry.
            StateError: the file cannot be written.
        """
        vm = None if vm_id is None else check_vm_id(vm_id)
        check_defaults(defaults)
        moment = _moment(now)
        with self._database.write() as connection:
            there = {entry.id: entry for entry in rows.all_entries(connection)}
            changed = [of_vm(there.get(one), one, vm, services[one], replace, moment) for one in services]
            added = [entry for entry in changed if entry.id not in there]
            replaced = [entry for entry in changed if entry.id in there and entry != there[entry.id]]
            there.update({entry.id: check_entry(entry) for entry in changed})
            if len(there) > MAX_SERVICES:
                raise UsageError(f"that would be {len(there)} services; a registry holds {MAX_SERVICES}")
            check_distinct(there.values())
            for entry in replaced:
                rows.update_settings(connection, entry, vm)
            for entry in added:
                rows.insert(connection, entry)
            if defaults != NO_SETTINGS:
                _import_defaults(connection, {vm: defaults}, replace)
        return Imported(len(added), len(replaced), len(services) - len(added) - len(replaced))

    def _current(self) -> _Snapshot:
        snapshot = self._snapshot
        if snapshot is not None and snapshot.version == self._database.version():
            return snapshot
        try:
            entries, defaults = self._database.read(
                _everything, BUSY_TIMEOUT_MS if snapshot is None else GLANCE_TIMEOUT_MS
            )
        except BusyError:
            if snapshot is None:
                raise
            return snapshot
        self._snapshot = _Snapshot(
            self._database.noted_version,
            MappingProxyType({entry.id: entry.service(defaults) for entry in entries}),
            defaults,
            MappingProxyType({entry.port_alias: entry.id for entry in entries if entry.port_alias is not None}),
        )
        return self._snapshot


def _everything(connection: sqlite3.Connection) -> tuple[list[ServiceEntry], Defaults]:
    return rows.all_entries(connection), MappingProxyType(rows.defaults(connection))


def _import_defaults(connection: sqlite3.Connection, wanted: Defaults, replace: bool) -> None:
    there = rows.defaults(connection)
    everything = {**there, **wanted}
    _check_room_for_defaults({vm_id: one for vm_id, one in everything.items() if one != NO_SETTINGS})
    for vm_id, settings in wanted.items():
        if there.get(vm_id, settings) != settings and not replace:
            whose = "all VMs" if vm_id is None else f"the VM {vm_id}"
            raise DuplicateError(f"there are other defaults for {whose} already, not to be replaced")
        rows.update_defaults(connection, vm_id, None if settings == NO_SETTINGS else settings)


def _changed(
    before: Settings,
    enabled: bool | Keep | None,
    wildcard_binds: bool | Keep | None,
    bind: Access | Keep | None,
    connect: Access | Keep | None,
    denied: frozenset[str] | Keep | None = KEEP,
) -> Settings:
    """`before` with every setting that is not KEEP."""
    return Settings(
        enabled=before.enabled if isinstance(enabled, Keep) else enabled,
        wildcard_binds=before.wildcard_binds if isinstance(wildcard_binds, Keep) else wildcard_binds,
        bind=before.bind if isinstance(bind, Keep) else bind,
        connect=before.connect if isinstance(connect, Keep) else connect,
        denied=before.denied if isinstance(denied, Keep) else denied,
    )


def _check_room_for_defaults(defaults: Defaults) -> None:
    if len(defaults) > MAX_VMS_WITH_DEFAULTS:
        raise UsageError(f"there are defaults for at most {MAX_VMS_WITH_DEFAULTS} VMs, not {len(defaults)}")


def _moment(now: float | None) -> float:
    return rounded_time(time.time() if now is None else now)
