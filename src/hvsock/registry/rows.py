"""The tables of the registry's file: entries as rows, and the look-ups on them."""

from __future__ import annotations

import json
import sqlite3
import time
from functools import lru_cache
from typing import Any, Final

from hvsock.addresses import ServiceId, VmId, parse_service_id
from hvsock.errors import DuplicateError, NotFoundError, StateError
from hvsock.topology.access import Settings

from .entries import (
    FLAGS,
    INBOX,
    MAX_SERVICE_NAME_CHARACTERS,
    NO_SETTINGS,
    ServiceEntry,
    inbox_entries,
    name_key,
    quoted,
)
from .forwards import parse_forward
from .values import rounded_time, settings_from_value, settings_to_value

_DEFAULTS_TABLE: Final = """CREATE TABLE defaults (
        vm_id TEXT NOT NULL PRIMARY KEY,
        settings TEXT NOT NULL
    ) WITHOUT ROWID"""
"""Settings that hold where no service says anything, by VM; those for all VMs are under ALL_VMS."""
_SCHEMA: Final = (
    """CREATE TABLE service (
        id TEXT NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        name_key TEXT NOT NULL UNIQUE,
        port_alias INTEGER UNIQUE,
        flags TEXT NOT NULL,
        created REAL NOT NULL,
        changed REAL NOT NULL,
        settings TEXT NOT NULL,
        forward TEXT
    ) WITHOUT ROWID""",
    """CREATE TABLE vm_settings (
        service_id TEXT NOT NULL,
        vm_id TEXT NOT NULL,
        settings TEXT NOT NULL,
        PRIMARY KEY (service_id, vm_id)
    ) WITHOUT ROWID""",
    "CREATE INDEX vm_settings_of_vm ON vm_settings (vm_id)",
    _DEFAULTS_TABLE,
)
_COLUMNS: Final = "id, name, port_alias, flags, created, changed, settings"
_FORWARD_SINCE: Final = 2
"""The version of the file from which on it has the column `forward`."""
_DEFAULTS_SINCE: Final = 3
"""The version of the file from which on it has the table `defaults`, and settings with descriptors."""
_ALL_VMS: Final = ""
_SUGGESTIONS: Final = 3
_SUGGESTION_CHARACTERS: Final = 64
"""How much of a name counts for what is spelt like it; the comparison is quadratic."""
_DIGITS: Final = frozenset("0123456789abcdef-{}")


def fill(connection: sqlite3.Connection) -> None:
    """Put the tables and the in-box services into a new file."""
    for statement in _SCHEMA:
        connection.execute(statement)
    for entry in inbox_entries(rounded_time(time.time())):
        insert(connection, entry)


def upgrade(connection: sqlite3.Connection, version: int) -> None:
    """Give a file of an earlier version, which that is, the tables of this one."""
    if version < _FORWARD_SINCE:
        connection.execute("ALTER TABLE service ADD COLUMN forward TEXT")
    if version < _DEFAULTS_SINCE:
        connection.execute(_DEFAULTS_TABLE)


def missing_inbox(connection: sqlite3.Connection) -> tuple[list[ServiceEntry], list[str]]:
    """The in-box services that a file of an earlier version lacks.

    Returns:
        Those that can be put in, and one line for each that cannot, since its id, name or port is an operator's.
    """
    wanted = inbox_entries(rounded_time(time.time()))
    ids = [str(one.id) for one in wanted]
    query = f"SELECT id, flags FROM service WHERE id IN ({', '.join('?' * len(ids))})"
    there = {id_ for id_, flags in _rows(connection, query, *ids) if INBOX in str(flags).split()}
    free, displaced = [], []
    for entry in wanted:
        if entry.id in there:
            continue
        values = (str(entry.id), name_key(entry.name), entry.port or 0)
        found = _rows(
            connection, "SELECT id, name FROM service WHERE id = ? OR name_key = ? OR port_alias = ?", *values
        )
        if not found:
            free.append(entry)
        for id_, name in found[:1]:
            displaced.append(
                f"the in-box service {entry.name!r} ({entry.id}) is left out: its id, name or port is in use by "
                f"{name!r} ({id_}), which was registered here; it comes when that one is unregistered"
            )
    return free, displaced


def all_entries(connection: sqlite3.Connection) -> list[ServiceEntry]:
    """Every entry, in no order that means anything."""
    per_vm: dict[str, dict[VmId, Settings]] = {}
    for service_id, vm_id, settings in _rows(connection, "SELECT service_id, vm_id, settings FROM vm_settings"):
        per_vm.setdefault(service_id, {})[_vm_id(vm_id)] = _settings(settings)
    return [_decoded(row, per_vm.get(row[0], {})) for row in _rows(connection, _select(connection))]


