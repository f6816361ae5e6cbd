"""The registry's file: how it comes about, whose it is, what is no registry, and what a killed writer leaves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from hvsock.addresses import ServiceId
from hvsock.errors import HvsockError, NoFabricError, RefusedError, StateError
from hvsock.registry import Registry, ServiceName, database
from hvsock.registry.database import APPLICATION_ID, BUSY_TIMEOUT_MS, FILE_NAME, NEW_PREFIX, SCHEMA_VERSION
from hvsock.registry.entries import inbox_entries

if sys.platform == "win32":
    pytest.skip("users, modes and forks of Unix", allow_module_level=True)

from tests.registry.processes import Say, User, in_child, running

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users: run the tests as root")

INBOX = sorted(entry.name for entry in inbox_entries(0.0))
MANY = 200
"""Services of a file that is too large to be changed at once."""
ALICE, BOB, CAROL = 52_001, 52_002, 52_003
ADMINS = 52_100
ADMIN = User(BOB, BOB, (ADMINS,))
STRANGER = User(CAROL, CAROL)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can reach."""
    path = Path(tempfile.mkdtemp(prefix="hvsock-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def alices(folder: Path) -> Path:
    """The folder of a fabric that Alice owns and the admins administer."""
    os.chown(folder, ALICE, ADMINS)
    folder.chmod(0o2775)
    in_child(lambda: Registry(folder).close(), User(ALICE, ALICE, (ADMINS,)))
    return folder


def names(folder: Path) -> list[str]:
    with Registry(folder) as registry:
        return [entry.name for entry in registry.entries() if not entry.inbox]


def register(folder: Path, name: str) -> None:
    with Registry(folder) as registry:
        registry.register(name)


# How it comes about


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    Registry(tmp_path).close()
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    content = (tmp_path / FILE_NAME).read_bytes()
    assert content[:16] == b"SQLite format 3\0"
    assert content[18:20] == b"\1\1"  # a rollback journal, for writing and for reading
    assert content[60:64] == b"\0\0\0\3"  # user_version
    assert content[68:72] == b"hvsr"  # application_id
    with Registry(tmp_path, read_only_because="why not") as registry:
        assert len(registry.entries()) == len(INBOX)


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o700, 0o644), (0o755, 0o644), (0o770, 0o664), (0o775, 0o664), (0o2775, 0o664)]
)
def test_the_group_writes_the_file_where_it_writes_the_folder(tmp_path: Path, mode: int, expected: int) -> None:
    tmp_path.chmod(mode)
    before = os.umask(0o077)
    try:
        Registry(tmp_path).close()
    finally:
        os.umask(before)
    found = (tmp_path / FILE_NAME).stat()
    assert stat.S_IMODE(found.st_mode) == expected
    assert (found.st_uid, found.st_gid) == (tmp_path.stat().st_uid, tmp_path.stat().st_gid)


