"""A registry that an earlier version made gains the in-box services of this one, and loses nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from hvsock.addresses import ServiceId, VmId
from hvsock.constants import GUEST_SERVICE_INTERFACE, HEARTBEAT, INTEGRATION_SERVICES, SHUTDOWN, IntegrationService
from hvsock.errors import StateError, UsageError
from hvsock.registry import Imported, Registry, ServiceEntry, ServiceName, database
from hvsock.registry.database import FILE_NAME
from hvsock.registry.entries import inbox_entries
from hvsock.registry.formats.jsonfile import dump_json, load_json
from hvsock.registry.formats.regfile import dump_reg, load_reg
from hvsock.registry.forwards import Forward
from hvsock.topology.access import Settings
from tests.support import sample

if sys.platform == "win32":
    pytest.skip("kills and forks of Unix", allow_module_level=True)

from tests.registry.processes import Say, in_child, running

INBOX = {entry.id for entry in inbox_entries(0.0)}
OURS = {ServiceId.from_port(one.port) for one in INTEGRATION_SERVICES}
ONE = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
VM = VmId("11111111-2222-3333-4444-555555555555")
OTHER_VM = VmId("66666666-7777-8888-9999-aaaaaaaaaaaa")
KILLS = sample(4, 500)


def make_early(folder: Path, *entries: ServiceEntry) -> Path:
    """A registry as the first version made it, with two in-box services and `entries`."""
    with Registry(folder):
        pass
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as connection:
        for id_ in OURS:
            connection.execute("DELETE FROM service WHERE id = ?", (str(id_),))
        connection.execute("ALTER TABLE service DROP COLUMN forward")
        connection.execute("DROP TABLE defaults")
        connection.execute("PRAGMA user_version = 1")
        for entry in entries:
            connection.execute(
                "INSERT INTO service (id, name, name_key, port_alias, flags, created, changed, settings)"
                " VALUES (?, ?, ?, ?, '', 1.0, 1.0, '{}')",
                (str(entry.id), entry.name, entry.name.casefold(), entry.port_alias),
            )
    return folder


def test_whoever_may_change_it_completes_it(tmp_path: Path) -> None:
    make_early(tmp_path, ServiceEntry(ONE, "mine"))
    with Registry(tmp_path, read_only_because="a guest") as registry:
        assert len(registry.entries()) == 3
        assert registry.displaced == ()
    before = time.time()
    with Registry(tmp_path) as registry:
        assert {entry.id for entry in registry.entries()} == {*INBOX, ONE}
        heartbeat = registry.find("Heartbeat")
        assert heartbeat.inbox
        assert registry.get(ONE) == ServiceEntry(ONE, "mine", created=1.0, changed=1.0)
        assert registry.set_forward("mine", Forward("/run/mine")).forward == Forward("/run/mine")
        assert heartbeat.created >= before - 1
        version = registry.version()
        with Registry(tmp_path) as again:
            assert again.entries() == registry.entries()
        assert registry.version() == version, "what is complete is not written again"


@pytest.mark.parametrize(
    ("theirs", "left_out"),
    [
        (ServiceEntry(ServiceId.from_port(HEARTBEAT.port), "pulse"), HEARTBEAT),
        (ServiceEntry(ServiceId.from_port(HEARTBEAT.port), "Heartbeat"), HEARTBEAT),
        (ServiceEntry(ONE, "HEARTBEAT"), HEARTBEAT),
        (ServiceEntry(ONE, "halt", SHUTDOWN.port), SHUTDOWN),
    ],
)
def test_what_an_operator_registered_stays(
    tmp_path: Path, theirs: ServiceEntry, left_out: IntegrationService
) -> None:
    make_early(tmp_path, theirs)
    for _ in range(2):
        with Registry(tmp_path) as registry:
            found = registry.get(theirs.id)
            assert found is not None
            assert (found.name, found.port_alias, found.inbox) == (theirs.name, theirs.port_alias, False)
            (line,) = registry.displaced
            assert line.startswith(f"the in-box service {left_out.name!r} ")
            assert f"in use by {theirs.name!r} ({theirs.id})" in line
            assert len(registry.entries()) == len(INBOX)  # one is left out, one is theirs
    with Registry(tmp_path) as registry:
        registry.unregister(theirs.id)
    with Registry(tmp_path) as registry:
        assert registry.displaced == ()
        assert {entry.id for entry in registry.entries()} == INBOX


def test_an_inbox_service_of_another_registry_does_not_go_over_an_operators(tmp_path: Path) -> None:
    mine = ServiceEntry(ServiceId.from_port(HEARTBEAT.port), "pulse")
    make_early(tmp_path, mine)
    with Registry(tmp_path) as registry:
        before = registry.entries()
        with pytest.raises(UsageError, match=r"'Heartbeat' .* is none of the in-box services here"):
            registry.import_entries(inbox_entries(1.0), replace=True)
        assert registry.entries() == before


def test_a_file_that_cannot_be_written_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_early(tmp_path)
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 30)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.WARNING), Registry(tmp_path) as registry:
            assert len(registry.entries()) == 2
            with pytest.raises(StateError, match="in use by another process"):
                registry.register("x")
        assert "the registry stays that of an earlier version" in caplog.text
    with Registry(tmp_path) as registry:
        assert len(registry.entries()) == len(INBOX)


@pytest.mark.soak
def test_processes_that_open_it_at_once_complete_it_once(tmp_path: Path) -> None:
    for number in range(sample(2, 100)):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_early(folder)

        def complete(say: Say, folder: Path = folder) -> None:
            with Registry(folder) as registry:
                say(f"{len(registry.entries())}")

        with running(complete) as one, running(complete) as two, running(complete) as three:
            seen = [line for child in (one, two, three) for line in child.wait()]
        assert seen == [f"{len(INBOX)}"] * 3


def test_kill_9_while_it_is_completed_leaves_all_of_it_or_none(tmp_path: Path) -> None:
    chooser = random.Random(20_261_128)
    untouched = 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_early(folder, ServiceEntry(ONE, "mine"))

        def complete(say: Say, folder: Path = folder) -> None:
            say("here")
            Registry(folder).close()
            say("done")

        with running(complete) as child:
            child.next_line()
            time.sleep(chooser.uniform(0, 0.02))
            child.kill()

        def read(folder: Path = folder) -> int:
            with Registry(folder, read_only_because="only looks") as registry:
                return len(registry.entries())

        found = in_child(read)
        assert found in (3, len(INBOX) + 1)
        untouched += found == 3
        with Registry(folder) as registry:
            assert {entry.id for entry in registry.entries()} == {*INBOX, ONE}
    print(f"{untouched} of {KILLS} came before the end of the transaction")


def test_kill_9_in_the_midst_of_the_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_early(tmp_path)

    def complete(say: Say) -> None:
        done = []
        insert = __import__("hvsock.registry.rows", fromlist=["rows"]).insert

        def dying(connection: sqlite3.Connection, entry: ServiceEntry) -> None:
            insert(connection, entry)
            done.append(entry)
            if len(done) == len(OURS) // 2:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr("hvsock.registry.rows.insert", dying)
        Registry(tmp_path).close()

    with running(complete) as child:
        child.wait()
        assert child.status == signal.SIGKILL
    with Registry(tmp_path, read_only_because="only looks") as registry:
        assert len(registry.entries()) == 2
    with Registry(tmp_path) as registry:
        assert len(registry.entries()) == len(INBOX)


def test_the_one_that_is_off_by_default_is_enabled_and_goes_back(tmp_path: Path) -> None:
    key = GUEST_SERVICE_INTERFACE.name
    service_id = ServiceId.from_port(GUEST_SERVICE_INTERFACE.port)
    make_early(tmp_path)
    with Registry(tmp_path) as registry:

        def enabled(vm_id: VmId | None) -> bool:
            return bool(registry.services()[service_id].settings_for(vm_id).enabled)

        assert not enabled(None)
        assert not registry.find(key).touched
        registry.set_enabled(key, True, VM)
        assert (enabled(None), enabled(VM), enabled(OTHER_VM)) == (False, True, False)
        registry.set_enabled(key, True)
        assert enabled(OTHER_VM)
        registry.set_enabled(key, False, VM)
        assert (enabled(None), enabled(VM)) == (True, False)
        registry.set_enabled(key, None, VM)
        registry.set_enabled(key, None)
        assert (enabled(None), enabled(VM)) == (False, False)
        assert registry.find(key).settings == Settings()


def test_export_and_import_keep_what_is_off_by_default(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    key = GUEST_SERVICE_INTERFACE.name
    with Registry(tmp_path / "one") as one, Registry(tmp_path / "other") as other:
        other.import_entries(load_json(dump_json(one.entries()), now=0.0).services)
        assert not other.find(key).touched
        one.set_enabled(key, True)
        other.import_entries(load_json(dump_json(one.entries()), now=0.0).services)
        assert other.find(key).settings == Settings(enabled=True)
        names = load_reg(dump_reg(one.entries(), inbox=True)).services
        assert ServiceName(ServiceId.from_port(GUEST_SERVICE_INTERFACE.port), key) in names
        assert other.import_entries(names) == Imported(0, 0, len(INBOX))
        assert other.find(key).settings == Settings(enabled=True)
