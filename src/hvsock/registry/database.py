"""The SQLite file under the registry: made whole or not at all, changed by whole transactions, read by everybody.

The choices, each with its reason:

- **A rollback journal, not a write-ahead log**: readers of other users have no write permission, and a
  write-ahead log makes readers write.
- **A new file is written under another name and published by a hard link**: nobody ever sees half of one,
  two processes that create at once agree on one, and kill -9 leaves a stray file that the next writer
  sweeps away. It is written by its descriptor alone: root may be at work in a folder of somebody who
  exchanges names.
- **Nothing here opens the file but SQLite**: closing any descriptor of a file drops the process's POSIX
  locks on it, those of its other connections too (https://sqlite.org/howtocorrupt.html, section 2.2). The
  one exception, below, never closes.
- **A journal that a killed writer left** is rolled back by the next process that may write. One that may
  not reads a private copy of both files, rolled back there.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar
from urllib.parse import quote

from hvsock.errors import HvsockError, NoFabricError, RefusedError, StateError

T = TypeVar("T")

FILE_NAME: Final = "registry.db"
JOURNAL_SUFFIX: Final = "-journal"
NEW_PREFIX: Final = "registry.db.new-"
"""Names of files that are being filled, and of what a kill -9 left of them."""

APPLICATION_ID: Final = 0x68767372
"""``hvsr`` in the file's header (https://sqlite.org/fileformat.html#application_id)."""
SCHEMA_VERSION: Final = 3
"""``user_version`` in the file's header. A file with a higher one is left alone; one with a lower one is read as
it is, and brought up to this by whoever changes it."""

BUSY_TIMEOUT_MS: Final = 10_000
"""Milliseconds that a reader or a writer waits for others; a commit takes a few."""
GLANCE_TIMEOUT_MS: Final = 50
"""Milliseconds that a look at the version waits for a commit in progress."""

MAX_PATH_BYTES: Final = 512
"""Longest path that SQLite takes for a file and its journal, with its final zero (MAX_PATHNAME in os_unix.c)."""

_FIRST_PAUSE_SECONDS: Final = 0.000_25
_LONGEST_PAUSE_SECONDS: Final = 0.004
_COPY_ATTEMPTS: Final = 5
_COPY_BYTES_MAX: Final = 1 << 30
_kept_open: dict[tuple[int, int], int] = {}
_kept_open_lock = threading.Lock()


class BusyError(StateError):
    """Another process held the file for too long."""


