"""`hvsock up`: ready, stopped gently or at once, killed and started again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import sample

assert sys.platform == "linux"

from tests.cli.helpers import PATIENCE, broker, ended, feeding, hvsock, invoke, listening, started


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where a fabric is to be."""
    path = str(tmp_path / "fabric")
    monkeypatch.setenv("HVSOCK_DIR", path)
    monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
    return path


@pytest.fixture
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket where systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


@contextlib.contextmanager
def stuck_client(folder: str) -> Iterator[socket.socket]:
    """A client of the host's control socket that sent half a request, and that the broker has taken in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(os.path.join(folder, "partitions", "host", "stream"))
        sock.sendall(b"HVS\x01 and no more")
        invoke("partition", "list")  # it was in the queue behind it
        yield sock


def test_up_is_ready_when_it_says_so_and_ends_by_sigterm(folder: str, notified: socket.socket) -> None:
    with broker(folder) as process:
        ready = notified.recv(1000).decode().splitlines()
        assert ready[:2] == ["READY=1", f"MAINPID={process.pid}"]
        assert json.loads(invoke("status", "--json").stdout)["pid"] == process.pid
        process.terminate()
        assert notified.recv(1000) == b"STOPPING=1"
        assert ended(process) == (0, b"", b"")
    invoke("status", code=3)


def test_up_ends_by_ctrl_c_too(folder: str) -> None:
    with broker(folder) as process:
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, b"", b"")


def test_sigterm_gives_requests_under_way_their_time(folder: str, notified: socket.socket) -> None:
    with broker(folder, "--grace", "0.6") as process, stuck_client(folder):
        notified.recv(1000)
        started_at = time.monotonic()
        process.terminate()
        assert notified.recv(1000) == b"STOPPING=1"
        assert ended(process)[0] == 0
        assert 0.5 < time.monotonic() - started_at < PATIENCE


def test_a_second_signal_ends_it_at_once(folder: str, notified: socket.socket) -> None:
    with broker(folder, "--grace", "60") as process, stuck_client(folder):
        notified.recv(1000)
        process.terminate()
        assert notified.recv(1000) == b"STOPPING=1"
        time.sleep(0.1)
        assert process.poll() is None
        process.terminate()
        assert ended(process)[0] == 0


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke("up", code=1, env={"HVSOCK_DIR": str(tmp_path / "file")})
    assert "file" in result.stderr


def test_an_unknown_admin_group(folder: str) -> None:
    invoke("up", "--admin-group", "no such group", code=5)
    assert not os.path.exists(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a folder to any group: run the tests as root")
def test_admin_group_and_shared_set_the_modes(folder: str) -> None:
    with broker(folder, "--admin-group", "4242", "--shared"):
        found = os.stat(os.path.join(folder, "partitions", "host"))
        assert (found.st_gid, found.st_mode & 0o777) == (4242, 0o755)


def test_services_registered_before_and_after_the_start_and_no_second_broker(folder: str) -> None:
    invoke("service", "register", "early")
    with broker(folder) as process:
        assert str(process.pid) in invoke("up", code=1).stderr
        invoke("service", "register", "late")
        names = [one["name"] for one in json.loads(invoke("status", "--json").stdout)["services"]]
    assert {"early", "late"} <= set(names)


def test_a_pipe_and_a_listener_live_on_when_the_broker_is_killed_and_started_again(folder: str) -> None:
    size = sample(16 << 20, 1 << 30)
    invoke("service", "register", "pipe")
    invoke("service", "register", "echo")
    resume = threading.Event()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(broker(folder))
        web = invoke("partition", "create", "web01").stdout.strip()
        env = {**os.environ, "HVSOCK_PARTITION": os.path.join(folder, "partitions", web)}
        listener = stack.enter_context(listening("any", "pipe", "--once"))
        stack.enter_context(listening("any", "echo", "--echo"))
        connector = stack.enter_context(started("connect", "parent", "pipe", env=env, stdin=subprocess.PIPE))
        sent = stack.enter_context(feeding(connector, size, size // 3, resume))
        assert listener.stdout is not None
        checksum = hashlib.sha256(listener.stdout.read(size // 6))
        first.kill()
        first.wait()
        checksum.update(listener.stdout.read(size // 12))  # it goes on without a broker
        hvsock("connect", "parent", "echo", code=3, env=env)
        second = stack.enter_context(broker(folder))
        assert hvsock("connect", "parent", "echo", input=b"found again", env=env).stdout == b"found again"
        second.kill()
        resume.set()
        while data := listener.stdout.read(1 << 20):
            checksum.update(data)
        assert listener.wait(PATIENCE) == 0
        assert ended(connector)[0] == 0
    assert sent == [checksum.hexdigest()]
