"""Listeners at paths: made safely, taken over from the dead, and gone at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hvsock.addresses import ServiceId
from hvsock.errors import BusyError, StateError, UsageError
from hvsock.hybrid.listening import is_served, listen, listen_at
from hvsock.hybrid.profiles import FIRECRACKER, LIBKRUN, OPENVMM
from tests.fabric.peers import fails_with
from tests.waiting import wait_until

assert sys.platform == "linux"

LISTENS = """
import sys
from hvsock.hybrid.listening import listen_at
listener = listen_at(sys.argv[1])
print("listening", flush=True)
sys.stdin.read()
"""
GUID = ServiceId("999e53d4-3d5c-4c3e-8779-bed06ec056e1")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def dead_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def assert_takes(path: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(9) == b"hello"


def test_a_listener_is_where_the_vmm_looks_and_gone_at_the_end(tmp_path: Path) -> None:
    base = str(tmp_path / "v")
    for service, profile, name in (
        (52, FIRECRACKER, "v_52"),
        ("52", OPENVMM, "v_52"),
        (GUID, OPENVMM, f"v_{GUID}"),
        (52, LIBKRUN, "v"),
    ):
        with listen(base, service, profile=profile) as listener:
            assert listener.path == str(tmp_path / name)
            assert os.listdir(tmp_path) == [name]
            assert mode_of(tmp_path / name) == 0o600
            assert is_served(str(tmp_path), name)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(listener.path)
                listener.accept().close()
        assert listener.fileno() == -1
        listener.close()
        assert os.listdir(tmp_path) == []
        assert not is_served(str(tmp_path), name)


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o400])
def test_the_mode_is_as_wanted_whatever_the_umask(mode: int, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with listen_at(str(tmp_path / "v"), mode=mode):
            assert mode_of(tmp_path / "v") == mode
    finally:
        os.umask(before)


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with subprocess.Popen(
        [sys.executable, "-c", LISTENS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with fails_with(errno.EADDRINUSE, "somebody listens there already"):
            listen_at(str(path))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert path.is_socket()
    with listen_at(str(path)) as listener:
        assert_takes(path, listener.sock)


def test_nothing_but_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "v"
    path.write_text("mine")
    with pytest.raises(StateError, match="no socket"):
        listen_at(str(path))
    assert path.read_text() == "mine"
    path.unlink()
    path.mkdir()
    with pytest.raises(StateError):
        listen_at(str(path))


def test_no_link_is_followed(tmp_path: Path) -> None:
    dead_socket(tmp_path / "other")
    for target in ("other", "nonesuch"):
        link = tmp_path / f"link to {target}"
        link.symlink_to(target)
        with pytest.raises(StateError, match="no socket"):
            listen_at(str(link))
        assert link.is_symlink()
    assert not (tmp_path / "nonesuch").exists()
    assert (tmp_path / "other").is_socket()


def test_a_file_that_is_another_ones_by_now_stays(tmp_path: Path) -> None:
    path = tmp_path / "v"
    with listen_at(str(path)) as first:
        path.unlink()
        with listen_at(str(path)) as second:
            first.close()
            assert_takes(path, second.sock)
    with listen_at(str(path)):
        path.unlink()
    assert os.listdir(tmp_path) == []


def test_where_it_cannot_be(tmp_path: Path) -> None:
    with fails_with(errno.ENOENT):
        listen_at(str(tmp_path / "nonesuch" / "v"))
    with pytest.raises(UsageError, match="ports alone"):
        listen(str(tmp_path / "v"), GUID, profile=FIRECRACKER)
    assert os.listdir(tmp_path) == []


def test_a_path_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 50) / "v"
    path.parent.mkdir()
    dead_socket_in_long_path = os.open(path.parent, os.O_RDONLY)
    try:
        dead_socket(Path(f"/proc/self/fd/{dead_socket_in_long_path}/v"))
    finally:
        os.close(dead_socket_in_long_path)
    with listen_at(str(path)):
        assert is_served(str(path.parent), "v")
    assert not path.exists()


def test_somebody_who_holds_the_lock_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvsock.hybrid.listening.LOCK_SECONDS", 0.02)
    holder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="holds a lock"):
            listen_at(str(tmp_path / "v"))
    finally:
        os.close(holder)
    listener = listen_at(str(tmp_path / "v"))
    listener.close()


def test_of_many_who_find_a_dead_socket_one_gets_it(tmp_path: Path) -> None:
    path = str(tmp_path / "v")
    dead_socket(tmp_path / "v")
    made, failed = [], []

    def take() -> None:
        try:
            made.append(listen_at(path))
        except OSError as error:
            failed.append(error.errno)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(made) + len(failed) == 8)
    assert len(made) == 1
    assert failed == [errno.EADDRINUSE] * 7
    assert_takes(tmp_path / "v", made[0].sock)
    made[0].close()
