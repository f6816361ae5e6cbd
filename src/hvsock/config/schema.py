"""The text of a configuration file as settings, or one error that names the key (pure).

Everything is looked at, in every profile, whichever is used: a mistake shows at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeVar

from hvsock.addresses import WELL_KNOWN_VMIDS, ServiceId, VmId, parse_service_id
from hvsock.constants import HVSOCKET_CONNECT_TIMEOUT_MAX, VSOCK_CID_MAX, VSOCK_PORT_MAX, VSOCK_RESERVED_CIDS
from hvsock.errors import NotFoundError, UsageError
from hvsock.hybrid.profiles import PROFILES, profile_named
from hvsock.topology.partitions import check_partition_name

from .settings import Guests, Settings, Vm, vm_id_of_cid, vm_id_of_path

MAX_PROFILES: Final = 64
"""Most profiles of a file: some for each place where one works."""
MAX_VMS: Final = 1024
"""Most VMs of a profile, as many as fit into a file with a line for each."""
MAX_SERVICES: Final = 1024
"""Most named services of a profile."""
MAX_USERS: Final = 16
"""Most users whose QEMUs count."""
MAX_NAME_CHARACTERS: Final = 100
"""Longest name of a profile, a transport, a user or a service, and longest URI."""
MAX_PATH_BYTES: Final = 4096
"""PATH_MAX of Linux."""
QUOTED_CHARACTERS: Final = 60
"""How much of a value that was not expected an error repeats."""
DEFAULT_PROFILE: Final = "default"
"""The profile that is used where nobody names one."""
MAX_KEY_DOTS: Final = 64
"""Most dots of one key, where four are needed: tomllib takes minutes for a key that is a file's whole length."""

_NO_KEY: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"{3,5}|\\?\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|#[^\n]*",
    re.DOTALL,
)
"""Texts and comments, whose dots are not a key's. Those that do not end reach as far as they can, so that nothing
is looked at twice; tomllib refuses them."""
_BESIDE_KEYS: Final = re.compile(r"[=,{}\[\]]")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Configuration:
    """A file.

    Attributes:
        file: its path, for errors.
        profile: the one that it says is to be used; None for the one called "default", if there is one.
        profiles: all by name.
    """

    file: str
    profile: str | None
    profiles: Mapping[str, Settings]

    def chosen(self, name: str | None) -> Settings:
        """The profile called `name`; None for the file's own choice.

        Raises:
            UsageError: there is none.
        """
        name = name or self.profile
        if name is None:
            return self.profiles.get(DEFAULT_PROFILE, Settings())
        found = self.profiles.get(name)
        if found is None:
            there = ", ".join(self.profiles) or "none"
            raise UsageError(f"{self.file}: there is no profile {_quoted(name)}; there are: {there}")
        return found


def parse(text: str, file: str) -> Configuration:
    """What a file says.

    Args:
        text: its text.
        file: its path, for errors.

    Raises:
        UsageError: it is no TOML, or a key is unknown or has no such value; the file and the key are named.
    """
    _check_dots(text, file)
    try:
        top = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits are a plain ValueError
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"{file}: it is no TOML: {why}") from None
    root = _Table(top, file, "")
    root.knows("profile", "profiles")
    tables = root.tables("profiles", MAX_PROFILES)
    profiles = {_name(name, table): _settings(name, table) for name, table in tables.items()}
    made = Configuration(file, root.get("profile", _word), MappingProxyType(profiles))
    made.chosen(None)
    return made


def _check_dots(text: str, file: str) -> None:
    bare = _NO_KEY.sub(lambda found: "\n" * found[0].count("\n"), text)
    for number, line in enumerate(bare.split("\n"), 1):
        if any(part.count(".") > MAX_KEY_DOTS for part in _BESIDE_KEYS.split(line)):
            raise UsageError(f"{file}: line {number}: a key has at most {MAX_KEY_DOTS} dots")


def _settings(name: str, table: _Table) -> Settings:
    table.knows("transport", "vmm", "connect_timeout", "guests", "libvirt", "qemu_users", "vms", "services")
    vmm = table.get("vmm", _vmm)
    rows = table.tables("vms", MAX_VMS)
    vms = tuple(_vm(name, row, vmm) for name, row in rows.items())
    _check_unique(table, vms, "name", lambda vm: vm.name.casefold())
    _check_unique(table, vms, "path", lambda vm: vm.path)
    _check_unique(table, vms, "cid", lambda vm: vm.cid)
    _check_unique(table, vms, "id", lambda vm: vm.id)
    return Settings(
        where=f"{table.file}: profiles.{_shown(name)}",
        transport=table.get("transport", _word),
        vmm=vmm,
        connect_timeout=table.get("connect_timeout", _milliseconds),
        guests=table.get("guests", _guests),
        libvirt=table.get("libvirt", _word) or Settings().libvirt,
        qemu_users=table.get("qemu_users", _users) or (),
        vms=vms,
        services=MappingProxyType(_services(table.table("services"))),
    )


def _vm(name: str, row: _Table, vmm: str | None) -> Vm:
    row.knows("id", "cid", "path", "vmm")
    try:
        check_partition_name(name)
    except UsageError as error:
        raise row.wrong(str(error)) from None
    cid, path = row.get("cid", _cid), row.get("path", _path)
    vm_id = row.get("id", _vm_id)
    if vm_id is None and cid is None and path is None:
        raise row.wrong("a VM has at least one of id, cid and path")
    if vm_id is not None and cid in VSOCK_RESERVED_CIDS:
        raise row.wrong(f"context id {cid} is no VM's, and has no id of its own", "id")
    if vm_id is None:
        vm_id = vm_id_of_cid(cid) if cid is not None else vm_id_of_path(path or "")
    return Vm(name, vm_id, cid, path, row.get("vmm", _vmm) or vmm)