def test_there_is_no_registry_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(NoFabricError, match=r"there is no folder .*nowhere: start the fabric first"):
        Registry(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(HvsockError):
        Registry(tmp_path / "file")


def test_a_partition_makes_no_registry(tmp_path: Path) -> None:
    with pytest.raises(NoFabricError, match=r"no registry in .* yet"):
        Registry(tmp_path, read_only_because="you speak for vm1")
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    path = tmp_path
    while len(os.fsencode(path)) < 400:
        path = path / ("x" * 50)
    path.mkdir(parents=True)
    register(path, "long")
    assert names(path) == ["long"]
    path = path / ("y" * 79)
    path.mkdir()
    with pytest.raises(StateError, match="bytes too long for SQLite"):
        Registry(path)
    assert not list(path.iterdir())


def test_the_longest_path_works(tmp_path: Path) -> None:
    longest = 512 - 1 - len(f"/{NEW_PREFIX}12345678-journal")
    path = tmp_path
    while len(os.fsencode(path)) < longest - 60:
        path = path / ("x" * 50)
    path = path / ("z" * (longest - 1 - len(os.fsencode(path))))
    path.mkdir(parents=True)
    register(path, "longest")
    assert names(path) == ["longest"]
    path = path.with_name(path.name + "z")
    path.mkdir()
    with pytest.raises(StateError, match="is 1 bytes too long"):
        Registry(path)


def test_a_path_stays_the_same_when_the_working_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry").mkdir()
    monkeypatch.chdir(tmp_path)
    with Registry("registry") as registry:
        monkeypatch.chdir("/")
        registry.register("x")
    assert names(tmp_path / "registry") == ["x"]


def test_a_path_with_everything_in_it(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%41 d&mode=ro\udcff\n служба"
    path.mkdir()
    register(path, "x")
    assert names(path) == ["x"]
    assert (path / FILE_NAME).exists()


def test_what_a_killed_creator_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / f"{NEW_PREFIX}k1ll3d").write_bytes(b"half a file")
    Registry(tmp_path).close()
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    os.link(tmp_path / FILE_NAME, tmp_path / f"{NEW_PREFIX}l4t3r")
    register(tmp_path, "x")
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["_is_owner", "_image", "_hand_over"])
def test_a_creator_that_is_overtaken_uses_the_others_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    original = getattr(database, step)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.undo()
        register(tmp_path, "faster")
        return original(*arguments)

    monkeypatch.setattr(database, step, overtaken)
    assert names(tmp_path) == ["faster"]
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_creation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, folder: os.stat_result) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(database, "_hand_over", fail)
    with pytest.raises(StateError, match=r"cannot make a registry in .*No space left"):
        Registry(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_journal_without_its_file_is_not_rolled_back_into_a_new_one(tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(1000))
    with pytest.raises(StateError, match="left from a registry that was removed: remove it too"):
        Registry(tmp_path)


# What is no registry


def foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
        connection.execute("PRAGMA user_version = 1")


def newer(path: Path) -> None:
    Registry(path.parent).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def damaged(path: Path) -> None:
    Registry(path.parent).close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def cut(path: Path) -> None:
    Registry(path.parent).close()
    os.truncate(path, 4096)


def without_tables(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.touch(), "is not a registry of ours"),
        (lambda path: path.write_bytes(b"hello" * 1000), "is damaged"),
        (foreign, "is not a registry of ours"),
        (newer, f"has version {SCHEMA_VERSION + 1}, this hvsock knows {SCHEMA_VERSION}: use a newer hvsock"),
        (damaged, "is damaged"),
        (cut, "is damaged"),
        (without_tables, "no such table"),
        (lambda path: path.mkdir(), "is not a plain file"),
        (lambda path: path.symlink_to("/etc/passwd"), "is not a plain file"),
        (lambda path: path.symlink_to("nowhere"), "is not a plain file"),
        (lambda path: os.mkfifo(path), "is not a plain file"),
    ],
    ids=range(11),
)
def test_what_is_no_registry_is_told_and_left_alone(tmp_path: Path, make: Callable[[Path], Any], why: str) -> None:
    path = tmp_path / FILE_NAME
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for use in (names, lambda folder: register(folder, "x")):
        with pytest.raises(StateError, match=why) as caught:
            use(tmp_path)
        assert str(caught.value).isprintable()
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE service SET settings = '{'", "is damaged at '{': Expecting"),
        ("UPDATE service SET settings = '{\"bind\": 5}'", "is damaged at .*settings.bind is an object"),
        ("UPDATE service SET id = 'x' || id", "is damaged at 'x.*not a GUID"),
        ("UPDATE service SET created = 'yesterday'", "is damaged at"),
        ("UPDATE service SET flags = 'inbox 5'", "is damaged at .*unknown flag 'inbox 5'"),
        ("UPDATE service SET name = CAST(X'FF' AS TEXT)", "Could not decode"),
        ("INSERT INTO vm_settings VALUES ('x', 'y', '{}')", "is damaged at 'y': not a GUID"),
        ("DROP TABLE vm_settings", "no such table"),
    ],
)
def test_rows_that_nobody_of_us_wrote(tmp_path: Path, statement: str, why: str) -> None:
    Registry(tmp_path).close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as connection:
        connection.execute(statement)
    with Registry(tmp_path) as registry:
        for look in (registry.entries, registry.services):
            with pytest.raises(StateError, match=why) as caught:
                look()
            assert str(caught.value).isprintable()


def test_a_look_that_fails_halfway_locks_nobody_out(tmp_path: Path) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("SELECT id FROM service").fetchall()
        raise ZeroDivisionError

    with Registry(tmp_path) as registry:
        with pytest.raises(ZeroDivisionError):
            registry._database.read(fail)
        register(tmp_path, "x")
        assert len(registry.entries()) == len(INBOX) + 1


