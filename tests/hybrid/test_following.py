"""Which sockets beside a path count as listeners."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.addresses import ServiceId, VmId
from hvsock.hybrid import following
from hvsock.hybrid.following import Beside
from hvsock.hybrid.listening import listen_at
from hvsock.hybrid.profiles import FIRECRACKER, HVSOCK
from hvsock.registry.forwards import Forward
from hvsock.relay.following import Binding, Wanted

assert sys.platform == "linux"

VM = VmId.new()
PORT = ServiceId.from_port(52)
GUID = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")


@contextlib.contextmanager
def listeners(*paths: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(listen_at(str(path)))
        yield


def test_listeners_count_while_somebody_listens(tmp_path: Path) -> None:
    beside = Beside(str(tmp_path / "v"), VM, HVSOCK)
    (tmp_path / "v_1").touch()
    (tmp_path / "v_2").symlink_to(tmp_path / "w_52")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "v_3"))
    with listeners(*(tmp_path / name for name in ("v", "v_52", f"v_{GUID}", "w_52", "v_nonesuch"))):
        found = beside()
        assert found == {
            Binding(VM, PORT): Wanted("52", Forward(str(tmp_path / "v_52"))),
            Binding(VM, GUID): Wanted(str(GUID), Forward(str(tmp_path / f"v_{GUID}"))),
        }
        assert Beside(str(tmp_path / "v"), VM, FIRECRACKER)() == {
            Binding(VM, PORT): Wanted("52", Forward(str(tmp_path / "v_52")))
        }
    assert beside() == {}


def test_one_that_ends_without_a_change_of_the_folder_is_seen(tmp_path: Path) -> None:
    beside = Beside(str(tmp_path / "v"), VM, HVSOCK)
    sock = socket.socket(socket.AF_UNIX)
    with sock:
        sock.bind(str(tmp_path / "v_52"))
        sock.listen()
        os.utime(tmp_path, (1, 1))
        assert set(beside() or {}) == {Binding(VM, PORT)}
        os.utime(tmp_path, (1, 1))
    assert beside() == {}


def test_the_path_by_port_comes_first(tmp_path: Path) -> None:
    beside = Beside(str(tmp_path / "v"), VM, HVSOCK)
    by_port, by_guid = tmp_path / "v_52", tmp_path / f"v_{PORT}"
    with listeners(by_guid):
        with listeners(by_port):
            assert beside() == {Binding(VM, PORT): Wanted("52", Forward(str(by_port)))}
        assert beside() == {Binding(VM, PORT): Wanted("52", Forward(str(by_guid)))}


def test_other_users_sockets_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = Beside(str(tmp_path / "v"), VM, HVSOCK)
    if os.geteuid() != 0:
        pytest.skip("giving a file to another user needs root: run the tests as root")
    with listeners(tmp_path / "v_52"):
        os.chown(tmp_path / "v_52", 12345, -1)
        assert beside() == {}
        os.chown(tmp_path, 12345, -1)
        assert set(beside() or {}) == {Binding(VM, PORT)}


def test_there_are_bounds_which_the_log_tells_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "MAX_LISTENERS", 1)
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    with listeners(tmp_path / "v_1", tmp_path / "v_2", folder / f"v_{GUID}"), caplog.at_level(logging.WARNING):
        beside, deep = Beside(str(tmp_path / "v"), VM, HVSOCK), Beside(str(folder / "v"), VM, HVSOCK)
        for _ in range(2):
            assert len(beside() or {}) == 1
            assert deep() == {}
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert "more than 1 listeners" in texts[0]
    assert "too long a path" in texts[1]


def test_a_folder_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    beside = Beside(str(tmp_path / "nonesuch" / "v"), VM, HVSOCK)
    assert beside() is None
    assert beside() is None
    assert len(caplog.records) == 1
    (tmp_path / "nonesuch").mkdir()
    assert beside() == {}
