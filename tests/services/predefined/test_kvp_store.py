"""The guest's file of data exchange: all or nothing, also over kill -9; damage; what a watcher is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.errors import HvsockError, NotFoundError, RefusedError, StateError, UsageError
from hvsock.services.predefined.kvp import pools, store
from hvsock.services.predefined.kvp.changes import Follower
from hvsock.services.predefined.kvp.interface import ChangeKind
from hvsock.services.predefined.kvp.pools import Pool, Side
from hvsock.services.predefined.kvp.programs import Local, local
from hvsock.services.predefined.kvp.store import Store
from tests.support import sample

KILLED = """if True:
    import sys
    from hvsock.services.predefined.kvp.pools import Pool, Side
    from hvsock.services.predefined.kvp.store import Store
    pairs = Store(sys.argv[1])
    for number in range(10**9):
        value = str(number).encode() * 2000
        pairs.set(Side.HOST, Pool.EXTERNAL, {f"key{i}": value for i in range(8)})
        print(number, flush=True)
"""


@pytest.fixture
def pairs(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_pairs_come_and_go(pairs: Store) -> None:
    first = pairs.set(Side.HOST, Pool.EXTERNAL, {"b": b"1", "a": b"\0\xff"})
    assert [(one.key, one.value, one.owner, one.revision) for one in pairs.pairs(Pool.EXTERNAL)] == [
        ("a", b"\0\xff", "host", first),
        ("b", b"1", "host", first),
    ]
    assert pairs.set(Side.GUEST, Pool.GUEST, {"a": b"of the guest"}) == first + 1
    assert pairs.get(Pool.EXTERNAL, "a").value == b"\0\xff"
    pairs.delete(Side.HOST, Pool.EXTERNAL, ["a"])
    with pytest.raises(NotFoundError, match="no key 'a'"):
        pairs.get(Pool.EXTERNAL, "a")
    assert Store(os.path.dirname(pairs.path)).get(Pool.EXTERNAL, "b").value == b"1"


def test_sides_write_their_own_pools(pairs: Store) -> None:
    with pytest.raises(RefusedError, match="written by the guest"):
        pairs.set(Side.HOST, Pool.GUEST, {"a": b""})
    with pytest.raises(RefusedError, match="written by the host"):
        pairs.delete(Side.GUEST, Pool.AUTO_EXTERNAL, ["a"])
    with pytest.raises(RefusedError, match="for the other side"):
        pairs.acknowledge(Side.HOST, Pool.EXTERNAL, "a", 1)
    assert pairs.state().revision == 0


@pytest.mark.parametrize("key", ["", "a\0b", "x" * (pools.MAX_KEY_BYTES + 1), "\ud800"])
def test_keys_that_are_none(pairs: Store, key: str) -> None:
    with pytest.raises(UsageError):
        pairs.set(Side.HOST, Pool.EXTERNAL, {"good": b"", key: b""})
    assert pairs.pairs(Pool.EXTERNAL) == []


def test_values_have_a_bound_and_pools_too(pairs: Store) -> None:
    largest = bytes(pools.MAX_VALUE_BYTES)
    pairs.set(Side.HOST, Pool.EXTERNAL, {"large": largest})
    assert pairs.get(Pool.EXTERNAL, "large").value == largest
    with pytest.raises(UsageError, match="copy a file instead"):
        pairs.set(Side.HOST, Pool.EXTERNAL, {"large": largest + b"x"})
    for number in range(6):
        pairs.set(Side.HOST, Pool.EXTERNAL, {f"more{number}": largest})
    before = pairs.state()
    with pytest.raises(UsageError, match="delete some"):
        pairs.set(Side.HOST, Pool.EXTERNAL, {"one": largest, "two": largest})
    assert pairs.state() == before
    with pytest.raises(UsageError, match="are the most"):
        pairs.set(Side.HOST, Pool.EXTERNAL, {str(one): b"" for one in range(pools.MAX_SET_KEYS + 1)})


def test_a_pool_has_so_many_keys(pairs: Store) -> None:
    for number in range(0, pools.MAX_POOL_KEYS, pools.MAX_SET_KEYS):
        pairs.set(Side.GUEST, Pool.GUEST, {str(number + i): b"" for i in range(pools.MAX_SET_KEYS)})
    with pytest.raises(UsageError, match="would have 1025 keys"):
        pairs.set(Side.GUEST, Pool.GUEST, {"one more": b""})


def test_deleting_is_all_or_nothing(pairs: Store) -> None:
    pairs.set(Side.HOST, Pool.EXTERNAL, {"a": b"", "b": b""})
    with pytest.raises(NotFoundError, match="nothing was deleted"):
        pairs.delete(Side.HOST, Pool.EXTERNAL, ["a", "c"])
    assert len(pairs.pairs(Pool.EXTERNAL)) == 2


def test_deleting_by_owner(pairs: Store) -> None:
    pairs.set(Side.HOST, Pool.EXTERNAL, {"a": b"", "b": b""})
    pairs.set(Side.HOST, Pool.EXTERNAL, {"c": b"", "d": b""}, "deploy")
    pairs.set(Side.GUEST, Pool.GUEST, {"e": b""}, "deploy")
    assert pairs.get(Pool.EXTERNAL, "c").owner == "host/deploy"
    assert pairs.delete_owned(Side.HOST, "deploy")[1] == 2
    assert pairs.get(Pool.GUEST, "e").owner == "guest/deploy"
    assert pairs.delete_owned(Side.HOST, "")[1] == 2
    assert pairs.delete_owned(Side.HOST)[1] == 0
    assert pairs.delete_owned(Side.GUEST)[1] == 1
    with pytest.raises(UsageError, match="no label"):
        pairs.delete_owned(Side.HOST, "a\nb")


def test_acknowledging_what_was_read(pairs: Store) -> None:
    revision = pairs.set(Side.HOST, Pool.EXTERNAL, {"a": b"1"})
    pairs.acknowledge(Side.GUEST, Pool.EXTERNAL, "a", revision)
    found = pairs.get(Pool.EXTERNAL, "a")
    assert (found.acknowledged, found.changed) == (revision, revision + 1)
    pairs.set(Side.HOST, Pool.EXTERNAL, {"a": b"2"})
    with pytest.raises(UsageError, match="read it again"):
        pairs.acknowledge(Side.GUEST, Pool.EXTERNAL, "a", revision)
    assert pairs.get(Pool.EXTERNAL, "a").acknowledged == 0


def test_replacing_what_is_the_same_changes_nothing(pairs: Store) -> None:
    revision = pairs.replace(Side.GUEST, Pool.AUTO, {"a": b"1", "b": b"2"})
    assert pairs.replace(Side.GUEST, Pool.AUTO, {"b": b"2", "a": b"1"}) == revision
    assert pairs.replace(Side.GUEST, Pool.AUTO, {"b": b"3", "c": b"4"}) == revision + 1
    assert {one.key: one.value for one in pairs.pairs(Pool.AUTO)} == {"b": b"3", "c": b"4"}


def test_kill_9_leaves_all_or_nothing(tmp_path: Path) -> None:
    for _ in range(sample(2, 100)):
        with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(3):
                last = int(writer.stdout.readline())
            writer.kill()
            told = [last, *map(int, writer.stdout.read().split())][-1]
        values = {one.value for one in Store(str(tmp_path)).pairs(Pool.EXTERNAL)}
        assert len(values) == 1
        (value,) = values
        assert value in (str(told).encode() * 2000, str(told + 1).encode() * 2000)
        Store(str(tmp_path)).check()


@pytest.mark.parametrize("damage", ["no header", "torn pages", "short"])
def test_a_damaged_file_is_told_and_moved_aside(pairs: Store, damage: str) -> None:
    pairs.set(Side.HOST, Pool.EXTERNAL, {str(one): b"x" * 5000 for one in range(20)})
    epoch = pairs.state().epoch
    content = Path(pairs.path).read_bytes()
    broken = {
        "no header": b"garbage" * 1000,
        "torn pages": content[:4096] + b"\xa5" * (len(content) - 4096),
        "short": content[: len(content) // 2],
    }[damage]
    Path(pairs.path).write_bytes(broken)
    with pytest.raises(StateError, match="was damaged"):
        pairs.check()
    assert Path(pairs.path + store.DAMAGED_SUFFIX).read_bytes() == broken
    assert pairs.pairs(Pool.EXTERNAL) == []
    assert pairs.state().epoch != epoch
    pairs.set(Side.HOST, Pool.EXTERNAL, {"a": b"again"})
    pairs.check()


def test_a_file_that_is_not_ours_or_newer_stays(pairs: Store) -> None:
    import sqlite3

    def run(statement: str) -> None:
        connection = sqlite3.connect(pairs.path)
        connection.execute(statement)
        connection.commit()
        connection.close()

    run("CREATE TABLE notes (text)")
    with pytest.raises(StateError, match="no store of ours"):
        pairs.state()
    run(f"PRAGMA application_id = {store.APPLICATION_ID}")
    run("PRAGMA user_version = 99")
    with pytest.raises(StateError, match="newer hvsock"):
        pairs.state()


def told(follower: Follower) -> list[tuple[ChangeKind, str | None, int]]:
    return [(one.kind, one.item.key if one.item else None, one.resume) for one in follower.news()]


def test_a_follower_is_told_what_came_after(pairs: Store) -> None:
    pairs.set(Side.HOST, Pool.EXTERNAL, {"a": b"1", "b": b"1"})
    follower = Follower(pairs, "", 0, ())
    assert told(follower) == [
        (ChangeKind.RESET, None, 0),
        (ChangeKind.SET, "a", 0),
        (ChangeKind.SET, "b", 0),
        (ChangeKind.CURRENT, None, 1),
    ]
    pairs.set(Side.GUEST, Pool.GUEST, {"c": b"1"})
    pairs.delete(Side.HOST, Pool.EXTERNAL, ["a"])
    expected = [(ChangeKind.SET, "c", 1), (ChangeKind.DELETED, "a", 1), (ChangeKind.CURRENT, None, 3)]
    assert told(follower) == expected
    assert told(Follower(pairs, pairs.state().epoch, 1, ())) == expected
    assert told(Follower(pairs, pairs.state().epoch, 1, [Pool.GUEST])) == [expected[0], expected[2]]


def test_a_follower_starts_over_where_it_must(pairs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After more deleted keys than are remembered, with another file's revisions, and with later ones."""
    monkeypatch.setattr(store, "MAX_TOMBSTONES", 2)
    pairs.set(Side.HOST, Pool.EXTERNAL, {"a": b"", "b": b"", "c": b"", "d": b""})
    for key in "abc":
        pairs.delete(Side.HOST, Pool.EXTERNAL, [key])
    state = pairs.state()
    assert (state.revision, state.oldest) == (4, 2)
    whole = [(ChangeKind.RESET, None, 0), (ChangeKind.SET, "d", 0)]
    tombs = [(ChangeKind.DELETED, "b", 0), (ChangeKind.DELETED, "c", 0), (ChangeKind.CURRENT, None, 4)]
    assert told(Follower(pairs, state.epoch, 1, ())) == [*whole, *tombs]
    assert told(Follower(pairs, state.epoch, 2, ()))[0] == (ChangeKind.DELETED, "b", 2)
    assert told(Follower(pairs, "another", 4, ())) == [*whole, *tombs]
    assert told(Follower(pairs, state.epoch, 5, ())) == [*whole, *tombs]


