"""A fake of the module winreg with the one hive that matters.

From Doc/library/winreg.rst and PC/winreg.c: keys are found in any case and keep the spelling of who made them.
What is not there is FileNotFoundError (winerror 2), what may not be is PermissionError (5), the end of an
enumeration is OSError (259). A value is set only by a handle that was opened for that. A 32-bit process sees
another branch unless it asks for KEY_WOW64_64KEY. DeleteKeyEx takes no key that has keys; a closed handle is of
no use any more.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

GUEST_SERVICES = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"
NOW = 133_500_000_000_000_000
"""A moment in 2024, in ticks of 100 ns since 1601."""


@dataclass
class Key:
    """A key of the hive."""

    name: str
    keys: dict[str, Key] = field(default_factory=dict)
    values: dict[str, tuple[Any, int]] = field(default_factory=dict)
    changed: int = NOW


@dataclass
class Handle:
    """An open key."""

    key: Key
    access: int
    open: bool = True


def failure(kind: type[OSError], number: int) -> OSError:
    """The exception of PyErr_SetFromWindowsErr."""
    error = kind(number, f"what Windows says of {number}", None, number)
    if sys.platform != "win32":
        error.winerror = number  # type: ignore[attr-defined]
    return error


class FakeWinreg:
    """The module, for a process that is elevated or not, of 64 or 32 bits."""

    HKEY_LOCAL_MACHINE = 0x80000002
    KEY_READ = 0x20019
    KEY_WRITE = 0x20006
    KEY_WOW64_64KEY = 0x0100
    REG_SZ = 1
    REG_DWORD = 4
    _SET_VALUE = 0x0002
    _CREATE_SUB_KEY = 0x0004
    _QUERY_VALUE = 0x0001

    def __init__(self, *, elevated: bool = True, hyper_v: bool = True, bits: int = 64) -> None:
        self.elevated = elevated
        self.bits = bits
        self.handles: list[Handle] = []
        self.hives = {64: Key(""), 32: Key("")}
        if hyper_v:
            self.make(GUEST_SERVICES)

    def make(self, path: str, **values: Any) -> Key:
        """A key that somebody else made, with all above it."""
        key = self.hives[64]
        for part in path.split("\\"):
            key = key.keys.setdefault(part.lower(), Key(part))
        key.values.update({name: (value, self.REG_SZ) for name, value in values.items()})
        return key

    def service(self, name: str, **values: Any) -> Key:
        """A key of a service."""
        return self.make(f"{GUEST_SERVICES}\\{name}", **values)

    def _key(self, key: Any, access: int, needed: int = 0) -> Key:
        if key == self.HKEY_LOCAL_MACHINE:
            return self.hives[64 if access & self.KEY_WOW64_64KEY else self.bits]
        assert isinstance(key, Handle)
        if not key.open:
            raise failure(OSError, 6)
        if key.access & needed != needed:
            raise failure(PermissionError, 5)
        return key.key

    @contextmanager
    def _opened(self, key: Key, access: int) -> Iterator[Handle]:
        handle = Handle(key, access)
        self.handles.append(handle)
        try:
            yield handle
        finally:
            handle.open = False

    def OpenKeyEx(self, key: Any, sub_key: str, reserved: int, access: int) -> Any:  # noqa: N802
        found = self._key(key, access)
        for part in sub_key.split("\\"):
            if part.lower() not in found.keys:
                raise failure(FileNotFoundError, 2)
            found = found.keys[part.lower()]
        if access & (self._SET_VALUE | self._CREATE_SUB_KEY) and not self.elevated:
            raise failure(PermissionError, 5)
        return self._opened(found, access)

    def CreateKeyEx(self, key: Any, sub_key: str, reserved: int, access: int) -> Any:  # noqa: N802
        parent = self._key(key, access, self._CREATE_SUB_KEY)
        assert "\\" not in sub_key
        return self._opened(parent.keys.setdefault(sub_key.lower(), Key(sub_key)), access)

    def DeleteKeyEx(self, key: Any, sub_key: str, access: int, reserved: int) -> None:  # noqa: N802
        parent = self._key(key, access, self._CREATE_SUB_KEY)
        if sub_key.lower() not in parent.keys:
            raise failure(FileNotFoundError, 2)
        if parent.keys[sub_key.lower()].keys:
            raise failure(PermissionError, 5)
        del parent.keys[sub_key.lower()]

    def EnumKey(self, key: Any, index: int) -> str:  # noqa: N802
        names = sorted(self._key(key, 0, self._QUERY_VALUE).keys.values(), key=lambda one: one.name.lower())
        if index >= len(names):
            raise failure(OSError, 259)
        return names[index].name

    def QueryInfoKey(self, key: Any) -> tuple[int, int, int]:  # noqa: N802
        found = self._key(key, 0, self._QUERY_VALUE)
        return len(found.keys), len(found.values), found.changed

    def QueryValueEx(self, key: Any, name: str) -> tuple[Any, int]:  # noqa: N802
        values = self._key(key, 0, self._QUERY_VALUE).values
        if name not in values:
            raise failure(FileNotFoundError, 2)
        return values[name]

    def SetValueEx(self, key: Any, value_name: str, reserved: Any, type: int, value: str) -> None:  # noqa: N802
        self._key(key, 0, self._SET_VALUE).values[value_name] = (value, type)
