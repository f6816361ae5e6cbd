"""Entries of the registry: what a registered service is, and what may be registered.

Pure: no file and no clock. Sources: the page "Make your own integration services" of the Microsoft
documentation (ElementName, bare GUID keys), hvsocket.h (vsock template).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, NamedTuple

from hvsock.addresses import SERVICE_WILDCARD, WELL_KNOWN_VMIDS, ServiceId, VmId, parse_service_id
from hvsock.constants import INTEGRATION_SERVICES, OPERATION_PATTERN, SESSION_SERVICES, VSOCK_PORT_MAX
from hvsock.errors import UsageError
from hvsock.topology.access import DEFAULTS, Allowed, Defaults, Service, Settings
from hvsock.topology.sddl import format_sddl, parse_sddl

from .forwards import Forward, check_forward

MAX_SERVICE_NAME_CHARACTERS: Final = 255
"""Longest friendly name. The original documents no limit for ElementName; 255 is where the Windows
registry stops for names of keys, and keeps a name on one line of a table."""
MAX_SERVICES: Final = 16_384
"""Most services in one registry; the broker holds them all in memory."""
MAX_VMS_WITH_SETTINGS: Final = 4_096
"""Most VMs for which one service has settings of their own."""
MAX_PORT_ALIAS: Final = VSOCK_PORT_MAX - 1
"""Largest port alias: the port above it is VMADDR_PORT_ANY, which no guest connects to (linux/vm_sockets.h)."""
MAX_VMS_WITH_DEFAULTS: Final = 4_096
"""Most VMs that have defaults of their own."""
MAX_UNIX_ID: Final = 0xFFFFFFFE
"""Largest user or group id; the one above it means "none" to the kernel."""
MAX_ALLOWED_IDS: Final = 1_024
"""Most users, and most groups, that one setting names."""
MAX_DENIED: Final = 64
"""Most operations that one setting denies; a service has a dozen."""
_OPERATION = re.compile(OPERATION_PATTERN)

INBOX: Final = "inbox"
"""Flag: the service comes with the registry; it cannot be unregistered, nor its name or port alias changed."""
FLAGS: Final = frozenset({INBOX})
"""Every flag that an entry can have."""

QUOTED_CHARACTERS: Final = 80
"""How much of a text that is refused its refusal repeats."""

NO_SETTINGS: Final = Settings()
"""Everything left to the level below."""

_JOINERS: Final = frozenset("\u200c\u200d")
"""ZERO WIDTH NON-JOINER and JOINER: several scripts are not spelt right without them."""
_NOT_TEXT: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
"""Unicode categories without letters: controls, format characters, private use, surrogates, separators."""


class Keep(Enum):
    """The type of :data:`KEEP`."""

    KEEP = "keep"

    def __repr__(self) -> str:
        return self.name


KEEP: Final = Keep.KEEP
"""Leaves a setting as it is, where None would reset it."""


class ServiceName(NamedTuple):
    """What a ``.reg`` file knows of a service.

    Attributes:
        id: its ServiceId.
        name: its friendly name (ElementName).
    """

    id: ServiceId
    name: str


@dataclass(frozen=True, slots=True)
class ServiceEntry:
    """One registered service.

    Attributes:
        id: its ServiceId.
        name: its friendly name (ElementName), unique without regard to case, in Unicode's form NFC.
        port_alias: the AF_VSOCK port by which Linux guests reach it, for a service outside the vsock
            template; None for none.
        flags: a subset of :data:`FLAGS`.
        created: when it was registered, in seconds since 1970 (UTC).
        changed: when it was changed last, in seconds since 1970 (UTC).
        settings: its settings for all VMs.
        per_vm: on top of them, the settings for single VMs.
        forward: where the existing server is that it stands for; None for a service with programs of its own.
    """

    id: ServiceId
    name: str
    port_alias: int | None = None
    flags: frozenset[str] = frozenset()
    created: float = 0.0
    changed: float = 0.0
    settings: Settings = NO_SETTINGS
    per_vm: Mapping[VmId, Settings] = field(default_factory=dict)
    forward: Forward | None = None

    @property
    def inbox(self) -> bool:
        """Whether the service comes with the registry: its name, id and port alias are fixed."""
        return INBOX in self.flags

    @property
    def port(self) -> int | None:
        """The AF_VSOCK port by which Linux guests reach it: of the template, else its alias, else None."""
        return self.port_alias if self.id.port is None else self.id.port

    @property
    def touched(self) -> bool:
        """Whether any setting was made, for all VMs or for one."""
        return bool(self.per_vm) or self.settings != NO_SETTINGS

    def service(self, defaults: Defaults | None = None) -> Service:
        """The entry as the rules of access take it.

        Args:
            defaults: those of the registry; None for none.
        """
        built_in = _OFF_BY_DEFAULT.get(self.id, DEFAULTS) if self.inbox else DEFAULTS
        return Service(self.id, self.name, self.settings, self.per_vm, self.port, built_in, defaults or {})


_OFF_BY_DEFAULT: Final = {
    ServiceId.from_port(one.port): replace(DEFAULTS, enabled=False)
    for one in INTEGRATION_SERVICES
    if not one.enabled
}


def inbox_entries(now: float) -> tuple[ServiceEntry, ...]:
    """The services that come with every registry: those of the original, and hvsock's integration services.

    The former have Data1 of their ids as port aliases, the latter are in the vsock template.

    Args:
        now: when they came into the registry, in seconds since 1970 (UTC).
    """
    services = [(ServiceId(one.id), one.name, ServiceId(one.id).data1) for one in SESSION_SERVICES]
    ours = [(ServiceId.from_port(one.port), one.name, None) for one in INTEGRATION_SERVICES]
    return tuple(
        ServiceEntry(id_, name, port_alias, flags=frozenset({INBOX}), created=now, changed=now)
        for id_, name, port_alias in (*services, *ours)
    )


def quoted(text: str) -> str:
    """`text` in quotes for an error of one line, cut to a bounded length."""
    return repr(text) if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]!r}..."


def name_key(name: str) -> str:
    """What two names share exactly when they are the same name: case and composition do not count.

    Unicode's canonical caseless match (The Unicode Standard, section 3.13, D145).
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def check_service_name(name: str) -> str:
    """`name` in form NFC, if a service can be called so: text in any script, without blanks at its ends.

    Raises:
        UsageError: not text, empty, too long, with characters that are none of any script, or something
            that an address reads as a GUID or as a port.
    """
    if not isinstance(name, str):
        raise UsageError(f"a service's name is text, not {type(name).__name__}")
    if not name.strip():
        raise UsageError("a service's name cannot be empty")
    if len(name) > 4 * MAX_SERVICE_NAME_CHARACTERS:  # composing shortens a text to a quarter at most
        raise _too_long(len(name))
    name = unicodedata.normalize("NFC", name)
    if len(name) > MAX_SERVICE_NAME_CHARACTERS:
        raise _too_long(len(name))
    if name != name.strip():
        raise UsageError(f"a service's name has no blanks at its ends: {quoted(name)}")
    for character in name:
        if not _is_text(character):
            raise UsageError(f"a service's name is printable text, without U+{ord(character):04X}: {quoted(name)}")
    if not any(c.isprintable() and not c.isspace() for c in name):
        raise UsageError(f"a service's name needs something visible, unlike {quoted(name)}")
    if parse_service_id(name) is not None or _is_number(name):
        raise UsageError(f"a service's name cannot be a GUID or a port: {quoted(name)}")
    return name


