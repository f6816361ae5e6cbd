"""Bound sockets: made, found again by the next broker, and gone with the process that has them."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

import socket

from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_WILDCARD, Address, ServiceId, VmId
from hvsock.fabric import paths
from hvsock.fabric.broker import listeners as module
from hvsock.fabric.broker.listeners import Listener, Listeners
from hvsock.topology.partitions import Kind, Partition, Tree

SERVICE = ServiceId.new()
ADDRESS = Address(HV_GUID_WILDCARD, SERVICE)

Load = Callable[[], Listeners]


@pytest.fixture
def tree() -> Tree:
    return Tree(Partition(VmId.new(), "host", Kind.HOST))


@pytest.fixture
def load(tree: Tree, tmp_path: Path) -> Iterator[Load]:
    loaded: list[Listeners] = []

    def once() -> Listeners:
        loaded.append(Listeners(str(tmp_path), tree))
        return loaded[-1]

    yield once
    for one in loaded:
        one.close()


def bind(listeners: Listeners, tree: Tree, address: Address = ADDRESS) -> tuple[Listener, socket.socket]:
    return listeners.bind(tree.host.id, address, socket.SOCK_STREAM, uid=5, pid=6)


@pytest.mark.parametrize("type_", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_listener_is_found_again_while_its_socket_lives(
    type_: int, load: Load, tree: Tree, tmp_path: Path
) -> None:
    first = load()
    listener, bound = first.bind(tree.host.id, ADDRESS, type_, uid=5, pid=6)
    assert [*first] == [listener]
    assert not listener.listening
    first.mark_listening(listener)
    first.mark_listening(listener)
    (again,) = second = load()
    assert (again.id, again.key, again.vm_id, again.type) == (listener.id, listener.key, listener.vm_id, type_)
    assert (again.uid, again.pid, again.listening) == (5, 6, True)
    assert second.get(listener.id) is again
    assert second.by_key == {(tree.host.id, SERVICE): [again]}
    assert second.in_use(tree.host.id, ADDRESS)
    bound.close()
    assert len(load()) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_bound_socket_that_does_not_listen_is_found_again_too(load: Load, tree: Tree) -> None:
    _, bound = bind(load(), tree)
    with bound:
        (again,) = load()
        assert not again.listening


def test_an_address_is_in_use_until_the_last_descriptor_is_closed(load: Load, tree: Tree) -> None:
    listeners = load()
    assert not listeners.in_use(tree.host.id, ADDRESS)
    listener, bound = bind(listeners, tree)
    twin = bound.dup()
    bound.close()
    assert listeners.in_use(tree.host.id, ADDRESS)
    assert not listeners.in_use(tree.host.id, Address(HV_GUID_CHILDREN, SERVICE))
    assert not listeners.in_use(VmId.new(), ADDRESS)
    twin.close()
    assert listeners.get(listener.id) is listener
    assert not listeners.in_use(tree.host.id, ADDRESS)
    assert len(listeners) == 0
    assert listeners.by_key == {}


def test_looking_whether_it_lives_does_not_wake_a_listener(load: Load, tree: Tree) -> None:
    listeners = load()
    listener, bound = bind(listeners, tree)
    with bound:
        bound.listen()
        bound.setblocking(False)
        assert listeners.alive(listener)
        with pytest.raises(BlockingIOError):
            bound.accept()


def test_what_cannot_be_told_counts_as_alive(load: Load, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    listeners = load()
    listener, bound = bind(listeners, tree)
    bound.close()

    def fails(folder: str, name: str, act: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(paths, "at", fails)
    assert listeners.alive(listener)


def test_removing_forgets_and_unlinks(load: Load, tree: Tree, tmp_path: Path) -> None:
    listeners = load()
    listener, bound = bind(listeners, tree)
    other, other_bound = bind(listeners, tree, Address(HV_GUID_CHILDREN, SERVICE))
    with bound, other_bound:
        listeners.remove(listener)
        listeners.remove(listener)
        assert [*listeners] == [other]
        assert listeners.by_key == {(tree.host.id, SERVICE): [other]}
        assert {path.stem for path in tmp_path.iterdir()} == {other.id.hex()}


def test_dead_ones_are_looked_after_with_each_bind(
    load: Load, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    listeners = load()
    alive, kept = bind(listeners, tree)
    with kept:
        for _ in range(40):
            bind(listeners, tree)[1].close()
        for _ in range(5):
            assert listeners.has_room(tree.host.id)
        assert len(listeners) < 20
        for _ in range(5):
            assert listeners.has_room(tree.host.id)
        assert [*listeners] == [alive]
        listeners.sweep()
        assert [*listeners] == [alive]


def test_the_bound_counts_living_sockets(load: Load, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTENERS_PER_PARTITION", 3)
    monkeypatch.setattr(module, "SWEEP_STEP", 0)
    listeners = load()
    bound = [bind(listeners, tree)[1] for _ in range(3)]
    assert not listeners.has_room(tree.host.id)
    assert not load().has_room(tree.host.id)
    bound.pop().close()
    assert listeners.has_room(tree.host.id)
    assert len(listeners) == 2
    for sock in bound:
        sock.close()


def test_a_bound_connector_is_known_by_its_path(load: Load, tree: Tree, tmp_path: Path) -> None:
    listeners = load()
    listener, bound = bind(listeners, tree)
    with bound:
        assert listeners.named(bound.getsockname()) is listener
        assert listeners.named(f"/elsewhere/{listener.id.hex()}") is listener
        for stranger in ("", "/", "/x/nonsense", f"/x/{os.urandom(16).hex()}", "/\udcff"):
            assert listeners.named(stranger) is None


@pytest.mark.parametrize(
    "spoil",
    [
        "",
        "{",
        "[]",
        "null",
        '{"partition": 5}',
        '{"partition": null}',
        "[" * 100_000,
        "{}",
        lambda record: {**record, "type": 99},
        lambda record: {**record, "type": 1e999},
        lambda record: {**record, "vm_id": "nonsense"},
        lambda record: {**record, "uid": "x"},
        lambda record: {key: value for key, value in record.items() if key != "listening"},
    ],
)
def test_a_spoilt_record_is_removed_with_its_socket(
    spoil: str | Callable[[dict[str, object]], dict[str, object]],
    load: Load,
    tree: Tree,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener, bound = bind(load(), tree)
    path = tmp_path / f"{listener.id.hex()}.json"
    path.write_text(spoil if isinstance(spoil, str) else json.dumps(spoil(json.loads(path.read_text()))))
    with bound, caplog.at_level(logging.CRITICAL, logger=module.__name__):
        assert len(load()) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_earlier_versions_with_more_in_it_is_read(load: Load, tree: Tree, tmp_path: Path) -> None:
    listener, bound = bind(load(), tree)
    path = tmp_path / f"{listener.id.hex()}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inode": 12345}))
    with bound:
        assert [one.id for one in load()] == [listener.id]


def test_leavings_are_cleared_away_and_what_cannot_be_is_left(
    load: Load, tree: Tree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener, bound = bind(load(), tree)
    (tmp_path / f"{listener.id.hex()}.json.new").write_text("half a rec")
    (tmp_path / f"{os.urandom(16).hex()}.json.new").write_text("half a rec")
    (tmp_path / "control-1234.new").touch()
    (tmp_path / os.urandom(16).hex()).touch()
    (tmp_path / "folder").mkdir()
    with bound:
        assert len(load()) == 1
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name != "folder") == ["", ".json"]
    assert (tmp_path / "folder").exists()


def test_listeners_of_a_partition_that_is_gone_are_cleared_away(load: Load, tree: Tree, tmp_path: Path) -> None:
    guest = Partition(VmId.new(), "guest", Kind.VM, tree.host.id)
    tree.add(guest)
    _, bound = load().bind(guest.id, ADDRESS, socket.SOCK_STREAM, uid=0, pid=0)
    with bound:
        assert len(load()) == 1
        tree.remove(guest)
        assert len(load()) == 0
        assert list(tmp_path.iterdir()) == []


def test_a_bind_or_listen_that_fails_leaves_nothing(
    load: Load, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listeners = load()
    listener, bound = bind(listeners, tree)
    with bound:

        def full(*anything: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(json, "dump", full)
            with pytest.raises(OSError, match="No space"):
                listeners.mark_listening(listener)
            with pytest.raises(OSError, match="No space"):
                bind(listeners, tree)
        assert not listener.listening
        with monkeypatch.context() as patch:
            patch.setattr(paths, "at", full)
            with pytest.raises(OSError, match="No space"):
                bind(listeners, tree)
        assert [*listeners] == [listener]
        assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {listener.id.hex()}
        assert [one.listening for one in load()] == [False]


@pytest.mark.soak
def test_thousands_are_loaded_in_no_time(load: Load, tree: Tree) -> None:
    listeners = load()
    sockets = [bind(listeners, tree, Address(HV_GUID_WILDCARD, ServiceId.new()))[1] for _ in range(500)]
    gc.collect()
    assert len(load()) == 500
    for sock in sockets:
        sock.close()
    assert len(load()) == 0
