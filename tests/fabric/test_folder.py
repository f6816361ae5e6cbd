"""The fabric's folder: one broker at a time, modes, and what others may have put there."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

import fcntl
import socket

from hvsock.errors import NoFabricError, StateError
from hvsock.fabric import client
from hvsock.fabric.broker.folder import FabricFolder, load_tree
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.testing.leaks import leak_check
from tests.fabric.peers import open_folder, running

NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users: run the tests as root")


def mode(path: str | Path) -> int:
    """The permissions of a file."""
    return stat.S_IMODE(os.stat(path).st_mode)


# -- the lock


def test_one_broker_at_a_time(fabric: EmbeddedFabric) -> None:
    with leak_check(), pytest.raises(StateError, match=f"already \\(process {os.getpid()}\\)"):
        EmbeddedFabric(fabric.folder)
    assert client.call(fabric.host.folder, "ping")


def test_a_lock_that_a_killed_broker_left_is_none(tmp_path: Path) -> None:
    (tmp_path / "broker.lock").write_text("4194304\n")
    FabricFolder(str(tmp_path)).close()
    (tmp_path / "broker.lock").write_bytes(b"\xff" * 100)
    folder = FabricFolder(str(tmp_path))
    assert (tmp_path / "broker.lock").read_text() == f"{os.getpid()}\n"
    folder.close()
    folder.close()


def test_a_lock_that_somebody_else_holds_is_respected(tmp_path: Path) -> None:
    (tmp_path / "broker.lock").write_bytes(b"\xff\xfe nonsense")
    with open(tmp_path / "broker.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with leak_check(), pytest.raises(StateError, match="a broker runs in"):
            FabricFolder(str(tmp_path))


@pytest.mark.parametrize("name", ["broker.lock", "state", "listeners", "partitions", "registry", ""])
def test_what_is_no_file_or_folder_of_ours_is_told_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "fabric"
    if name == "broker.lock":
        (path / name).mkdir(parents=True)
    else:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).touch()
    with leak_check(), pytest.raises(StateError, match=name or "fabric"):
        FabricFolder(str(path))


@root_only
def test_the_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(StateError, match="another user"):
        FabricFolder(str(tmp_path))


# -- modes


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with running(str(tmp_path / "private")) as broker:
            made = client.call(broker.folder.partition(broker.tree.host), "partition.create", name="m", kind="vm")
            for name in ("", "partitions", "partitions/host", "state", "listeners", "registry"):
                assert mode(tmp_path / "private" / name) == 0o700, name
            assert mode(made["folder"]) == 0o700
            assert mode(f"{made['folder']}/stream") == 0o666
            assert mode(tmp_path / "private/state/partitions.json") == 0o644
            assert mode(tmp_path / "private/state/counters") & 0o077 == 0
        with running(str(tmp_path / "shared"), shared=True):
            for name in ("", "partitions", "partitions/host", "state", "registry"):
                assert mode(tmp_path / "shared" / name) == 0o755, name
            assert mode(tmp_path / "shared/listeners") == 0o700
    finally:
        os.umask(before)


@root_only
def test_an_admin_group_is_kept_by_the_next_broker(tmp_path: Path) -> None:
    for options in ({"admin_gid": 54321}, {}):
        with running(str(tmp_path), **options) as broker:
            assert broker.folder.admin_gid == 54321
            assert broker.rules.owner.admin_gid == 54321
            assert mode(tmp_path / "registry") == 0o2770
            for name in ("", "partitions", "partitions/host", "state"):
                assert mode(tmp_path / name) == 0o750, name
                assert os.stat(tmp_path / name).st_gid == 54321


# -- what was written down


def test_the_partitions_are_read_by_others_too(fabric: EmbeddedFabric, tmp_path: Path) -> None:
    fabric.create_partition("web01", group="g")
    tree = load_tree(fabric.folder)
    assert tree is not None
    assert [(one.name, one.group) for one in tree] == [("host", None), ("web01", "g")]
    assert load_tree(str(tmp_path)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "[" * 100_000,
        '{"version": 1}',
        '{"version": 99, "partitions": []}',
        '{"version": 1, "partitions": []}',
        '{"version": 1, "partitions": [{"id": "x"}]}',
        '{"version": 1, "partitions": [{"id": 5, "name": "host", "kind": "host", "parent": null, "group": null}]}',
        '{"version": 1, "partitions": [null]}',
    ],
)
def test_damaged_partitions_are_left_as_they_are(text: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    path = tmp_path / "state" / "partitions.json"
    path.write_text(text)
    with leak_check(), pytest.raises(StateError, match=r"partitions\.json"):
        EmbeddedFabric(str(tmp_path))
    assert path.read_text() == text


def test_partitions_from_before_there_were_cids_get_one(fabric: EmbeddedFabric) -> None:
    for name in ("web01", "db"):
        fabric.create_partition(name)
    path = Path(fabric.folder, "state", "partitions.json")
    value = json.loads(path.read_text())
    del value["resting_cids"]
    for one in value["partitions"]:
        del one["cid"]
    path.write_text(json.dumps(value))
    tree = load_tree(fabric.folder)
    assert tree is not None
    assert [one.cid for one in tree] == [2, 3, 4]


def test_a_cid_that_two_partitions_have_is_damage(fabric: EmbeddedFabric) -> None:
    for name in ("web01", "db"):
        fabric.create_partition(name)
    path = Path(fabric.folder, "state", "partitions.json")
    value = json.loads(path.read_text())
    value["partitions"][2]["cid"] = value["partitions"][1]["cid"]
    path.write_text(json.dumps(value))
    with pytest.raises(StateError, match="CID"):
        load_tree(fabric.folder)


def test_a_partition_without_a_parent_is_damage(fabric: EmbeddedFabric) -> None:
    fabric.create_partition("web01")
    path = Path(fabric.folder, "state", "partitions.json")
    value = json.loads(path.read_text())
    value["partitions"][1]["parent"] = value["partitions"][1]["id"]
    path.write_text(json.dumps(value))
    with pytest.raises(StateError):
        load_tree(fabric.folder)


@pytest.mark.parametrize("name", ["counters", "registry.db"])
def test_another_spoilt_file_lets_nothing_start_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    with EmbeddedFabric(str(tmp_path)):
        pass
    (path,) = tmp_path.rglob(name)
    path.write_bytes(b"nonsense" * 100)
    with leak_check(), pytest.raises(StateError, match=name):
        EmbeddedFabric(str(tmp_path))


# -- folders of partitions


def test_folders_of_partitions_that_a_killed_broker_left_are_removed(tmp_path: Path) -> None:
    with EmbeddedFabric(str(tmp_path)) as fabric:
        fabric.create_partition("web01")
        stale = tmp_path / "partitions" / "11111111-2222-3333-4444-555555555555"
        stale.mkdir()
        (stale / "stream").touch()
        (tmp_path / "partitions" / "file").touch()
        fabric.restart()
        assert not stale.exists()
        assert len(os.listdir(tmp_path / "partitions")) == 3  # the file stays


def test_what_others_put_into_a_folder_is_left_out_of_the_way(fabric: EmbeddedFabric) -> None:
    guest = fabric.create_partition("web01")
    Path(guest.folder, "sub").mkdir()
    Path(guest.folder, "sub", "precious").write_text("data")
    fabric.remove_partition("web01")
    assert not os.path.exists(guest.folder)
    (left,) = Path(fabric.folder, "partitions").glob(".left-*")
    assert (left / "sub" / "precious").read_text() == "data"
    made = client.call(fabric.host.folder, "partition.create", name="web01", kind="vm", id=guest.id)
    assert sorted(os.listdir(made["folder"])) == ["seqpacket", "stream"]
    fabric.restart()
    assert (left / "sub" / "precious").read_text() == "data"
    (left / "sub" / "precious").unlink()
    (left / "sub").rmdir()
    fabric.restart()
    assert not left.exists()


@root_only
def test_a_folder_is_never_handed_down_to_the_next_owner() -> None:
    with open_folder() as folder, running(folder, shared=True) as broker:
        host = broker.folder.partition(broker.tree.host)
        made = client.call(host, "partition.create", name="m", kind="vm", owner=NOBODY)
        Path(made["folder"], "mine").touch()
        os.chown(f"{made['folder']}/mine", NOBODY, NOBODY)
        client.call(host, "partition.remove", name="m")
        again = client.call(host, "partition.create", name="m", kind="vm", id=made["id"])
        assert os.stat(again["folder"]).st_uid == os.geteuid()
        assert mode(again["folder"]) == 0o700


def test_a_link_in_place_of_a_control_socket_leads_the_broker_nowhere(
    fabric: EmbeddedFabric, tmp_path: Path
) -> None:
    """The owner of a partition's folder may put anything there while the broker is away."""
    guest = fabric.create_partition("web01")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    for name in ("stream", "seqpacket", ".stream.new", ".seqpacket.new"):
        path = Path(guest.folder, name)
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
    fabric.restart()
    assert client.call(guest.folder, "ping")
    assert mode(victim) == 0o600
    assert victim.read_text() == "precious"
    assert not Path(guest.folder, "stream").is_symlink()


