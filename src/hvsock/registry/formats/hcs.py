"""What a Host Compute Service (HCS) document says of hvsocket: read, and written for one VM.

The object HvSocketSystemConfig of HCS's schema 2 has ``DefaultBindSecurityDescriptor``,
``DefaultConnectSecurityDescriptor`` (SDDL) and ``ServiceTable``, by ServiceId, with objects HvSocketServiceConfig:
``BindSecurityDescriptor``, ``ConnectSecurityDescriptor``, ``AllowWildcardBinds`` and ``Disabled``. It is found
where a whole document has it, in ``VirtualMachine.Devices.HvSocket.HvSocketConfig`` or
``Container.HvSocket.Config``, or by itself. What else a document has is for HCS. Within the object, what is not
known is refused: who passes over a member about access decides something else than its author.

``Disabled`` is not in the public schema; it is known from hcsshim. An empty descriptor is none. Wildcard binds
are not allowed where the document does not say so, unlike where there is no document; but a document for all VMs
forbids them for no service that it does not list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import UsageError
from hvsock.registry.entries import MAX_SERVICES, ServiceEntry, check_service_id
from hvsock.registry.formats.jsonfile import dump_object, parse_object
from hvsock.registry.values import json_type, sddl_from_value, take_object
from hvsock.topology.access import Access, Allowed, Defaults, Service, Settings
from hvsock.topology.descriptors import MAX_ACES
from hvsock.topology.sddl import format_sddl

_PATHS: Final = (
    ("VirtualMachine", "Devices", "HvSocket", "HvSocketConfig"),
    ("Container", "HvSocket", "Config"),
    ("HvSocketConfig",),
)
"""Where in a document the object is."""
_DEFAULT_BIND: Final = "DefaultBindSecurityDescriptor"
_DEFAULT_CONNECT: Final = "DefaultConnectSecurityDescriptor"
_TABLE: Final = "ServiceTable"
_BIND: Final = "BindSecurityDescriptor"
_CONNECT: Final = "ConnectSecurityDescriptor"
_WILDCARDS: Final = "AllowWildcardBinds"
_DISABLED: Final = "Disabled"


class HcsConfig(NamedTuple):
    """What a document says of one VM.

    Attributes:
        defaults: its defaults.
        services: the settings of services for it, by id.
    """

    defaults: Settings
    services: Mapping[ServiceId, Settings]


def looks_like_hcs(document: bytes) -> bool:
    """Whether a JSON file may be one for HCS: an object that has a member on one of the paths."""
    value = parse_object(document)
    return isinstance(value, dict) and not {path[0] for path in _PATHS}.union(
        (_DEFAULT_BIND, _DEFAULT_CONNECT, _TABLE)
    ).isdisjoint(value)


def load_hcs(document: bytes, *, for_all: bool = False) -> HcsConfig:
    """What a document says of hvsocket.

    Args:
        document: UTF-8, with a byte order mark or without.
        for_all: whether it is taken for all VMs, and not for one.

    Raises:
        UsageError: no JSON, nothing of hvsocket in it, or a bad value; one line says where and why.
    """
    value, where = _config(parse_object(document))
    members = take_object(value, where, {_DEFAULT_BIND, _DEFAULT_CONNECT, _TABLE})
    table = members.get(_TABLE)
    if not isinstance(table, dict | None):
        raise UsageError(f"{where}.{_TABLE} is an object, not {json_type(table)}")
    if len(table or {}) > MAX_SERVICES:
        raise UsageError(f"{where}.{_TABLE} has {len(table or {})} services; a registry holds {MAX_SERVICES}")
    services: dict[ServiceId, Settings] = {}
    for text, one in (table or {}).items():
        try:
            service_id = check_service_id(text)
        except UsageError as error:
            raise UsageError(f"{where}.{_TABLE}: {error}") from None
        if service_id in services:
            raise UsageError(f"{where}.{_TABLE} has {service_id} twice")
        services[service_id] = _service(one, f"{where}.{_TABLE}.{service_id}")
    defaults = Settings(
        wildcard_binds=None if for_all else False,
        bind=_descriptor(members, _DEFAULT_BIND, where),
        connect=_descriptor(members, _DEFAULT_CONNECT, where),
    )
    return HcsConfig(defaults, services)


def dump_hcs(
    services: Iterable[ServiceEntry], defaults: Defaults, vm_id: VmId | None, *, inbox: bool = False
) -> bytes:
    """The document for one VM, with what is in force for it; UTF-8, indented.

    Users and groups of Unix have SIDs in it that Windows does not know: it allows them nothing and denies them
    nothing.

    Args:
        services: the registered services.
        defaults: the defaults of the registry.
        vm_id: the VM; None for what holds for a VM that nothing is said of.
        inbox: with the in-box services.

    Raises:
        UsageError: a setting names more users and groups than a descriptor has entries; the text says whose.
    """
    known = Service(ServiceId.new(), "", defaults=defaults).settings_for(vm_id)
    config: dict[str, Any] = {
        _DEFAULT_BIND: _sddl(known.bind, "the defaults"),
        _DEFAULT_CONNECT: _sddl(known.connect, "the defaults"),
    }
    config[_TABLE] = {
        str(entry.id): _service_value(entry.service(defaults).settings_for(vm_id), known, repr(entry.name))
        for entry in services
        if inbox or not entry.inbox
    }
    for member in reversed(_PATHS[0]):
        config = {member: config}
    return dump_object(config)


def _config(value: Any) -> tuple[Any, str]:
    """The object about hvsocket in a document, and where it is."""
    if not isinstance(value, dict):
        raise UsageError(f"the document is an object, not {json_type(value)}")
    for path in _PATHS:
        found: Any = value
        for member in path:
            found = found.get(member) if isinstance(found, dict) else None
        if found is not None:
            return found, ".".join(path)
    if not {_DEFAULT_BIND, _DEFAULT_CONNECT, _TABLE}.isdisjoint(value):
        return value, "the document"
    raise UsageError(f"the document says nothing of hvsocket: it has no {' and no '.join(map('.'.join, _PATHS))}")


def _service(value: Any, where: str) -> Settings:
    members = take_object(value, where, {_BIND, _CONNECT, _WILDCARDS, _DISABLED})
    return Settings(
        enabled=not _flag(members, _DISABLED, where),
        wildcard_binds=_flag(members, _WILDCARDS, where),
        bind=_descriptor(members, _BIND, where),
        connect=_descriptor(members, _CONNECT, where),
    )


def _flag(members: Mapping[str, Any], name: str, where: str) -> bool:
    value = members.get(name)
    if not isinstance(value, bool | None):
        raise UsageError(f"{where}.{name} is true or false, not {json_type(value)}")
    return bool(value)


def _descriptor(members: Mapping[str, Any], name: str, where: str) -> Access | None:
    value = members.get(name)
    return None if value is None or value == "" else sddl_from_value(value, f"{where}.{name}")


def _service_value(settings: Settings, known: Settings, whose: str) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for member, one, other in (
        (_BIND, settings.bind, known.bind),
        (_CONNECT, settings.connect, known.connect),
    ):
        if (sddl := _sddl(one, whose)) != _sddl(other, "the defaults"):
            value[member] = sddl
    value[_WILDCARDS] = bool(settings.wildcard_binds)
    if not settings.enabled:
        value[_DISABLED] = True
    return value


def _sddl(access: Access | None, whose: str) -> str:
    """Who may, as SDDL that can be read again."""
    access = Allowed() if access is None else access
    descriptor = access.descriptor() if isinstance(access, Allowed) else access
    entries = 0 if descriptor.dacl is None else len(descriptor.dacl.aces)
    if entries > MAX_ACES:
        text = f"{whose}: so many users and groups would be {entries} entries of a descriptor, which has at most "
        raise UsageError(f"{text}{MAX_ACES}; name groups instead of users, or export as JSON")
    return format_sddl(descriptor)