def defaults(connection: sqlite3.Connection) -> dict[VmId | None, Settings]:
    """What holds where no service says anything: by VM, and under None for all; none of them is empty."""
    if _version(connection) < _DEFAULTS_SINCE:
        return {}
    found = _rows(connection, "SELECT vm_id, settings FROM defaults")
    everything = {None if vm_id == _ALL_VMS else _vm_id(vm_id): _settings(text) for vm_id, text in found}
    return {vm_id: settings for vm_id, settings in everything.items() if settings != NO_SETTINGS}


def update_defaults(connection: sqlite3.Connection, vm_id: VmId | None, settings: Settings | None) -> None:
    """Write the defaults for one VM, or for all; None takes them out."""
    key = _ALL_VMS if vm_id is None else str(vm_id)
    connection.execute("DELETE FROM defaults WHERE vm_id = ?", (key,))
    if settings is not None:
        values = (key, _encoded(settings))
        connection.execute("INSERT INTO defaults (vm_id, settings) VALUES (?, ?)", values)


def entry_of(connection: sqlite3.Connection, service_id: str) -> ServiceEntry | None:
    """The entry with that id, or None."""
    return _one(connection, "id = ?", str(service_id))


def find(connection: sqlite3.Connection, text: str) -> ServiceEntry:
    """The entry that `text` means: a GUID, a port, or a friendly name.

    Raises:
        NotFoundError: there is none.
    """
    service_id = parse_service_id(text)
    if service_id is not None:
        found = entry_of(connection, service_id)
        if found is None and service_id.port is not None and "-" not in text:
            found = _one(connection, "port_alias = ?", service_id.port)
    else:
        found = _named(connection, text)
    if found is None:
        raise NotFoundError(f"no service {quoted(text)} is registered{_suggestions(connection, text)}")
    return found


def count(connection: sqlite3.Connection) -> int:
    """How many services are registered."""
    ((number,),) = _rows(connection, "SELECT count(*) FROM service")
    return int(number)


def check_free(connection: sqlite3.Connection, entry: ServiceEntry) -> None:
    """Hold that a new entry's id, name and port are in use by no other.

    Raises:
        DuplicateError: one of them is.
    """
    same = entry_of(connection, entry.id)
    if same is not None:
        raise DuplicateError(f"{entry.id} is registered already, as {same.name!r}")
    same = _named(connection, entry.name)
    if same is not None:
        raise DuplicateError(f"the name {same.name!r} is in use, by {same.id}")
    if entry.port is not None:
        same = _one(connection, "port_alias = ?", entry.port)
        if same is None and entry.port_alias is not None:
            same = entry_of(connection, ServiceId.from_port(entry.port_alias))
        if same is not None:
            raise DuplicateError(f"port {entry.port} is in use, by {same.name!r} ({same.id})")


def insert(connection: sqlite3.Connection, entry: ServiceEntry) -> None:
    """Add an entry."""
    connection.execute(
        "INSERT INTO service (id, name, name_key, port_alias, flags, created, changed, settings, forward)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            str(entry.id),
            entry.name,
            name_key(entry.name),
            entry.port_alias,
            " ".join(sorted(entry.flags)),
            entry.created,
            entry.changed,
            _encoded(entry.settings),
            None if entry.forward is None else str(entry.forward),
        ),
    )
    connection.executemany(
        "INSERT INTO vm_settings (service_id, vm_id, settings) VALUES (?, ?, ?)",
        [(str(entry.id), str(vm_id), _encoded(settings)) for vm_id, settings in entry.per_vm.items()],
    )


def delete(connection: sqlite3.Connection, service_id: ServiceId) -> None:
    """Take an entry out."""
    connection.execute("DELETE FROM vm_settings WHERE service_id = ?", (str(service_id),))
    connection.execute("DELETE FROM service WHERE id = ?", (str(service_id),))


def update_settings(connection: sqlite3.Connection, entry: ServiceEntry, vm_id: VmId | None) -> None:
    """Write the settings of `entry` for all VMs, or those for one, and when it was changed."""
    connection.execute(
        "UPDATE service SET settings = ?, changed = ? WHERE id = ?",
        (_encoded(entry.settings), entry.changed, str(entry.id)),
    )
    if vm_id is None:
        return
    key = (str(entry.id), str(vm_id))
    connection.execute("DELETE FROM vm_settings WHERE service_id = ? AND vm_id = ?", key)
    if vm_id in entry.per_vm:
        connection.execute(
            "INSERT INTO vm_settings (service_id, vm_id, settings) VALUES (?, ?, ?)",
            (*key, _encoded(entry.per_vm[vm_id])),
        )