def _too_long(characters: int) -> UsageError:
    return UsageError(f"a service's name has at most {MAX_SERVICE_NAME_CHARACTERS} characters, not {characters}")


def _is_text(character: str) -> bool:
    category = unicodedata.category(character)
    if category == "Cn":  # not assigned: a newer Unicode may have it as a letter, but never the noncharacters
        return not (ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF)
    return category not in _NOT_TEXT or character in _JOINERS


def _is_number(name: str) -> bool:
    digits = name[2:] if name[:2].lower() == "0x" else ""
    return (name.isascii() and name.isdecimal()) or (
        digits != "" and set(digits.lower()) <= set("0123456789abcdef")
    )


def check_service_id(text: str) -> ServiceId:
    """The ServiceId that `text` spells as a GUID, if a service can be registered under it.

    Raises:
        UsageError: not a GUID, or the GUID of zeros, which stands for "any".
    """
    if not isinstance(text, str):
        raise UsageError(f"a ServiceId is text, not {type(text).__name__}")
    try:
        service_id = ServiceId(text)
    except ValueError:
        raise UsageError(f"not a GUID: {quoted(text)} (expected like {SESSION_SERVICES[0].id})") from None
    if service_id == SERVICE_WILDCARD:
        raise UsageError(f"{service_id} means any service and cannot be registered")
    return service_id


