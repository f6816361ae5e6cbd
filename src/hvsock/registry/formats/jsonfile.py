"""The registry as JSON: everything that it knows, and strictly back.

A document is an object with the members ``format`` ("hvsock-registry"), ``version`` (1), where there are some
``defaults``, an object of settings by VmId, or by "all" for all VMs, and ``services``, an array of objects with
these members; only the first two must be there::

    id          GUID
    name        friendly name
    port_alias  AF_VSOCK port, or null
    flags       array of words
    created     ISO 8601 with offset
    changed     ISO 8601 with offset
    settings    object with enabled, wildcard_binds (true or false), bind, connect
                (objects with everyone (true or false), uids, gids (arrays of numbers), or with
                sddl, a security descriptor, alone), denied (array of operations like kvp.set), for
                all VMs; what is null or missing is left open
    per_vm      object of such settings by VmId
    forward     unix:PATH or tcp:ADDRESS:PORT, or null
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from hvsock.addresses import VmId
from hvsock.errors import UsageError
from hvsock.registry.entries import (
    MAX_SERVICES,
    NO_SETTINGS,
    ServiceEntry,
    check_defaults,
    check_entry,
    check_service_id,
    check_service_name,
    check_vm_id,
    quoted,
)
from hvsock.registry.forwards import parse_forward
from hvsock.registry.values import (
    json_type,
    settings_from_value,
    settings_to_value,
    take_object,
    time_from_text,
    time_to_text,
)
from hvsock.topology.access import Defaults, Settings

FORMAT: Final = "hvsock-registry"
VERSION: Final = 1
MAX_JSON_BYTES: Final = 64 << 20
"""Longest document that is read: a full registry with a few settings for each service takes a tenth."""

_MEMBERS: Final = ("id", "name", "port_alias", "flags", "created", "changed", "settings", "per_vm", "forward")


_ALL_VMS: Final = "all"


class Document(NamedTuple):
    """What a document holds.

    Attributes:
        services: the services.
        defaults: what holds where no service says anything.
    """

    services: list[ServiceEntry]
    defaults: Defaults


def dump_json(services: Iterable[ServiceEntry], defaults: Defaults | None = None) -> bytes:
    """`services` as a document, in this order; UTF-8, indented.

    Args:
        services: the services.
        defaults: what holds where no service says anything; None for none.
    """
    document: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    if defaults:
        document["defaults"] = defaults_to_value(defaults)
    document["services"] = [entry_to_value(entry) for entry in services]
    return dump_object(document)


def dump_object(document: Any) -> bytes:
    """A JSON object as the bytes of a file: UTF-8, indented."""
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()


def defaults_to_value(defaults: Defaults) -> dict[str, Any]:
    """Defaults as a JSON object, as they stand in a document."""
    return {
        _ALL_VMS if vm_id is None else str(vm_id): settings_to_value(defaults[vm_id])
        for vm_id in sorted(defaults, key=lambda vm_id: vm_id or "")
    }


def entry_to_value(entry: ServiceEntry) -> dict[str, Any]:
    """One entry as a JSON object, as it stands in a document."""
    return {
        "id": str(entry.id),
        "name": entry.name,
        "port_alias": entry.port_alias,
        "flags": sorted(entry.flags),
        "created": time_to_text(entry.created),
        "changed": time_to_text(entry.changed),
        "settings": settings_to_value(entry.settings),
        "per_vm": {str(vm_id): settings_to_value(entry.per_vm[vm_id]) for vm_id in sorted(entry.per_vm)},
        "forward": None if entry.forward is None else str(entry.forward),
    }


def load_json(document: bytes, *, now: float) -> Document:
    """The services and defaults in a document.

    Args:
        document: UTF-8, with a byte order mark or without.
        now: what created and changed are where the document does not say, in seconds since 1970 (UTC).

    Raises:
        UsageError: no such document; one line says where and why.
    """
    members = take_object(parse_object(document), "the document", {"format", "version", "defaults", "services"})
    if members.get("format") != FORMAT:
        raise UsageError(f'not a registry: its "format" is not "{FORMAT}"')
    version = members.get("version")
    if type(version) is not int or version != VERSION:
        raise UsageError(f'a registry of unknown "version"; this hvsock reads {VERSION}')
    services = members.get("services")
    if not isinstance(services, list):
        raise UsageError(f'"services" is an array, not {json_type(services)}')
    if len(services) > MAX_SERVICES:
        raise UsageError(f"{len(services)} services; a registry holds {MAX_SERVICES}")
    defaults = _by_vm(members.get("defaults"), "defaults", all_vms=_ALL_VMS)
    for vm_id, settings in defaults.items():
        try:
            check_defaults(settings)
        except UsageError as error:
            raise UsageError(f"defaults.{vm_id or _ALL_VMS}: {error}") from None
    return Document([_entry(one, f"services[{index}]", now) for index, one in enumerate(services)], defaults)


def parse_object(document: bytes) -> Any:
    """The JSON value in a file, in which no object has a member twice.

    Args:
        document: UTF-8, with a byte order mark or without.

    Raises:
        UsageError: too long, or no JSON.
    """
    if len(document) > MAX_JSON_BYTES:
        raise UsageError(f"the file has {len(document)} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        text = document.removeprefix(codecs.BOM_UTF8).decode()
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8: byte {error.start}") from None
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON: {str(error) or 'too deep'}") from None


def _entry(value: Any, where: str, now: float) -> ServiceEntry:
    members = take_object(value, where, _MEMBERS)
    try:
        return check_entry(
            ServiceEntry(
                id=check_service_id(members.get("id", "")),
                name=check_service_name(members.get("name", "")),
                port_alias=members.get("port_alias"),
                flags=_flags(members.get("flags")),
                created=_time(members.get("created"), "created", now),
                changed=_time(members.get("changed"), "changed", now),
                settings=NO_SETTINGS
                if members.get("settings") is None
                else settings_from_value(members["settings"], "settings"),
                per_vm={vm: one for vm, one in _by_vm(members.get("per_vm"), "per_vm").items() if vm is not None},
                forward=None if members.get("forward") is None else parse_forward(members["forward"]),
            )
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _flags(value: Any) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or not all(isinstance(flag, str) for flag in value):
        raise UsageError("flags is an array of strings")
    return frozenset(value)


def _time(value: Any, where: str, now: float) -> float:
    return now if value is None else time_from_text(value, where)


def _by_vm(value: Any, where: str, all_vms: str | None = None) -> dict[VmId | None, Settings]:
    """Settings by VmId; under None those under the word `all_vms`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where} is an object, not {json_type(value)}")
    found: dict[VmId | None, Settings] = {}
    for text, settings in value.items():
        vm_id = None if text == all_vms else check_vm_id(text)
        if vm_id in found:
            raise UsageError(f"{where} has {vm_id} twice")
        found[vm_id] = settings_from_value(settings, f"{where}.{text}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, member in pairs:
        if name in value:
            raise UsageError(f"an object has the member {quoted(name)} twice")
        value[name] = member
    return value


def _no_constant(text: str) -> Any:
    raise UsageError(f"not JSON: {text}")