def test_a_file_that_was_replaced_takes_no_change(tmp_path: Path) -> None:
    with Registry(tmp_path) as registry:
        (tmp_path / FILE_NAME).unlink()
        with pytest.raises(StateError, match="replaced or removed while it was open; nothing was changed"):
            registry.register("lost")
        register(tmp_path, "new")
        with pytest.raises(StateError, match="replaced or removed"):
            registry.register("lost")
    assert names(tmp_path) == ["new"]


def test_a_disk_that_is_full_changes_nothing(tmp_path: Path) -> None:
    def limited() -> str:
        import resource

        with Registry(tmp_path) as registry:
            size = os.stat(registry.path).st_size
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            many = [ServiceName(ServiceId.new(), f"{'n' * 200}{number}") for number in range(500)]
            with pytest.raises(StateError, match="nothing was changed") as caught:
                registry.import_entries(many)
            registry.find("kept")
            return str(caught.value)

    register(tmp_path, "kept")
    assert "cannot use" in in_child(limited)
    assert names(tmp_path) == ["kept"]


# One after the other


@contextlib.contextmanager
def locked(folder: Path, how: str) -> Iterator[sqlite3.Connection]:
    """The file, held by another program."""
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as connection:
        connection.execute(how)
        yield connection


def test_a_writer_waits_for_another(tmp_path: Path) -> None:
    with Registry(tmp_path) as registry, locked(tmp_path, "BEGIN IMMEDIATE") as other:
        done: list[float] = []
        thread = threading.Thread(target=lambda: done.append(registry.register("x").changed))
        thread.start()
        time.sleep(0.1)
        assert not done
        other.execute("ROLLBACK")
        thread.join()
        assert done