def update_forward(connection: sqlite3.Connection, entry: ServiceEntry) -> None:
    """Write the forward of `entry`, and when it was changed."""
    connection.execute(
        "UPDATE service SET forward = ?, changed = ? WHERE id = ?",
        (None if entry.forward is None else str(entry.forward), entry.changed, str(entry.id)),
    )


def forget_vm(connection: sqlite3.Connection, vm_id: VmId, changed: float) -> int:
    """Drop the settings and the defaults for one VM; how many services had some."""
    update_defaults(connection, vm_id, None)
    rows = _rows(connection, "SELECT service_id FROM vm_settings WHERE vm_id = ?", str(vm_id))
    connection.executemany("UPDATE service SET changed = ? WHERE id = ?", [(changed, row[0]) for row in rows])
    connection.execute("DELETE FROM vm_settings WHERE vm_id = ?", (str(vm_id),))
    return len(rows)


def _rows(connection: sqlite3.Connection, query: str, *values: str | int) -> list[tuple[Any, ...]]:
    """All rows at once: a query that an exception leaves half read keeps its lock and the file open."""
    return connection.execute(query, values).fetchall()


def _select(connection: sqlite3.Connection) -> str:
    """The query for rows as :func:`_decoded` takes them; a file of an earlier version has no forwards."""
    has_forward = _version(connection) >= _FORWARD_SINCE
    return f"SELECT {_COLUMNS}, {'forward' if has_forward else 'NULL'} FROM service"


def _version(connection: sqlite3.Connection) -> int:
    ((version,),) = _rows(connection, "PRAGMA user_version")
    return int(version)


def _one(connection: sqlite3.Connection, where: str, value: str | int) -> ServiceEntry | None:
    found = _rows(connection, f"{_select(connection)} WHERE {where}", value)
    if not found:
        return None
    (row,) = found
    settings = _rows(connection, "SELECT vm_id, settings FROM vm_settings WHERE service_id = ?", row[0])
    return _decoded(row, {_vm_id(vm_id): _settings(text) for vm_id, text in settings})


def _named(connection: sqlite3.Connection, name: str) -> ServiceEntry | None:
    if len(name) > 4 * MAX_SERVICE_NAME_CHARACTERS or any("\ud800" <= c <= "\udfff" for c in name):
        return None  # no name of a service, and nothing that SQLite takes
    return _one(connection, "name_key = ?", name_key(name))


def _suggestions(connection: sqlite3.Connection, text: str) -> str:
    import difflib

    start = name_key(text[:_SUGGESTION_CHARACTERS])
    names: dict[str, str] = {}
    if _DIGITS.issuperset(start):
        names.update((id_, id_) for (id_,) in _rows(connection, "SELECT id FROM service"))
    else:
        found = _rows(connection, "SELECT name, name_key FROM service")
        names.update((key[:_SUGGESTION_CHARACTERS], repr(name)) for name, key in found)
    close = difflib.get_close_matches(start, names, _SUGGESTIONS)
    return f"; did you mean {' or '.join(names[one] for one in close)}?" if close else ""


def _decoded(row: tuple[Any, ...], per_vm: dict[VmId, Settings]) -> ServiceEntry:
    service_id, name, port_alias, words, created, changed, settings, forward = row
    try:
        flags = frozenset(words.split())
        if not flags <= FLAGS:
            raise ValueError(f"unknown flag {quoted(words)}")
        return ServiceEntry(
            ServiceId(service_id),
            str(name),
            None if port_alias is None else int(port_alias),
            flags,
            float(created),
            float(changed),
            _settings(settings),
            per_vm,
            None if forward is None else parse_forward(forward),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise _damaged(service_id, error) from None


def _encoded(settings: Settings) -> str:
    return json.dumps(settings_to_value(settings), separators=(",", ":"), sort_keys=True)


@lru_cache(maxsize=1024)
def _settings(text: str) -> Settings:
    try:
        return settings_from_value(json.loads(text), "settings")
    except (TypeError, ValueError, RecursionError) as error:
        raise _damaged(text, error) from None


def _vm_id(text: str) -> VmId:
    try:
        return VmId(text)
    except (AttributeError, TypeError, ValueError) as error:
        raise _damaged(text, error) from None


def _damaged(what: Any, error: Exception) -> StateError:
    return StateError(f"the registry is damaged at {quoted(str(what))}: {error}")