def test_processes_do_not_lose_each_others_changes(tmp_path: Path) -> None:
    def write(name: str) -> None:
        mine = Store(str(tmp_path))
        for number in range(20):
            mine.set(Side.GUEST, Pool.GUEST, {f"{name}{number}": b""})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Store(str(tmp_path)).state().revision == 60
    assert len(Store(str(tmp_path)).pairs(Pool.GUEST)) == 60


def test_a_program_in_the_guest(pairs: Store, tmp_path: Path) -> None:
    mine = local(str(tmp_path))
    revision = pairs.set(Side.HOST, Pool.EXTERNAL, {"config": b"x=1"})
    mine.set({"state": "up", "raw": b"\xff"}, label="app")
    item = mine.get("config")
    assert (item.text, item.is_acknowledged) == ("x=1", False)
    mine.acknowledge(item)
    assert pairs.get(Pool.EXTERNAL, "config").acknowledged == revision
    assert mine.get("config").is_acknowledged
    assert [one.text for one in mine.items(Pool.GUEST)] == ["\\xff", "up"]
    kinds = [change.kind for change in mine.watch(Pool.GUEST, timeout=0)]
    assert kinds == [ChangeKind.RESET, ChangeKind.SET, ChangeKind.SET, ChangeKind.CURRENT]
    mine.delete(["raw"])
    assert mine.delete_owned("app") == 1
    with pytest.raises(HvsockError, match=r"run the agent first.* --state folder it has"):
        local(str(tmp_path / "none"))
    assert isinstance(mine, Local)