def test_a_writer_that_waits_too_long_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 30)
    with Registry(tmp_path) as registry:
        for how in ("BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "BEGIN; SELECT * FROM service"):
            with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
                for statement in how.split(";"):
                    other.execute(statement).fetchone()
                with pytest.raises(
                    StateError, match=r"in use by another process for 0\.03 s; nothing was changed"
                ):
                    registry.register("x")
        assert registry.register("x").name == "x"


def test_the_broker_is_not_held_up_by_a_commit(tmp_path: Path) -> None:
    assert BUSY_TIMEOUT_MS > 2000
    with Registry(tmp_path) as registry:
        version, services = registry.version(), registry.services()
        register(tmp_path, "one")
        start = time.monotonic()
        with locked(tmp_path, "BEGIN EXCLUSIVE"):
            assert registry.version() == version
            assert registry.services() is services
            assert registry.alias(0x999E53D4) is not None
        assert time.monotonic() - start < BUSY_TIMEOUT_MS / 1000
        assert registry.version() != version
        with locked(tmp_path, "BEGIN EXCLUSIVE"):  # seen, but not read
            assert registry.services() is services
        assert len(registry.services()) == len(INBOX) + 1


def test_no_services_were_read_yet_when_the_file_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Registry(tmp_path) as registry, locked(tmp_path, "BEGIN EXCLUSIVE"):
        monkeypatch.setattr("hvsock.registry.store.BUSY_TIMEOUT_MS", 30)
        with pytest.raises(StateError, match="in use"):
            registry.services()


# Whose it is


@needs_root
def test_root_makes_the_file_for_the_folders_owner(folder: Path) -> None:
    os.chown(folder, ALICE, ADMINS)
    register(folder, "by root")
    found = (folder / FILE_NAME).stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (ALICE, ADMINS, 0o644)
    in_child(lambda: register(folder, "by alice"), User(ALICE, ALICE))
    register(folder, "by root again")
    assert len(names(folder)) == 3


@needs_root
def test_nobody_else_makes_the_file(folder: Path) -> None:
    os.chown(folder, ALICE, ADMINS)
    folder.chmod(0o777)
    for user in (ADMIN, STRANGER):
        with pytest.raises(NoFabricError, match=r"no registry in .* yet: its owner starts the fabric first"):
            in_child(lambda: Registry(folder).close(), user)
    assert not list(folder.iterdir())


@needs_root
def test_an_owner_outside_of_the_folders_group_keeps_the_file_to_itself(folder: Path) -> None:
    os.chown(folder, ALICE, ADMINS)
    folder.chmod(0o775)
    in_child(lambda: register(folder, "mine"), User(ALICE, ALICE))
    found = (folder / FILE_NAME).stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (ALICE, ALICE, 0o644)


@needs_root
def test_the_admin_group_changes_it(alices: Path) -> None:
    in_child(lambda: register(alices, "by an admin"), ADMIN)
    in_child(lambda: register(alices, "by alice"), User(ALICE, ALICE))
    assert in_child(lambda: names(alices), STRANGER) == ["by alice", "by an admin"]
    assert [file.name for file in alices.iterdir()] == [FILE_NAME]


@needs_root
def test_other_users_read_it_and_are_refused_clearly(alices: Path) -> None:
    def attempt() -> tuple[str, list[str]]:
        with Registry(alices) as registry:
            for change in (
                lambda: registry.register("x"),
                lambda: registry.unregister("one"),
                lambda: registry.set_enabled("one", False),
                lambda: registry.import_entries([]),
            ):
                with pytest.raises(RefusedError) as caught:
                    change()
                assert str(caught.value) == registry.read_only_because
            return str(caught.value), [entry.name for entry in registry.services().values()]

    in_child(lambda: register(alices, "one"), ADMIN)
    refusal, seen = in_child(attempt, STRANGER)
    assert refusal == (
        f"the registry {alices}/registry.db is changed by its owner uid {ALICE} and group gid {ADMINS} only, "
        f"and you are uid {CAROL}: ask one of them, or act as one of them"
    )
    assert sorted(seen) == [*INBOX, "one"]
    assert in_child(lambda: names(alices), STRANGER) == ["one"]


@needs_root
def test_users_and_groups_are_named(folder: Path) -> None:
    Registry(folder).close()
    folder.chmod(0o775)
    (folder / FILE_NAME).chmod(0o664)
    with pytest.raises(RefusedError, match=r"its owner root and group root only, and you are uid"):
        in_child(lambda: register(folder, "x"), STRANGER)


@needs_root
@pytest.mark.parametrize("mode", [0o750, 0o700])
def test_a_folder_that_is_closed_to_others(alices: Path, mode: int) -> None:
    alices.chmod(mode)
    with pytest.raises(RefusedError, match=rf"uid {CAROL} may not enter"):
        in_child(lambda: names(alices), STRANGER)


@needs_root
def test_a_file_that_is_closed_to_others(alices: Path) -> None:
    (alices / FILE_NAME).chmod(0o660)
    with pytest.raises(RefusedError, match=rf"uid {CAROL} may not read .*: its owner uid {ALICE} and group"):
        in_child(lambda: names(alices), STRANGER)


@needs_root
def test_a_reader_sees_changes_while_it_is_open(alices: Path) -> None:
    def read(say: Say) -> None:
        with Registry(alices) as registry:
            version = registry.version()
            say(f"{len(registry.services())}")
            while registry.version() == version:
                time.sleep(0.001)
            say(f"{len(registry.services())}")

    with running(read, STRANGER) as child:
        assert child.next_line() == f"{len(INBOX)}"
        register(alices, "x")
        assert child.next_line() == f"{len(INBOX) + 1}"
        child.wait()


# What a killed writer left


def die_in_the_middle(folder: Path) -> None:
    """Change every row, and be killed when half of it is in the file already."""

    def change() -> None:
        with Registry(folder) as registry, registry._database.write() as connection:
            connection.execute("PRAGMA cache_size = 2")
            connection.execute("UPDATE service SET name = 'lost ' || name, name_key = 'lost ' || name_key")
            os.kill(os.getpid(), signal.SIGKILL)

    with running(lambda say: change()) as child:
        child.wait()
        assert child.status == signal.SIGKILL


@pytest.fixture
def hot(alices: Path) -> Path:
    """A folder with a file that is half changed, and the journal to roll it back."""
    many = [ServiceName(ServiceId.from_port(port), f"service {port:04} {'x' * 100}") for port in range(MANY)]
    with Registry(alices) as registry:
        registry.import_entries(many)
    before = (alices / FILE_NAME).read_bytes()
    die_in_the_middle(alices)
    assert (alices / f"{FILE_NAME}-journal").stat().st_size > 4096
    assert (alices / FILE_NAME).read_bytes() != before
    return alices


def state(folder: Path) -> tuple[int, int, bool]:
    """How many services are registered, how many of them never were, and whether the file is sound."""
    with Registry(folder) as registry:
        found = registry.entries()
        registry.version()
        lost = [entry for entry in found if entry.name.startswith("lost")]
        check = registry._database.read(lambda connection: connection.execute("PRAGMA integrity_check").fetchall())
        assert {entry.id for entry in found} == set(registry.services())
        return len(found), len(lost), check == [("ok",)]


@needs_root
@pytest.mark.parametrize("user", [None, User(ALICE, ALICE), ADMIN], ids=["root", "owner", "admin"])
def test_whoever_may_write_rolls_back_what_a_killed_writer_left(hot: Path, user: User | None) -> None:
    assert in_child(lambda: state(hot), user) == (len(INBOX) + MANY, 0, True)
    assert [file.name for file in hot.iterdir()] == [FILE_NAME]
    in_child(lambda: register(hot, "next"), user)
    assert state(hot) == (len(INBOX) + MANY + 1, 0, True)


@needs_root
def test_a_reader_that_may_not_write_still_reads_beside_the_journal(hot: Path) -> None:
    before = [(file.name, file.read_bytes()) for file in sorted(hot.iterdir())]
    copies = set(Path(tempfile.gettempdir()).glob("hvsock-registry-*"))
    assert in_child(lambda: state(hot), STRANGER) == (len(INBOX) + MANY, 0, True)
    assert [(file.name, file.read_bytes()) for file in sorted(hot.iterdir())] == before
    assert set(Path(tempfile.gettempdir()).glob("hvsock-registry-*")) == copies
    assert state(hot) == (len(INBOX) + MANY, 0, True)
    assert in_child(lambda: state(hot), STRANGER) == (len(INBOX) + MANY, 0, True)


@needs_root
def test_a_reader_stays_right_while_a_journal_comes_and_goes(hot: Path) -> None:
    def read(say: Say) -> None:
        with Registry(hot) as registry:
            while True:
                found = len(registry.services())
                assert found <= len(registry.entries())
                say(f"{found}")
                time.sleep(0.002)

    with running(read, STRANGER) as child:
        before, after = f"{len(INBOX) + MANY}", f"{len(INBOX) + MANY + 1}"
        assert child.next_line() == before
        register(hot, "after")
        while (line := child.next_line()) != after:
            assert line == before
        die_in_the_middle(hot)
        for _ in range(20):
            assert child.next_line() == after


@needs_root
def test_what_an_admin_left_in_a_folder_of_another_group_can_be_read_at_least(alices: Path) -> None:
    """Without the set-group-id bit the journal is the admin's own, and the owner may not roll it back."""
    alices.chmod(0o775)
    with Registry(alices) as registry:
        registry.import_entries([ServiceName(ServiceId.from_port(n), f"{n} {'x' * 100}") for n in range(MANY)])
    in_child(lambda: die_in_the_middle(alices), ADMIN)
    assert in_child(lambda: state(alices), User(ALICE, ALICE)) == (len(INBOX) + MANY, 0, True)
    with pytest.raises(StateError, match=r"a writer died and left .*-journal.* may not; nothing was changed"):
        in_child(lambda: register(alices, "x"), User(ALICE, ALICE))
    assert state(alices) == (len(INBOX) + MANY, 0, True)


@needs_root
def test_a_journal_that_cannot_be_copied_is_told(hot: Path) -> None:
    (hot / f"{FILE_NAME}-journal").chmod(0o600)
    with pytest.raises(
        StateError, match=r"a writer died and left .*, and a copy cannot be read: .*Permission denied"
    ):
        in_child(lambda: names(hot), STRANGER)

    def with_a_small_limit() -> None:
        with mock.patch.object(database, "_COPY_BYTES_MAX", 4096):
            names(hot)

    with pytest.raises(StateError, match="is too large for a copy"):
        in_child(with_a_small_limit, STRANGER)


@needs_root
def test_copies_cost_one_descriptor_and_no_locks(hot: Path) -> None:
    """To close a descriptor of the file would drop the locks that other connections have on it (POSIX)."""

    def read() -> int:
        for _ in range(3):
            names(hot)
        return len(database._kept_open)

    assert in_child(read, STRANGER) == 1
