"""Kill -9 at any point of a write, and writers that all write at once: no committed entry is ever lost."""

from __future__ import annotations

import itertools
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvsock.addresses import ServiceId
from hvsock.errors import DuplicateError
from hvsock.registry import Registry, ServiceEntry, ServiceName
from hvsock.registry.database import FILE_NAME
from hvsock.registry.entries import inbox_entries
from tests.support import sample

if sys.platform == "win32":
    pytest.skip("kills and forks of Unix", allow_module_level=True)

from tests.registry.processes import Say, in_child, running

INBOX = {entry.id for entry in inbox_entries(0.0)}
KILLS = sample(6, 1_000)
CREATIONS = sample(20, 500)
WRITERS = 4
REGISTERS_EACH = sample(6, 200)
MOST_SECONDS = 0.02
"""A killed writer lives that long after its first commit: some ten commits."""


def check(folder: Path) -> dict[ServiceId, ServiceEntry]:
    """What is registered, after a look at the whole file."""
    with Registry(folder) as registry:
        result = registry._database.read(
            lambda connection: connection.execute("PRAGMA integrity_check").fetchall()
        )
        assert result == [("ok",)]
        return {entry.id: entry for entry in registry.entries()}


State = dict[str, tuple[str, bool | None]]
"""Name and enabled of every service, by id."""


def state_of(folder: Path) -> State:
    """What is registered besides the in-box services, after a look at the whole file."""
    return {str(e.id): (e.name, e.settings.enabled) for e in check(folder).values() if not e.inbox}


def apply(state: State, what: str, services: list[list[str]]) -> State:
    """What becomes of `state` by one change, which is as a writer says it."""
    after = dict(state)
    for service_id, name in services:
        match what:
            case "register" | "import":
                after[service_id] = (name, None)
            case "disable":
                after[service_id] = (name, False)
            case "unregister":
                del after[service_id]
    return after


def write_on_and_on(folder: Path, run: int) -> Callable[[Say], None]:
    """A writer that says what it is about to do and, after the commit, that it is done."""

    def write(say: Say) -> None:
        chooser = random.Random(run)
        mine: list[list[str]] = []
        with Registry(folder) as registry:
            for number in range(1_000_000):
                new = [str(ServiceId.new()), f"run {run} number {number}"]
                old = chooser.choice(mine) if mine else new
                what = chooser.choice(["register"] * 5 + ["import", "disable", "unregister"] * bool(mine))
                if what == "register":
                    say(json.dumps([what, [new]]))
                    registry.register(new[1], new[0])
                    mine.append(new)
                elif what == "import":
                    many = [[str(ServiceId.new()), f"run {run} number {number} of import {i}"] for i in range(20)]
                    say(json.dumps([what, many]))
                    registry.import_entries([ServiceName(ServiceId(one), name) for one, name in many])
                    mine += many
                elif what == "disable":
                    say(json.dumps([what, [old]]))
                    registry.set_enabled(old[0], False)
                else:
                    say(json.dumps([what, [old]]))
                    registry.unregister(old[0])
                    mine.remove(old)
                say("done")

    return write


