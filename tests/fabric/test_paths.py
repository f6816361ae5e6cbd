"""Where a fabric is, and sockets at paths of any length."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

assert sys.platform == "linux"

import socket

import hvsock
from hvsock.errors import StateError
from hvsock.fabric import client, paths
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.testing.leaks import leak_check
from tests.fabric.peers import open_folder
from tests.registry.processes import User, in_child
from tests.waiting import PATIENCE_SECONDS

NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users: run the tests as root")


def test_the_variable_names_the_folder() -> None:
    assert paths.fabric_folder({"HVSOCK_DIR": "/a/../b", "XDG_RUNTIME_DIR": "/x"}) == "/b"
    assert paths.fabric_folder({"HVSOCK_DIR": "sub"}) == os.path.join(os.getcwd(), "sub")
    assert paths.partition_folder({"HVSOCK_DIR": "/f"}) == "/f/partitions/host"
    assert paths.partition_folder({"HVSOCK_DIR": "/f", "HVSOCK_PARTITION": "/p/"}) == "/p"


@root_only
def test_root_has_the_system_wide_folder() -> None:
    assert paths.fabric_folder({}) == "/run/hvsock"
    assert paths.fabric_folder({"XDG_RUNTIME_DIR": "/run/user/0"}) == "/run/hvsock"


@root_only
def test_a_user_has_a_folder_of_the_session_or_a_private_one(monkeypatch: pytest.MonkeyPatch) -> None:
    user = User(NOBODY, NOBODY)
    session = in_child(lambda: paths.fabric_folder({"XDG_RUNTIME_DIR": "/run/user/5"}), user)
    assert session == "/run/user/5/hvsock"
    with open_folder() as folder:
        os.chmod(folder, 0o1777)
        make = _private_in(folder)
        assert in_child(make, user) == f"{folder}/hvsock-{NOBODY}"
        assert os.stat(f"{folder}/hvsock-{NOBODY}").st_mode & 0o777 == 0o700
        assert in_child(make, user) == f"{folder}/hvsock-{NOBODY}"


@root_only
@pytest.mark.parametrize("relative", [{}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "relative"}])
def test_without_a_session_the_folder_is_below_tmp(
    relative: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_private_folder", lambda path, uid: path)
    assert in_child(lambda: paths.fabric_folder(relative), User(NOBODY, NOBODY)) == f"/tmp/hvsock-{NOBODY}"


def _private_in(folder: str) -> Callable[[], str]:
    return lambda: paths._private_folder(f"{folder}/hvsock-{os.getuid()}", os.getuid())


@pytest.mark.parametrize("trap", ["open to others", "a link", "a file"])
def test_a_private_folder_that_is_not_private_is_refused(trap: str, tmp_path: Path) -> None:
    path = tmp_path / "private"
    if trap == "open to others":
        path.mkdir()
        path.chmod(0o750)
    elif trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.touch(0o600)
    with pytest.raises(StateError, match="HVSOCK_DIR"):
        paths._private_folder(str(path), os.getuid())


@root_only
def test_a_private_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "private"
    path.mkdir(mode=0o700)
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(StateError, match="not a private folder of user 0"):
        paths._private_folder(str(path), 0)


def test_the_host_is_known_by_its_folder(tmp_path: Path) -> None:
    host = tmp_path / "partitions" / "host"
    host.mkdir(parents=True)
    (tmp_path / "link").symlink_to(host)
    environ = {"HVSOCK_DIR": str(tmp_path)}
    assert paths.speaks_for_host(str(tmp_path), environ)
    assert paths.speaks_for_host(str(tmp_path), {**environ, "HVSOCK_PARTITION": str(tmp_path / "link")})
    assert not paths.speaks_for_host(str(tmp_path), {**environ, "HVSOCK_PARTITION": str(tmp_path)})


@pytest.mark.parametrize("length", [paths.MAX_SUN_PATH_BYTES, paths.MAX_SUN_PATH_BYTES + 1, 1000])
def test_a_path_of_any_length_is_bound_and_connected_to(length: int, tmp_path: Path) -> None:
    folder = _deep(str(tmp_path), length - len("/socket"))
    with leak_check(), socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connector:
        paths.at(folder, "socket", listener.bind)
        listener.listen()
        paths.at(folder, "socket", connector.connect)
        assert os.path.exists(f"{folder}/socket")
        assert len(f"{folder}/socket") == length


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    for folder in (str(tmp_path / "gone"), _deep(str(tmp_path), 300) + "/gone"):
        with socket.socket(socket.AF_UNIX) as sock, leak_check(), pytest.raises(FileNotFoundError):
            paths.at(folder, "socket", sock.connect)


@pytest.mark.parametrize("letter", ["d", "ä"])
def test_a_whole_fabric_works_in_a_deep_folder(letter: str, tmp_path: Path) -> None:
    with EmbeddedFabric(_deep(str(tmp_path), 300, letter)) as fabric:
        service = fabric.register("Deep")
        guest = fabric.create_partition("guest")
        for type_ in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            with hvsock.create_server(("any", service.id), type=type_, partition=fabric.host.folder) as listener:
                fabric.restart()
                address = ("parent", "Deep")
                with (
                    hvsock.create_connection(
                        address, PATIENCE_SECONDS, type=type_, partition=guest.folder
                    ) as connector,
                    listener.accept()[0] as accepted,
                ):
                    connector.sendall(b"from the deep")
                    assert accepted.recv(100) == b"from the deep"
        fabric.remove_partition("guest")
        status = client.call(fabric.host.folder, "status")
        assert [row["accepted"] for row in status["services"] if row["name"] == "Deep"] == [2]


def _deep(folder: str, length: int, letter: str = "d") -> str:
    """A folder below `folder` whose path has `length` bytes, or a few less where letters take two."""
    while (room := length - len(os.fsencode(folder))) > 2:
        piece = min(room - 1, 100) // len(letter.encode())
        folder += "/" + letter * (piece - (room - piece == 2))
    os.makedirs(folder)
    return folder