@pytest.mark.parametrize("trap", ["a folder", "no folder"])
def test_a_partition_whose_folder_is_spoilt_is_lost_alone(
    trap: str, fabric: EmbeddedFabric, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt, fine = fabric.create_partition("spoilt"), fabric.create_partition("fine")
    path = Path(spoilt.folder, "stream")
    path.unlink()
    if trap == "a folder":
        path.mkdir()
        (path / "file").touch()
    else:
        Path(spoilt.folder, "seqpacket").unlink()
        Path(spoilt.folder).rmdir()
        Path(spoilt.folder).touch()
    with caplog.at_level(logging.ERROR):
        fabric.restart()
    assert "'spoilt' cannot be reached" in caplog.text
    assert client.call(fine.folder, "ping")
    with pytest.raises(NoFabricError):
        client.call(spoilt.folder, "ping")
    fabric.remove_partition("spoilt")
    assert client.call(fabric.host.folder, "ping")


def test_control_sockets_change_hands_in_one_step(fabric: EmbeddedFabric) -> None:
    """A connector never finds a partition without its socket while brokers come and go by force."""
    path = Path(fabric.host.folder, "stream")
    before = os.stat(path).st_ino
    broker = fabric._broker
    assert broker is not None
    sock = broker.folder.control_socket(broker.tree.host, "stream", socket.SOCK_STREAM)
    with sock:
        assert os.stat(path).st_ino != before
        assert os.listdir(fabric.host.folder).count("stream") == 1
        assert os.listdir(broker.folder.listeners) == []


@root_only
def test_a_host_folder_that_cannot_be_used_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with EmbeddedFabric(str(tmp_path)):
        pass
    host = tmp_path / "partitions" / "host"
    host.rmdir()
    host.touch()
    with leak_check(), pytest.raises((StateError, OSError)):
        EmbeddedFabric(str(tmp_path))