def _check_unique(table: _Table, vms: tuple[Vm, ...], what: str, key: Callable[[Vm], Any]) -> None:
    seen: dict[Any, str] = {}
    for vm in vms:
        value = key(vm)
        if value is not None and seen.setdefault(value, vm.name) != vm.name:
            raise table.wrong(f"the VMs {_shown(seen[value])} and {_shown(vm.name)} have the same {what}", "vms")


def _services(table: _Table) -> dict[str, ServiceId]:
    if len(table.values) > MAX_SERVICES:
        raise table.wrong(f"there are at most {MAX_SERVICES} services, not {len(table.values)}")
    found = {}
    for name in table.values:
        _name(name, table)
        folded = name.casefold()
        if parse_service_id(name) is not None or folded in found:
            raise table.wrong("a service's name is no port, no GUID, and there once", name)
        service = table.get(name, _service)
        assert service is not None
        found[folded] = service
    return found


# -- tables


class _Table:
    """A table of the file; `place` is its key in full."""

    def __init__(self, values: Mapping[str, Any], file: str, place: str) -> None:
        self.values = values
        self.file = file
        self._place = place

    def wrong(self, why: str, key: str = "") -> UsageError:
        place = ".".join(part for part in (self._place, _shown(key) if key else "") if part)
        return UsageError(f"{self.file}: {place}: {why}" if place else f"{self.file}: {why}")

    def knows(self, *keys: str) -> None:
        for key in self.values:
            if key not in keys:
                raise self.wrong(f"there is no such key; there are: {', '.join(keys)}", key)

    def get(self, key: str, check: Callable[[Any], _T]) -> _T | None:
        """The value of a key as `check` makes it; None where it is not there."""
        if key not in self.values:
            return None
        try:
            return check(self.values[key])
        except ValueError as error:
            raise self.wrong(str(error), key) from None

    def table(self, key: str) -> _Table:
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(f"it is a table, not {_quoted(value)}", key)
        place = f"{self._place}.{_shown(key)}" if self._place else _shown(key)
        return _Table(value, self.file, place)

    def tables(self, key: str, most: int) -> dict[str, _Table]:
        """The tables in a table, at most so many."""
        outer = self.table(key)
        if len(outer.values) > most:
            raise self.wrong(f"there are at most {most}, not {len(outer.values)}", key)
        return {name: outer.table(name) for name in outer.values}


# -- values: each raises a ValueError, whose text goes behind the key


def _text(value: Any, most: int = MAX_NAME_CHARACTERS) -> str:
    if not isinstance(value, str):
        raise ValueError(f"it is text, not {_quoted(value)}")
    if not value or not value.isprintable() or len(value) > most:
        raise ValueError(f"it is printable text of at most {most} characters, not {_quoted(value)}")
    return value


def _word(value: Any) -> str:
    return _text(value)


def _number(value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"it is a number from {low} to {high}, not {_quoted(value)}")
    return value


def _cid(value: Any) -> int:
    return _number(value, 1, VSOCK_CID_MAX - 1)


def _milliseconds(value: Any) -> int:
    most = HVSOCKET_CONNECT_TIMEOUT_MAX / 1000
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.001 <= value <= most:
        raise ValueError(f"it is seconds from 0.001 to {most:g}, not {_quoted(value)}")
    return round(value * 1000)


def _vm_id(value: Any) -> VmId:
    text = _text(value)
    try:
        found = VmId(text)
    except ValueError:
        raise ValueError(f"it is a GUID, not {_quoted(value)}") from None
    if found in WELL_KNOWN_VMIDS.values() or found.cid is not None:
        raise ValueError(f"it is the GUID of one VM, and {found} stands for others")
    return found


def _service(value: Any) -> ServiceId:
    text = value if isinstance(value, str) else str(_number(value, 0, VSOCK_PORT_MAX))
    found = parse_service_id(text)
    if found is None:
        raise ValueError(f"it is a port or a GUID, not {_quoted(value)}")
    return found


def _path(value: Any) -> str:
    path = _text(value, MAX_PATH_BYTES)
    if not path.startswith("/") or path.endswith("/") or len(path.encode()) > MAX_PATH_BYTES:
        raise ValueError(f"it is the absolute path of a socket, not {_quoted(value)}")
    return path


def _vmm(value: Any) -> str:
    try:
        return profile_named(_text(value)).name
    except NotFoundError:
        raise ValueError(f"it is one of {', '.join(PROFILES)}, not {_quoted(value)}") from None


def _guests(value: Any) -> Guests:
    try:
        return Guests(_text(value))
    except ValueError:
        raise ValueError(f"it is one of {', '.join(Guests)}, not {_quoted(value)}") from None


def _users(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_USERS:
        raise ValueError(f"it is a list of at most {MAX_USERS} users, not {_quoted(value)}")
    return tuple(_text(one) for one in value)


def _name(name: str, table: _Table) -> str:
    try:
        return _text(name)
    except ValueError as error:
        raise table.wrong(f"of its name: {error}") from None


def _shown(key: str) -> str:
    """A key as TOML has it."""
    is_plain = key.isascii() and key.replace("-", "_").isidentifier() and len(key) <= QUOTED_CHARACTERS
    return key if is_plain else _quoted(key)


def _quoted(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a table" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 64:  # Python may refuse to write it
        return "a number of more than 64 bits"
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= QUOTED_CHARACTERS else f"{shown[:QUOTED_CHARACTERS]}..."
