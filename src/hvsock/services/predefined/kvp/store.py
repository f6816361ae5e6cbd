"""The pairs in a file of the guest: SQLite, changed by whole transactions, whoever is killed when.

Every transaction has the next revision, which all that it changed gets. A deleted key leaves a tombstone, so that
whoever knew the state of a revision can be told all that came after; there is a bound for them, and whoever comes
from before the oldest is told to start over. The epoch is the file's own: revisions of another file mean nothing.

A connection is open for one act only. Any number of processes may use the file, also at the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from hvsock.errors import BusyError, HvsockError, NotFoundError, StateError, UsageError

from .pools import (
    MAX_POOL_BYTES,
    MAX_POOL_KEYS,
    MAX_SET_KEYS,
    WRITERS,
    Pool,
    Side,
    check_key,
    check_pairs,
    check_reader,
    check_writer,
    owner_of,
)

if sys.platform != "linux":
    raise ImportError("the store is the guest's, and guests run Linux")

log = logging.getLogger(__name__)

FILE_NAME: Final = "kvp.db"
LOCK_NAME: Final = "kvp.lock"
"""Held by whoever moves a damaged file aside."""
DAMAGED_SUFFIX: Final = ".damaged"
"""What a damaged file is called from then on; the one before it is overwritten, so that there is one at most."""
MAX_TOMBSTONES: Final = 1024
"""Most deleted keys that are remembered."""
BUSY_SECONDS: Final = 5.0
"""How long an act waits for another process; a commit takes milliseconds."""
APPLICATION_ID: Final = 0x6876_6B76
"""``hvkv`` in the file's header (https://sqlite.org/fileformat.html#application_id)."""
SCHEMA_VERSION: Final = 1
"""``user_version`` in the file's header; a file with a higher one is left alone."""

