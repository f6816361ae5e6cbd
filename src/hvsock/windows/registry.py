"""The registry of services of this Windows: the key GuestCommunicationServices, used like the fabric's.

Each service is a key whose name is the bare GUID, with the value ElementName; no other value is documented. So
there are no port aliases, forwards or settings here: what Windows lets in is up to it.
"""

from __future__ import annotations

import difflib
import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Protocol, Self

from hvsock.addresses import ServiceId, parse_service_id
from hvsock.constants import SESSION_SERVICES
from hvsock.errors import DuplicateError, NoFabricError, NotFoundError, RefusedError, UsageError
from hvsock.registry.entries import (
    INBOX,
    MAX_SERVICES,
    QUOTED_CHARACTERS,
    ServiceEntry,
    check_service_id,
    check_service_name,
    name_key,
    quoted,
)
from hvsock.registry.formats import ELEMENT_NAME, GUEST_COMMUNICATION_SERVICES
from hvsock.registry.formats.powershell import single_quoted

EPOCH_TICKS: Final = 116_444_736_000_000_000
"""The year 1970 in the registry's time: ticks of 100 ns since 1601 (FILETIME)."""
TICKS_PER_SECOND: Final = 10_000_000
"""Of the registry's time."""
SUGGESTIONS: Final = 3
"""Most names, or ids, that an error lists."""

_SESSION_IDS: Final = frozenset(one.id for one in SESSION_SERVICES)


class Winreg(Protocol):
    """What this needs of the module winreg."""

    @property
    def HKEY_LOCAL_MACHINE(self) -> int: ...  # noqa: N802
    @property
    def KEY_READ(self) -> int: ...  # noqa: N802
    @property
    def KEY_WRITE(self) -> int: ...  # noqa: N802
    @property
    def KEY_WOW64_64KEY(self) -> int: ...  # noqa: N802
    @property
    def REG_SZ(self) -> int: ...  # noqa: N802
    def OpenKeyEx(  # noqa: N802
        self, key: Any, sub_key: str, reserved: int, access: int, /
    ) -> AbstractContextManager[Any]: ...
    def CreateKeyEx(  # noqa: N802
        self, key: Any, sub_key: str, reserved: int, access: int, /
    ) -> AbstractContextManager[Any]: ...
    def DeleteKeyEx(self, key: Any, sub_key: str, access: int, reserved: int, /) -> None: ...  # noqa: N802
    def EnumKey(self, key: Any, index: int, /) -> str: ...  # noqa: N802
    def QueryInfoKey(self, key: Any, /) -> tuple[int, int, int]: ...  # noqa: N802
    def QueryValueEx(self, key: Any, name: str, /) -> tuple[Any, int]: ...  # noqa: N802
    def SetValueEx(  # noqa: N802
        self, key: Any, value_name: str, reserved: Any, type: int, value: str, /
    ) -> None: ...


def _own_winreg() -> Winreg:
    if sys.platform == "win32":
        import winreg

        return winreg
    raise UsageError("the registry of Windows is on Windows; here services are in the fabric's folder")


