"""What an import makes of the services that are there: pure, no file and no clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import DuplicateError, RefusedError, UsageError
from hvsock.topology.access import Settings

from .entries import (
    MAX_SERVICES,
    NO_SETTINGS,
    ServiceEntry,
    ServiceName,
    check_entry,
    check_service_id,
    check_service_name,
    name_key,
)
from .values import rounded_time


class Imported(NamedTuple):
    """What an import did.

    Attributes:
        added: how many services are new.
        replaced: how many were there and are different now.
        unchanged: how many were there just so.
    """

    added: int
    replaced: int
    unchanged: int


def checked_import(services: Iterable[ServiceEntry | ServiceName]) -> list[ServiceEntry | ServiceName]:
    wanted: dict[ServiceId, ServiceEntry | ServiceName] = {}
    for one in services:
        if isinstance(one, ServiceEntry):
            checked: ServiceEntry | ServiceName = dataclasses.replace(
                check_entry(one), created=rounded_time(one.created), changed=rounded_time(one.changed)
            )
        else:
            checked = ServiceName(check_service_id(one.id), check_service_name(one.name))
        if checked.id in wanted:
            raise DuplicateError(
                f"{checked.id} is there twice, as {wanted[checked.id].name!r} and {checked.name!r}"
            )
        wanted[checked.id] = checked
        if len(wanted) > MAX_SERVICES:
            raise UsageError(f"that is more than {MAX_SERVICES} services, the most that a registry holds")
    return list(wanted.values())


def merged(
    there: ServiceEntry | None, one: ServiceEntry | ServiceName, replace: bool, moment: float
) -> ServiceEntry:
    """What `one` makes of the entry with its id."""
    if there is not None and there.inbox:
        return _merged_inbox(there, one, replace)
    if isinstance(one, ServiceEntry) and one.inbox:
        raise UsageError(
            f"{one.name!r} ({one.id}) is none of the in-box services here and cannot be flagged as one"
        )
    if there is None:
        return one if isinstance(one, ServiceEntry) else ServiceEntry(*one, created=moment, changed=moment)
    if not replace:
        raise DuplicateError(f"{one.id} is registered already, as {there.name!r}, and was not to be replaced")
    if isinstance(one, ServiceEntry):
        return one
    return there if one.name == there.name else dataclasses.replace(there, name=one.name, changed=moment)


def _merged_inbox(there: ServiceEntry, one: ServiceEntry | ServiceName, replace: bool) -> ServiceEntry:
    same_port = isinstance(one, ServiceName) or one.port_alias in (None, there.port_alias)
    if one.name != there.name or not same_port:
        raise RefusedError(f"{there.id} is the in-box service {there.name!r}, whose name and port alias stay")
    if isinstance(one, ServiceName):
        return there
    entry = dataclasses.replace(one, port_alias=there.port_alias, flags=there.flags)
    if replace or not there.touched or (entry.settings, entry.per_vm) == (there.settings, there.per_vm):
        return entry
    if one.touched:
        raise DuplicateError(f"the in-box service {there.name!r} has other settings here, not to be replaced")
    return there


def check_distinct(entries: Iterable[ServiceEntry]) -> None:
    names: dict[str, ServiceEntry] = {}
    ports: dict[int, ServiceEntry] = {}
    for entry in entries:
        other = names.setdefault(name_key(entry.name), entry)
        if other is not entry:
            raise DuplicateError(f"the name {entry.name!r} would be in use twice, by {other.id} and {entry.id}")
        if entry.port is not None:
            other = ports.setdefault(entry.port, entry)
            if other is not entry:
                raise DuplicateError(
                    f"port {entry.port} would be in use twice, by {other.name!r} and {entry.name!r}"
                )


def of_vm(
    there: ServiceEntry | None,
    service_id: ServiceId,
    vm_id: VmId | None,
    settings: Settings,
    replace: bool,
    moment: float,
) -> ServiceEntry:
    """What the settings for one VM (None for all) make of a service.

    Raises:
        DuplicateError: it has other settings for it, not to be replaced.
    """
    entry = there
    if entry is None:
        name = f"HvSocket {service_id}" if service_id.port is None else f"vsock port {service_id.port}"
        elsewhere = Settings(wildcard_binds=False)
        entry = ServiceEntry(check_service_id(service_id), name, created=moment, settings=elsewhere)
        before = NO_SETTINGS
    else:
        before = entry.settings if vm_id is None else entry.per_vm.get(vm_id, NO_SETTINGS)
    others = dataclasses.replace(before, denied=None)  # of which no document says anything
    if others not in (NO_SETTINGS, settings) and not replace:
        raise DuplicateError(f"{entry.name!r} has other settings there already, not to be replaced")
    settings = dataclasses.replace(settings, denied=before.denied)
    if before == settings and there is not None:
        return entry
    if vm_id is None:
        return dataclasses.replace(entry, settings=settings, changed=moment)
    per_vm = {**entry.per_vm, vm_id: settings}
    if settings == NO_SETTINGS:
        del per_vm[vm_id]
    return dataclasses.replace(entry, per_vm=per_vm, changed=moment)