_SCHEMA: Final = f"""
CREATE TABLE meta (epoch TEXT NOT NULL, revision INTEGER NOT NULL, oldest INTEGER NOT NULL);
CREATE TABLE pairs (
    pool INTEGER NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, owner TEXT NOT NULL,
    revision INTEGER NOT NULL, acknowledged INTEGER NOT NULL, changed INTEGER NOT NULL, deleted INTEGER NOT NULL,
    PRIMARY KEY (pool, key)
);
CREATE INDEX pairs_changed ON pairs (changed);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_COLUMNS: Final = "pool, key, value, owner, revision, acknowledged, changed"


@dataclass(frozen=True, slots=True)
class Pair:
    """A key and its value, as the store has them.

    Attributes:
        pool: where it is.
        key: its key.
        value: its value.
        owner: who set it: "host" or "guest", or that with a label behind a slash.
        revision: when it was set.
        acknowledged: up to which revision the other side acknowledged it; 0 for never.
        changed: when it was set, or acknowledged.
    """

    pool: Pool
    key: str
    value: bytes
    owner: str
    revision: int
    acknowledged: int
    changed: int


@dataclass(frozen=True, slots=True)
class State:
    """Where a store is.

    Attributes:
        epoch: the file's own name.
        revision: that of the last change.
        oldest: the earliest revision from which everything that came after is known.
    """

    epoch: str
    revision: int
    oldest: int


@dataclass(frozen=True, slots=True)
class Touched:
    """That a key has changed, without its value."""

    pool: Pool
    key: str
    owner: str
    changed: int
    deleted: bool


class Store:
    """The pairs of one guest. Any thread may use it.

    Args:
        folder: where the file is, which is made at the first act.
    """

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, FILE_NAME)
        self._lock_path = os.path.join(folder, LOCK_NAME)

    # -- reading

    def state(self) -> State:
        """Where it is."""
        with self._act() as connection:
            return _state(connection)

    def get(self, pool: Pool, key: str) -> Pair:
        """One pair.

        Raises:
            NotFoundError: there is none.
        """
        check_key(key)
        with self._act() as connection:
            found = connection.execute(
                f"SELECT {_COLUMNS} FROM pairs WHERE pool = ? AND key = ? AND NOT deleted", (pool, key)
            ).fetchone()
        if found is None:
            raise NotFoundError(f"there is no key {key!a} in the pool {pool.word}")
        return _pair(found)

    def pairs(self, pool: Pool) -> list[Pair]:
        """All pairs of a pool, of one moment, by key."""
        with self._act() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM pairs WHERE pool = ? AND NOT deleted ORDER BY key", (pool,)
            ).fetchall()
        return [_pair(row) for row in rows]

    def touched(self, after: int) -> tuple[State, list[Touched]]:
        """The keys that changed after a revision, in that order, and where the store is."""
        with self._act() as connection:
            rows = connection.execute(
                "SELECT pool, key, owner, changed, deleted FROM pairs WHERE changed > ?"
                " ORDER BY changed, pool, key",
                (after,),
            ).fetchall()
            return _state(connection), [
                Touched(Pool(pool), key, owner, changed, bool(deleted))
                for pool, key, owner, changed, deleted in rows
            ]

    # -- changing: each returns the revision once it is on the disk

    def set(self, side: Side, pool: Pool, pairs: Mapping[str, bytes], label: str = "") -> int:
        """Set several keys, all or none.

        Args:
            side: who asks.
            pool: one that the side writes.
            pairs: the values by key.
            label: of the program that owns them; empty for the side itself.

        Raises:
            UsageError: a key or a value is none, or the pool would have too many.
            RefusedError: the side does not write this pool.
        """
        owner = owner_of(side, label)
        check_writer(pool, side)
        check_pairs(dict(pairs))
        with self._change() as (connection, revision):
            for key, value in pairs.items():
                connection.execute(
                    "INSERT OR REPLACE INTO pairs VALUES (?, ?, ?, ?, ?, 0, ?, 0)",
                    (pool, key, value, owner, revision, revision),
                )
            _check_room(connection, pool)
        return revision

    def replace(self, side: Side, pool: Pool, pairs: Mapping[str, bytes]) -> int:
        """Make `pairs` all that there is in a pool; what is the same already stays untouched.

        Raises:
            UsageError, RefusedError: as of :meth:`set`.
        """
        check_writer(pool, side)
        check_pairs(dict(pairs))
        with self._act() as connection:
            rows = connection.execute("SELECT key, value FROM pairs WHERE pool = ? AND NOT deleted", (pool,))
            there = {key: bytes(value) for key, value in rows.fetchall()}
            if there == pairs:
                return _state(connection).revision
        with self._change() as (connection, revision):
            for key in there.keys() - pairs.keys():
                _delete(connection, revision, "pool = ? AND key = ?", (pool, key))
            for key, value in pairs.items():
                if there.get(key) != value:
                    connection.execute(
                        "INSERT OR REPLACE INTO pairs VALUES (?, ?, ?, ?, ?, 0, ?, 0)",
                        (pool, key, value, owner_of(side, ""), revision, revision),
                    )
            _check_room(connection, pool)
        return revision

    def delete(self, side: Side, pool: Pool, keys: Sequence[str]) -> int:
        """Delete several keys, all or none.

        Raises:
            NotFoundError: one is not there.
            RefusedError: the side does not write this pool.
        """
        check_writer(pool, side)
        if not 0 < len(keys) <= MAX_SET_KEYS:
            raise UsageError(f"{len(keys)} keys to delete at once; between 1 and {MAX_SET_KEYS} can be")
        with self._change() as (connection, revision):
            for key in dict.fromkeys(keys):
                check_key(key)
                if not _delete(connection, revision, "pool = ? AND key = ?", (pool, key)):
                    raise NotFoundError(f"there is no key {key!a} in the pool {pool.word}; nothing was deleted")
        return revision

    def delete_owned(self, side: Side, label: str | None = None) -> tuple[int, int]:
        """Delete what a side, or one of its programs, has set.

        Args:
            side: who asks.
            label: of the program; empty for what was set without one, None for all that is the side's.

        Returns:
            The revision, and how many keys were deleted.
        """
        pools = [pool for pool in Pool if WRITERS[pool] is side and pool is not Pool.AUTO]
        deleted = 0
        with self._change() as (connection, revision):
            for pool in pools:
                if label is None:
                    deleted += _delete(connection, revision, "pool = ?", (pool,))
                else:
                    where = (pool, owner_of(side, label))
                    deleted += _delete(connection, revision, "pool = ? AND owner = ?", where)
        return revision, deleted

    def acknowledge(self, side: Side, pool: Pool, key: str, revision: int) -> int:
        """Say that a value was taken note of.

        Args:
            side: who asks.
            pool: one that the other side writes.
            key: whose value.
            revision: the pair's, as it was read.

        Raises:
            NotFoundError: there is no such key.
            UsageError: it was set anew since, or never was at that revision.
            RefusedError: the side wrote it itself.
        """
        check_reader(pool, side)
        check_key(key)
        with self._change() as (connection, now):
            found = connection.execute(
                "SELECT revision FROM pairs WHERE pool = ? AND key = ? AND NOT deleted", (pool, key)
            ).fetchone()
            if found is None:
                raise NotFoundError(f"there is no key {key!a} in the pool {pool.word}")
            if found[0] != revision:
                raise UsageError(
                    f"{key!a} was set at revision {found[0]}, not {revision}: read it again, then acknowledge that"
                )
            connection.execute(
                "UPDATE pairs SET acknowledged = ?, changed = ? WHERE pool = ? AND key = ?",
                (revision, now, pool, key),
            )
        return now

    def check(self) -> None:
        """Look through the whole file.

        Raises:
            StateError: it was damaged; it is moved aside, and the next act begins a new one.
        """
        with self._act() as connection:
            ((verdict, *_),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)

    # -- the file

    @contextlib.contextmanager
    def _act(self) -> Iterator[sqlite3.Connection]:
        """A transaction on the file, which is made where there is none; undone by any exception."""
        before = _identity(self.path)
        connection = None
        try:
            # there is one connection for each act; what another process commits is seen by the next
            connection = sqlite3.connect(
                f"file:{quote(os.fsencode(self.path))}?mode=rwc",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
            )
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA synchronous = EXTRA")
            self._prepare(connection)
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if connection is not None:
                connection.close()
            raise self._translated(error, before) from None
        finally:
            if connection is not None:
                connection.close()

    @contextlib.contextmanager
    def _change(self) -> Iterator[tuple[sqlite3.Connection, int]]:
        with self._act() as connection:
            revision = _state(connection).revision + 1
            connection.execute("UPDATE meta SET revision = ?", (revision,))
            yield connection, revision
            _forget_tombstones(connection)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        application, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        if application == 0:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute("INSERT INTO meta VALUES (?, 0, 0)", (uuid.uuid4().hex,))
            connection.execute("COMMIT")
            application, version = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
        if application != APPLICATION_ID:
            raise StateError(f"{self.path} is no store of ours; move it away to start with a new one")
        if version > SCHEMA_VERSION:
            raise StateError(f"{self.path} was made by a newer hvsock (version {version}); update this one")

    def _translated(self, error: sqlite3.DatabaseError, before: tuple[int, int] | None) -> HvsockError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return BusyError(f"{self.path} was in use for {BUSY_SECONDS:g} s; nothing was changed: try again")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._move_aside(before)
            return StateError(
                f"{self.path} was damaged ({error}); it is {self.path}{DAMAGED_SUFFIX} now, "
                "and a new one begins empty"
            )
        return StateError(f"cannot use {self.path}: {error}; nothing was changed")

    def _move_aside(self, damaged: tuple[int, int] | None) -> None:
        """Move the file aside, if it is still the one that was found damaged."""
        with open(self._lock_path, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if damaged is None or _identity(self.path) != damaged:
                return
            log.error("%s is damaged; it is moved to %s%s", self.path, self.path, DAMAGED_SUFFIX)
            with contextlib.suppress(FileNotFoundError):  # the journal is that file's, and harms a new one
                os.replace(f"{self.path}-journal", f"{self.path}{DAMAGED_SUFFIX}-journal")
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path, f"{self.path}{DAMAGED_SUFFIX}")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _state(connection: sqlite3.Connection) -> State:
    ((epoch, revision, oldest),) = connection.execute("SELECT epoch, revision, oldest FROM meta").fetchall()
    return State(epoch, revision, oldest)


def _pair(row: tuple[Any, ...]) -> Pair:
    pool, key, value, owner, revision, acknowledged, changed = row
    return Pair(Pool(pool), key, bytes(value), owner, revision, acknowledged, changed)


def _delete(connection: sqlite3.Connection, revision: int, where: str, values: tuple[Any, ...]) -> int:
    return connection.execute(
        f"UPDATE pairs SET deleted = 1, value = x'', changed = ? WHERE NOT deleted AND {where}",
        (revision, *values),
    ).rowcount


def _check_room(connection: sqlite3.Connection, pool: Pool) -> None:
    ((count, size),) = connection.execute(
        "SELECT count(*), coalesce(sum(length(CAST(key AS BLOB)) + length(value)), 0) FROM pairs"
        " WHERE pool = ? AND NOT deleted",
        (pool,),
    ).fetchall()
    if count > MAX_POOL_KEYS or size > MAX_POOL_BYTES:
        raise UsageError(
            f"the pool {pool.word} would have {count} keys with {size} bytes; {MAX_POOL_KEYS} with "
            f"{MAX_POOL_BYTES} are the most: delete some"
        )


def _forget_tombstones(connection: sqlite3.Connection) -> None:
    surplus = connection.execute("SELECT count(*) FROM pairs WHERE deleted").fetchone()[0] - MAX_TOMBSTONES
    if surplus <= 0:
        return
    ((until,),) = connection.execute(
        "SELECT changed FROM pairs WHERE deleted ORDER BY changed LIMIT 1 OFFSET ?", (surplus - 1,)
    ).fetchall()
    connection.execute("DELETE FROM pairs WHERE deleted AND changed <= ?", (until,))
    connection.execute("UPDATE meta SET oldest = ?", (until,))