def check_port_alias(port: int | None, service_id: ServiceId) -> int | None:
    """`port`, if it can be the port alias of that service; None is none.

    Raises:
        UsageError: out of range, or the service is in the vsock template and so has its port already.
    """
    if port is None:
        return None
    if not isinstance(port, int) or isinstance(port, bool):
        raise UsageError(f"a port alias is a whole number, not {type(port).__name__}")
    if not 0 <= port <= MAX_PORT_ALIAS:
        shown = port if abs(port) < 1 << 64 else "a number of more than 64 bits"
        raise UsageError(f"a port alias is 0 to {MAX_PORT_ALIAS}, not {shown}")
    if service_id.port is not None:
        raise UsageError(f"{service_id} is port {service_id.port} in itself and takes no port alias")
    return port


def check_vm_id(text: str) -> VmId:
    """The VmId of one partition that `text` spells as a GUID.

    Raises:
        UsageError: not a GUID, or one of HV_GUID_*, which stand for no partition in particular.
    """
    if not isinstance(text, str):
        raise UsageError(f"a VmId is text, not {type(text).__name__}")
    try:
        vm_id = VmId(text)
    except ValueError:
        raise UsageError(f"not a VmId: {quoted(text)} (expected a GUID)") from None
    if vm_id in WELL_KNOWN_VMIDS.values():
        raise UsageError(f"{vm_id} is not the VmId of one partition, so it has no settings")
    return vm_id


def check_settings(settings: Settings) -> Settings:
    """`settings`, if they can be stored.

    Raises:
        UsageError: a user or group id out of range, or too many of them, or too long a descriptor; or what is no
            operation, or too many of those.
    """
    denied = settings.denied or ()
    if len(denied) > MAX_DENIED:
        raise UsageError(f"one setting denies at most {MAX_DENIED} operations, not {len(denied)}")
    for operation in denied:
        if not isinstance(operation, str) or not _OPERATION.fullmatch(operation):
            raise UsageError(f"{quoted(str(operation))} is no operation: they are like kvp.set, or kvp.*")
    for value in (settings.enabled, settings.wildcard_binds):
        if value is not None and not isinstance(value, bool):
            raise UsageError(f"enabled and wildcard_binds are true, false or none, not {type(value).__name__}")
    for access in (settings.bind, settings.connect):
        if access is not None and not isinstance(access, Allowed):
            parse_sddl(format_sddl(access))
            continue
        for ids in () if access is None else (access.uids, access.gids):
            if len(ids) > MAX_ALLOWED_IDS:
                raise UsageError(f"one setting names at most {MAX_ALLOWED_IDS} users or groups, not {len(ids)}")
            for one in ids:
                if not isinstance(one, int) or isinstance(one, bool) or not 0 <= one <= MAX_UNIX_ID:
                    raise UsageError(f"a user or group id is 0 to {MAX_UNIX_ID}")
    return settings


def check_defaults(settings: Settings) -> Settings:
    """`settings`, if they can be stored as the defaults of all services.

    Raises:
        UsageError: they enable or disable, which is said of one service; or see :func:`check_settings`.
    """
    if settings.enabled is not None or settings.denied is not None:
        raise UsageError("defaults say who may bind and connect; enable, disable and deny services one by one")
    return check_settings(settings)


def check_entry(entry: ServiceEntry) -> ServiceEntry:
    """`entry` with its name in form NFC, if a registry can hold it.

    Raises:
        UsageError: any part of it cannot be.
    """
    service_id = check_service_id(entry.id)
    name = check_service_name(entry.name)
    check_port_alias(entry.port_alias, service_id)
    if not entry.flags <= FLAGS:
        raise UsageError(f"{quoted(name)} has an unknown flag: {quoted(min(entry.flags - FLAGS))}")
    check_settings(entry.settings)
    if len(entry.per_vm) > MAX_VMS_WITH_SETTINGS:
        raise UsageError(
            f"a service has settings for at most {MAX_VMS_WITH_SETTINGS} VMs, not {len(entry.per_vm)}"
        )
    for vm_id, settings in entry.per_vm.items():
        check_vm_id(vm_id)
        check_settings(settings)
    if entry.inbox and entry.forward is not None:
        raise UsageError(f"{quoted(name)} is an in-box service, which has its own programs and takes no forward")
    return replace(entry, id=service_id, name=name, forward=check_forward(entry.forward))