class WindowsRegistry:
    """The registry of services of this host.

    Everybody may read it, administrators may change it. A key under it that Windows takes for no service
    (its name is no bare GUID, or it has no ElementName) is left alone, and told by :meth:`oddities`.

    Args:
        winreg: the module, or what stands in for it; None for this Windows' own.

    Raises:
        UsageError: this is not Windows.
    """

    def __init__(self, winreg: Winreg | None = None) -> None:
        self._winreg = _own_winreg() if winreg is None else winreg

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Nothing: no key stays open."""

    @property
    def path(self) -> str:
        """The registry's key."""
        return rf"HKEY_LOCAL_MACHINE\{GUEST_COMMUNICATION_SERVICES}"

    # Reading

    def entries(self) -> list[ServiceEntry]:
        """Every registered service, by name; times are those of the keys.

        Raises:
            NoFabricError: there is no such key, as Hyper-V is not there.
        """
        return sorted(self._read()[0], key=lambda entry: (name_key(entry.name), entry.id))

    def oddities(self) -> list[str]:
        """One line for each key that is no service to Windows.

        Raises:
            NoFabricError: there is no such key, as Hyper-V is not there.
        """
        return self._read()[1]

    def get(self, service_id: ServiceId) -> ServiceEntry | None:
        """The service with that id, or None.

        Raises:
            NoFabricError: there is no such key, as Hyper-V is not there.
        """
        return next((entry for entry in self.entries() if entry.id == service_id), None)

    def find(self, text: str) -> ServiceEntry:
        """The service that `text` means: a GUID, a port (decimal, or hexadecimal with 0x), or a name in any case.

        Raises:
            NotFoundError: there is none, or several have that name; the text names what is spelt like it.
            NoFabricError: there is no such key, as Hyper-V is not there.
        """
        entries = self.entries()
        wanted = parse_service_id(text)
        if wanted is None:
            found = [entry for entry in entries if name_key(entry.name) == name_key(text)]
        else:
            found = [entry for entry in entries if entry.id == wanted]
        if not found:
            raise NotFoundError(f"no service {quoted(text)} is registered{_suggestions(entries, text)}")
        if len(found) > 1:
            ids = ", ".join(entry.id for entry in found[:SUGGESTIONS])
            raise NotFoundError(f"{len(found)} services are called {quoted(text)}; say which by its GUID: {ids}")
        return found[0]

    # Changing

    def register(self, name: str, id: str | None = None) -> ServiceEntry:
        """Register a service. A key with that GUID and without a name, as of a crash, is completed.

        Args:
            name: its friendly name: 1 to 255 characters of any script, and nothing that reads as a GUID or a port.
            id: its GUID; None for a fresh one.

        Returns:
            The new entry.

        Raises:
            UsageError: a bad name or id, or there are too many services.
            DuplicateError: the id or the name is in use.
            RefusedError: this process is not elevated; the text says what to run.
            NoFabricError: there is no such key, as Hyper-V is not there.
        """
        service_id = ServiceId.new() if id is None else check_service_id(id)
        name = check_service_name(name)
        entries = self.entries()
        for entry in entries:
            if entry.id == service_id:
                raise DuplicateError(f"{service_id} is registered already, as {entry.name!r}")
            if name_key(entry.name) == name_key(name):
                raise DuplicateError(f"the name {entry.name!r} is in use, by {entry.id}")
        if len(entries) >= MAX_SERVICES:
            raise UsageError(f"there are {MAX_SERVICES} services; unregister some first")
        try:
            with self._open_to_change() as root:
                self._write(root, service_id, name)
        except PermissionError:
            made = f"New-Item '{_key_of(service_id)}' -Force"
            raise not_elevated(f"({made}).SetValue('{ELEMENT_NAME}', {single_quoted(name)})") from None
        found = self.get(service_id)
        if found is None:
            raise NotFoundError(f"{service_id} was unregistered as soon as it was registered")
        return found

    def unregister(self, key: str) -> ServiceEntry:
        """Take a service out.

        Args:
            key: what :meth:`find` takes.

        Returns:
            The entry as it was.

        Raises:
            NotFoundError: there is no such service.
            RefusedError: this process is not elevated, or it is one of PowerShell Direct's.
            NoFabricError: there is no such key, as Hyper-V is not there.
        """
        entry = self.find(key)
        if entry.inbox:
            raise RefusedError(f"{entry.name!r} is Windows' own, for PowerShell Direct, and stays registered")
        try:
            with self._open_to_change() as root:
                self._delete(root, entry.id)
        except PermissionError:
            raise not_elevated(f"Remove-Item '{_key_of(entry.id)}'") from None
        except FileNotFoundError:
            raise NotFoundError(f"{entry.name!r} was unregistered by somebody else meanwhile") from None
        return entry

    # The key

    def _access(self, access: int) -> int:
        """With the view of 64-bit programs, where the services are also for a Python of 32 bits."""
        return access | self._winreg.KEY_WOW64_64KEY

    def _open(self, access: int) -> AbstractContextManager[Any]:
        try:
            return self._winreg.OpenKeyEx(
                self._winreg.HKEY_LOCAL_MACHINE, GUEST_COMMUNICATION_SERVICES, 0, self._access(access)
            )
        except FileNotFoundError:
            raise NoFabricError(
                "this Windows has no registry of services; switch Hyper-V on, as administrator: "
                "Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V-All"
            ) from None

    def _open_to_change(self) -> AbstractContextManager[Any]:
        """The key, for changes.

        Raises:
            PermissionError: this process is not elevated.
            NoFabricError: there is no such key, as Hyper-V is not there.
        """
        return self._open(self._winreg.KEY_READ | self._winreg.KEY_WRITE)

    def _write(self, root: Any, service_id: ServiceId, name: str, *, replace: bool = False) -> None:
        """Give a service its name, and a key where it has none; a name that is there stays, unless `replace`."""
        registry = self._winreg
        access = self._access(registry.KEY_READ | registry.KEY_WRITE)
        with registry.CreateKeyEx(root, str(service_id), 0, access) as key:
            if not replace:
                self._check_unnamed(key, service_id)
            registry.SetValueEx(key, ELEMENT_NAME, 0, registry.REG_SZ, name)

    def _delete(self, root: Any, service_id: ServiceId) -> None:
        self._winreg.DeleteKeyEx(root, self._name_of(root, service_id), self._winreg.KEY_WOW64_64KEY, 0)

    def _check_unnamed(self, key: Any, service_id: ServiceId) -> None:
        """Hold that nobody was faster, and that no name is lost that this registry would not take."""
        try:
            value, _ = self._winreg.QueryValueEx(key, ELEMENT_NAME)
        except FileNotFoundError:
            return
        raise DuplicateError(f"{service_id} is registered already, as {quoted(str(value))}")

    def _names(self, root: Any) -> list[str]:
        """The names of the keys under it; those that come and go meanwhile may be left out."""
        names = []
        for index in range(self._winreg.QueryInfoKey(root)[0]):
            try:
                names.append(self._winreg.EnumKey(root, index))
            except OSError:  # fewer by now
                break
        return names

    def _name_of(self, root: Any, service_id: ServiceId) -> str:
        """The key's name as it is spelt."""
        return next((name for name in self._names(root) if service_id == name), str(service_id))

    def _read(self) -> tuple[list[ServiceEntry], list[str]]:
        """The services, and a line for each key that is none."""
        entries, odd = [], []
        with self._open(self._winreg.KEY_READ) as root:
            for name in self._names(root):
                if parse_service_id(name) is None or not name[0].isalnum() or "-" not in name:
                    odd.append(f"the key {quoted(name)} is no service: its name is no bare GUID")
                    continue
                try:
                    entries.append(self._entry(root, name))
                except FileNotFoundError:  # no ElementName, or the key is gone by now
                    odd.append(f"the key {name} is no service: it has no ElementName")
                except (UsageError, PermissionError) as error:
                    odd.append(f"the key {name} has an ElementName that is no service's: {error}")
        return entries, odd

    def _entry(self, root: Any, name: str) -> ServiceEntry:
        registry = self._winreg
        with registry.OpenKeyEx(root, name, 0, self._access(registry.KEY_READ)) as key:
            value, kind = registry.QueryValueEx(key, ELEMENT_NAME)
            if kind != registry.REG_SZ:
                raise UsageError("it is not text (REG_SZ)")
            changed = (registry.QueryInfoKey(key)[2] - EPOCH_TICKS) / TICKS_PER_SECOND
        service_id = ServiceId(name)
        flags = frozenset({INBOX}) if service_id in _SESSION_IDS else frozenset[str]()
        return ServiceEntry(service_id, check_service_name(value), flags=flags, created=changed, changed=changed)


def _key_of(service_id: ServiceId) -> str:
    """The key of a service, as PowerShell calls it."""
    return f"HKLM:\\{GUEST_COMMUNICATION_SERVICES}\\{service_id}"


def not_elevated(command: str) -> RefusedError:
    """What somebody is told who may not change the services, with the command that would."""
    return RefusedError(
        "only administrators may change the services of this host; in an elevated prompt "
        f"(Start-Process powershell -Verb RunAs) run: {command}"
    )


def _suggestions(entries: list[ServiceEntry], text: str) -> str:
    """What the beginning of `text` is spelt like, for the end of an error."""
    names = {name_key(entry.name): entry.name for entry in entries}
    like = [
        names[key] for key in difflib.get_close_matches(name_key(text[:QUOTED_CHARACTERS]), names, n=SUGGESTIONS)
    ]
    return f"; did you mean {' or '.join(repr(name) for name in like)}?" if like else ""