def test_kill_9_loses_no_committed_entry(tmp_path: Path) -> None:
    chooser = random.Random(20_260_131)
    state: State = {}
    in_the_middle = 0
    for run in itertools.count():
        if run >= KILLS and in_the_middle:  # none may have been, in a few, on a fast disk
            break
        with running(write_on_and_on(tmp_path, run)) as child:
            lines = [child.next_line()]
            time.sleep(chooser.uniform(0, MOST_SECONDS))
            lines += child.kill()
            assert child.status == signal.SIGKILL
        in_the_middle += (tmp_path / f"{FILE_NAME}-journal").exists()
        done = state
        for change, after in zip(lines, [*lines[1:], ""], strict=True):
            if change != "done":
                state = apply(done, *json.loads(change))
                done = state if after == "done" else done
        found = state_of(tmp_path)
        assert found in (done, state), "neither all that was committed nor that and the next change"
        state = found
        with Registry(tmp_path) as registry:  # so that it does not fill up
            for service_id in chooser.sample(sorted(state), len(state) // 2):
                registry.unregister(service_id)
                del state[service_id]
    print(f"{in_the_middle} of {run} kills came in the middle of a transaction")
    assert state_of(tmp_path) == state
    with Registry(tmp_path) as registry:  # a journal that was not begun yet goes with the next writer
        registry.unregister(registry.register("last").id)
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.soak
def test_kill_9_while_the_registry_is_made(tmp_path: Path) -> None:
    chooser = random.Random(20_260_201)
    made = 0
    for number in range(CREATIONS):
        folder = tmp_path / str(number)
        folder.mkdir()

        def make(say: Say, folder: Path = folder) -> None:
            Registry(folder).close()
            say("made")

        with running(make) as child:
            time.sleep(chooser.uniform(0, 0.008))
            made += len(child.kill())
        assert set(check(folder)) == INBOX
        assert [file.name for file in folder.iterdir()] == [FILE_NAME]
    assert made < CREATIONS


def test_processes_that_make_the_registry_at_once_agree_on_one(tmp_path: Path) -> None:
    for number in range(sample(2, 100)):
        folder = tmp_path / str(number)
        folder.mkdir()
        start = time.monotonic() + 0.02

        def make(say: Say, folder: Path = folder, start: float = start) -> None:
            time.sleep(max(0.0, start - time.monotonic()))
            with Registry(folder) as registry:
                say(registry.register(f"by {time.monotonic_ns()} {ServiceId.new()}").id)

        with running(make) as one, running(make) as two, running(make) as three:
            ids = {ServiceId(line) for child in (one, two, three) for line in child.wait()}
        assert len(ids) == 3
        assert set(check(folder)) == INBOX | ids
        assert [file.name for file in folder.iterdir()] == [FILE_NAME]


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    Registry(tmp_path).close()

    def write(writer: int) -> Callable[[Say], None]:
        def work(say: Say) -> None:
            with Registry(tmp_path) as registry:
                for number in range(REGISTERS_EACH):
                    entry = registry.register(
                        f"writer {writer} number {number}", port_alias=writer * 1_000 + number
                    )
                    say(entry.id)
                    registry.set_enabled(entry.id, False)

        return work

    with running(write(1)) as one, running(write(2)) as two, running(write(3)) as three, running(write(4)) as four:
        children = (one, two, three, four)
        ids = [ServiceId(line) for child in children for line in child.wait()]
        assert [child.status for child in children] == [0] * WRITERS
    assert len(ids) == len(set(ids)) == WRITERS * REGISTERS_EACH
    found = check(tmp_path)
    assert set(found) == INBOX | set(ids)
    assert all(found[one].settings.enabled is False for one in ids)


def test_of_writers_of_the_same_name_one_wins(tmp_path: Path) -> None:
    Registry(tmp_path).close()

    def work(say: Say) -> None:
        with Registry(tmp_path) as registry:
            for number in range(10):
                try:
                    say(registry.register(f"name {number}").id)
                except DuplicateError:
                    say("taken")

    with running(work) as one, running(work) as two, running(work) as three:
        lines = [line for child in (one, two, three) for line in child.wait()]
    assert len(lines) == 30
    assert lines.count("taken") == 20
    assert set(check(tmp_path)) > {ServiceId(line) for line in lines if line != "taken"}


def test_a_reader_never_sees_half_a_change(tmp_path: Path) -> None:
    """Ids and port aliases change places in every transaction, and are always all there."""
    ids = [ServiceId.new() for _ in range(20)]
    with Registry(tmp_path) as registry:
        registry.import_entries([ServiceEntry(one, f"service {i}", 100 + i) for i, one in enumerate(ids)])

    def shuffle(say: Say) -> None:
        chooser = random.Random(7)
        with Registry(tmp_path) as registry:
            say("ready")
            while True:
                chooser.shuffle(ids)
                registry.import_entries(
                    [ServiceEntry(one, f"service {i}", 100 + i) for i, one in enumerate(ids)], replace=True
                )

    with running(shuffle) as child:
        assert child.next_line() == "ready"
        with Registry(tmp_path) as registry:
            seen: set[tuple[ServiceId, ...]] = set()
            for number in itertools.count():
                if number >= sample(50, 5_000) and len(seen) > 1:  # none may have come, in a few, on a slow disk
                    break
                entries = [entry for entry in registry.entries() if not entry.inbox]
                assert sorted(entry.port_alias or 0 for entry in entries) == list(range(100, 120))
                assert {entry.id for entry in entries} == set(ids)
                assert all(entry.name == f"service {(entry.port_alias or 0) - 100}" for entry in entries)
                seen.add(tuple(entry.id for entry in entries))
                assert len(registry.services()) == 20 + len(INBOX)


def test_the_children_of_these_tests_tell_what_went_wrong() -> None:
    with pytest.raises(ZeroDivisionError):
        in_child(lambda: 1 // 0)