class Database:
    """One registry file. Any thread may use the object, one at a time.

    Args:
        folder: where the file is.
        fill: puts tables and first rows into a new file.
        upgrade: makes a file of this version out of one of an earlier version, which it is given.
        read_only_because: the text with which every change is refused; None to let the file's mode decide.

    Raises:
        NoFabricError: there is no such folder, or no registry in it that the caller could make.
        RefusedError: the caller may not read it.
        StateError: the file is damaged, foreign, or of a newer version.
    """

    def __init__(
        self,
        folder: str,
        fill: Callable[[sqlite3.Connection], None],
        upgrade: Callable[[sqlite3.Connection, int], None],
        read_only_because: str | None = None,
    ) -> None:
        self.folder = folder = os.path.abspath(folder)
        self.path = os.path.join(folder, FILE_NAME)
        self._upgrade = upgrade
        self._open: sqlite3.Connection | None = None
        self._version = 0
        self._schema = SCHEMA_VERSION
        self._data_version: int | None = None
        longest = len(os.fsencode(os.path.join(os.path.realpath(folder), f"{NEW_PREFIX}12345678{JOURNAL_SUFFIX}")))
        if longest >= MAX_PATH_BYTES:
            raise StateError(
                f"the path {folder} is {longest - MAX_PATH_BYTES + 1} bytes too long for SQLite: use another"
            )
        try:
            found = _lstat(self.path)
            if found is None:
                self._create(fill, read_only_because)
                found = os.lstat(self.path)
            if not stat.S_ISREG(found.st_mode):
                raise StateError(f"{self.path} is not a plain file, so it is no registry of ours")
            if not os.access(self.path, os.R_OK, effective_ids=_EFFECTIVE):
                raise RefusedError(f"{_me()} may not read {self.path}: {_changed_by(found)} may")
            self._identity = (found.st_dev, found.st_ino)
            self._refusal = read_only_because or self._why_not_writable(found)
        except PermissionError as error:
            if isinstance(error, HvsockError):
                raise
            raise RefusedError(f"{_me()} may not enter {folder}: ask its owner") from None
        try:
            if self._refusal is None:
                _sweep(folder)
            self._open = _connect(self.path, "ro" if self._refusal else "rw")
            self.read(lambda connection: None)
        except sqlite3.Error as error:
            self.close()
            raise self._translated(error) from None
        except BaseException:
            self.close()
            raise

    @property
    def refusal(self) -> str | None:
        """Why the caller may change nothing; None when it may."""
        return self._refusal

    @property
    def noted_version(self) -> int:
        """The version that the last :meth:`read` saw."""
        return self._version

    @property
    def is_of_earlier_version(self) -> bool:
        """Whether the last look found a file that the next :meth:`write` brings up to this version."""
        return self._schema < SCHEMA_VERSION

    def close(self) -> None:
        """Close the file; anything but another close is a ValueError afterwards."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def version(self) -> int:
        """A number that is another one after any process has committed a change.

        While a commit is in progress the number is the one from before. The call takes some ten
        microseconds, and GLANCE_TIMEOUT_MS at most.

        Raises:
            StateError: the file cannot be read any more.
        """
        connection = self._connection
        try:
            _patiently(lambda: self._note_version(connection), GLANCE_TIMEOUT_MS)
        except sqlite3.Error as error:
            if self._is_journal_in_the_way(error):
                self._version += 1  # cannot tell, so let the caller look
            elif not _is_busy(error):
                raise self._translated(error) from None
        return self._version

    def read(self, query: Callable[[sqlite3.Connection], T], timeout_ms: int = BUSY_TIMEOUT_MS) -> T:
        """What `query` returns, on one consistent state of the file.

        Args:
            query: reads only, and leaves no cursor half read.
            timeout_ms: milliseconds to wait for a commit in progress.

        Raises:
            StateError: the file cannot be read, or was locked for too long.
        """
        connection = self._connection
        for _ in range(_COPY_ATTEMPTS):
            try:
                return _patiently(lambda: self._read_from(connection, query), timeout_ms)
            except sqlite3.Error as error:
                if not self._is_journal_in_the_way(error):
                    raise self._translated(error) from None
            with self._rolled_back_copy() as copy:
                if copy is not None:
                    self._version += 1
                    return query(copy)
        raise StateError(f"{self.path} is being repaired by another process all the time; try again")

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer runs beside; committed at the end, undone by any exception.

        Raises:
            RefusedError: the caller may not change the registry.
            StateError: the file cannot be written, or was locked for too long; nothing was changed.
        """
        connection = self._connection
        if self._refusal is not None:
            raise RefusedError(self._refusal)
        found = _lstat(self.path)
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise StateError(f"{self.path} was replaced or removed while it was open; nothing was changed")
        try:
            _patiently(lambda: connection.execute("PRAGMA synchronous = FULL"), BUSY_TIMEOUT_MS)
            _patiently(lambda: connection.execute("BEGIN IMMEDIATE"), BUSY_TIMEOUT_MS)
            changes = connection.total_changes
            self._check_header(connection)
            if self.is_of_earlier_version:
                self._upgrade(connection, self._schema)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            yield connection
            self._version += connection.total_changes != changes
            _patiently(lambda: connection.execute("COMMIT"), BUSY_TIMEOUT_MS)
        except sqlite3.Error as error:
            raise self._translated(error) from None
        finally:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            raise ValueError("the registry is closed")
        return self._open

    def _note_version(self, connection: sqlite3.Connection) -> None:
        ((data_version,),) = connection.execute("PRAGMA data_version").fetchall()
        if data_version != self._data_version:
            self._data_version = data_version
            self._version += 1

    def _read_from(self, connection: sqlite3.Connection, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection.execute("BEGIN")
            self._note_version(connection)  # the first look at the file: from here on it is locked for reading
            self._check_header(connection)
            return query(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _check_header(self, connection: sqlite3.Connection) -> None:
        ((application,),) = connection.execute("PRAGMA application_id").fetchall()
        ((schema,),) = connection.execute("PRAGMA user_version").fetchall()
        if application != APPLICATION_ID or schema < 1:
            raise StateError(f"{self.path} is not a registry of ours; move it away to start with a new one")
        if schema > SCHEMA_VERSION:
            raise StateError(
                f"{self.path} has version {schema}, this hvsock knows {SCHEMA_VERSION}: use a newer hvsock"
            )
        self._schema = schema

    # Creating

    def _create(self, fill: Callable[[sqlite3.Connection], None], read_only_because: str | None) -> None:
        try:
            folder = os.stat(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            raise NoFabricError(f"there is no folder {self.folder}: start the fabric first") from None
        if read_only_because is not None or not _is_owner(folder):
            raise NoFabricError(f"there is no registry in {self.folder} yet: its owner starts the fabric first")
        journal = self.path + JOURNAL_SUFFIX
        if _lstat(journal) is not None and _lstat(self.path) is None:
            raise StateError(f"{journal} is left from a registry that was removed: remove it too")
        import tempfile

        new = None
        try:
            descriptor, new = tempfile.mkstemp(prefix=NEW_PREFIX, dir=self.folder)
            with open(descriptor, "wb") as file:
                file.write(_image(fill))
                file.flush()
                _hand_over(descriptor, folder)
                os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                os.link(new, self.path)
            _sync_folder(self.folder)
        except (OSError, sqlite3.Error) as error:
            if _lstat(self.path) is None:  # else another process was faster, and swept ours away
                raise StateError(f"cannot make a registry in {self.folder}: {error}") from None
        finally:
            if new is not None:
                with contextlib.suppress(OSError):
                    os.unlink(new)

    # Who may

    def _why_not_writable(self, found: os.stat_result) -> str | None:
        file = os.access(self.path, os.R_OK | os.W_OK, effective_ids=_EFFECTIVE)
        if file and os.access(self.folder, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
            return None
        return (
            f"the registry {self.path} is changed by {_changed_by(found)} only, and you are {_me()}: "
            "ask one of them, or act as one of them"
        )

    # What a killed writer left

    def _is_journal_in_the_way(self, error: sqlite3.Error) -> bool:
        code = _code(error)
        return code == sqlite3.SQLITE_READONLY_ROLLBACK or (
            code & 0xFF == sqlite3.SQLITE_CANTOPEN and os.path.exists(self.path + JOURNAL_SUFFIX)
        )

    @contextlib.contextmanager
    def _rolled_back_copy(self) -> Iterator[sqlite3.Connection | None]:
        """The last committed state, from a copy of file and journal; None when the journal is gone."""
        import tempfile

        try:
            before = self._file_and_journal()
            if before[1] is None or before != self._file_and_journal():
                yield None
                return
            with tempfile.TemporaryDirectory(prefix="hvsock-registry-") as folder:
                copy = os.path.join(folder, FILE_NAME)
                for path, content in ((copy, before[0]), (copy + JOURNAL_SUFFIX, before[1])):
                    with open(path, "xb") as file:
                        file.write(content)
                connection = _connect(copy, "rw")
                try:
                    self._check_header(connection)
                    yield connection
                finally:
                    connection.close()
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, HvsockError):
                raise
            raise StateError(f"{self._unfinished()}, and a copy cannot be read: {error}") from None

    def _file_and_journal(self) -> tuple[bytes, bytes | None]:
        # The file is never closed again, for closing it would drop this process's locks on it; this
        # costs one descriptor for each registry in which such a journal was met.
        with _kept_open_lock:
            descriptor = _kept_open.get(self._identity)
            if descriptor is None:
                descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                found = os.fstat(descriptor)
                _kept_open[found.st_dev, found.st_ino] = descriptor
        if os.fstat(descriptor).st_size > _COPY_BYTES_MAX:
            raise StateError(f"{self._unfinished()}, and {self.path} is too large for a copy")
        parts = []
        position = 0
        while part := _read_at(descriptor, position):
            parts.append(part)
            position += len(part)
        try:
            with open(self.path + JOURNAL_SUFFIX, "rb") as journal:
                return b"".join(parts), journal.read(_COPY_BYTES_MAX)
        except FileNotFoundError:
            return b"", None

    def _unfinished(self) -> str:
        return f"a writer died and left {self.path}{JOURNAL_SUFFIX}, which the registry's owner rolls back"

    def _translated(self, error: sqlite3.Error) -> HvsockError:
        code = _code(error) & 0xFF
        if _is_busy(error):
            return BusyError(
                f"{self.path} was in use by another process for {BUSY_TIMEOUT_MS / 1000:g} s; "
                "nothing was changed: try again"
            )
        if self._is_journal_in_the_way(error):
            return StateError(f"{self._unfinished()} and {_me()} may not; nothing was changed")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            return RefusedError(f"{_me()} may not write {self.path} any more; nothing was changed")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return StateError(
                f"{self.path} is damaged ({error}): put a copy in its place, or move it away to start anew"
            )
        return StateError(f"cannot use {self.path}: {error}; nothing was changed")


_EFFECTIVE: Final = os.access in os.supports_effective_ids


def _patiently(act: Callable[[], T], timeout_ms: int) -> T:
    """What `act` returns, tried again while the file is locked.

    SQLite's own waiting sleeps for up to 100 ms at a time, and so hardly ever meets the short moments
    that a busy writer leaves.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _connect(path: str, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(path))}?mode={mode}",
        uri=True,
        timeout=0,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _image(fill: Callable[[sqlite3.Connection], None]) -> bytes:
    """The content of a new file."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        fill(connection)
        return connection.serialize()
    finally:
        connection.close()


def _hand_over(descriptor: int, folder: os.stat_result) -> None:
    """Give a new file to the folder's owner and group, readable by all, writable by the group if the folder is."""
    if sys.platform != "win32":
        mode = stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH
        try:
            os.fchown(descriptor, folder.st_uid if os.geteuid() == 0 else -1, folder.st_gid)
            mode |= folder.st_mode & stat.S_IWGRP
        except PermissionError:  # an owner outside of the folder's group keeps the file to itself
            pass
        os.fchmod(descriptor, mode)


def _sync_folder(folder: str) -> None:
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sweep(folder: str) -> None:
    """Remove what killed creators left; a creator that is still at work finds the published file instead."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith(NEW_PREFIX):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_at(descriptor: int, position: int) -> bytes:
    if sys.platform != "win32":
        return os.pread(descriptor, 1 << 20, position)
    os.lseek(descriptor, position, os.SEEK_SET)
    return os.read(descriptor, 1 << 20)


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code


def _is_busy(error: sqlite3.Error) -> bool:
    return _code(error) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_owner(folder: os.stat_result) -> bool:
    if sys.platform == "win32":
        return True
    return os.geteuid() in (folder.st_uid, 0)


def _changed_by(found: os.stat_result) -> str:
    if sys.platform == "win32":
        return "its owner"
    owner = f"its owner {_user(found.st_uid)}"
    return f"{owner} and group {_group(found.st_gid)}" if found.st_mode & stat.S_IWGRP else owner


def _me() -> str:
    if sys.platform == "win32":
        return "another user"
    return _user(os.geteuid())


def _user(uid: int) -> str:
    if sys.platform != "win32":
        import pwd

        with contextlib.suppress(KeyError):
            return pwd.getpwuid(uid).pw_name
    return f"uid {uid}"


def _group(gid: int) -> str:
    if sys.platform != "win32":
        import grp

        with contextlib.suppress(KeyError):
            return grp.getgrgid(gid).gr_name
    return f"gid {gid}"
