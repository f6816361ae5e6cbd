"""A broker as a process: signals, systemd, and what it leaves."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

assert sys.platform == "linux"

import socket

import hvsock
from hvsock.errors import NoFabricError, UsageError
from hvsock.fabric import client
from hvsock.fabric.messages import Op, Request
from hvsock.notify import notify
from hvsock.registry import Registry
from tests.cli.helpers import told_until_it_ends
from tests.fabric.peers import control, ended, read_errno, start_connect
from tests.waiting import PATIENCE_SECONDS, wait_until

_CODE = """
import sys
from hvsock.fabric.broker.server import serve
serve(sys.argv[1], grace_seconds=float(sys.argv[2]))
"""
PING = Request(Op.CALL, call={"method": "ping"}).pack()
_NEVER_SECONDS = 600
"""A client's time where none is to be helped by the end of another's."""


@contextmanager
def served(folder: Path, grace_seconds: float = 5.0, descriptors: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """A broker's process that has told systemd that it is ready."""
    if descriptors:
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))"
        limit += f"\nfrom hvsock.fabric.broker import clients; clients.REQUEST_SECONDS = {_NEVER_SECONDS}"
    else:
        limit = ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder.parent / "notify"))
        systemd.settimeout(PATIENCE_SECONDS)
        environ = {**os.environ, "NOTIFY_SOCKET": str(folder.parent / "notify")}
        command = [sys.executable, "-c", limit + _CODE, str(folder), str(grace_seconds)]
        with subprocess.Popen(command, env=environ) as process:
            try:
                said = systemd.recv(1000).decode()
                assert said == f"READY=1\nMAINPID={process.pid}\nSTATUS=serving {folder}"
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
    (folder.parent / "notify").unlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "fabric"
    with served(folder) as process:
        host = str(folder / "partitions" / "host")
        assert client.call(host, "ping") == {"pid": process.pid, "partition": "host"}
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert os.listdir(host) == []
        with pytest.raises(NoFabricError):
            client.call(host, "ping")
    with served(folder) as process:
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0


def test_requests_under_way_have_a_grace_period(tmp_path: Path) -> None:
    folder = tmp_path / "fabric"
    host = str(folder / "partitions" / "host")
    with served(folder, grace_seconds=30) as process:
        service = _register(folder)
        with hvsock.create_server(("loopback", service), backlog=0, partition=host) as listener:
            first = start_connect(host, ("e0e16197-dd56-4a10-9195-5ee7a155a838", service))
            assert first.settled() == 0
            waiting = start_connect(host, ("e0e16197-dd56-4a10-9195-5ee7a155a838", service), milliseconds=20_000)
            wait_until(lambda: client.call(host, "status")["connecting"] == 1)
            process.terminate()
            wait_until(lambda: not os.path.exists(f"{host}/stream"))
            assert waiting.outcome() is None
            listener.accept()[0].close()
            assert waiting.settled() == 0
            assert process.wait(PATIENCE_SECONDS) == 0
            listener.accept()[0].close()
            first.close()
            waiting.close()


def test_the_grace_period_ends_and_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "fabric"
    host = str(folder / "partitions" / "host")
    for grace, second in ((0.1, False), (60.0, True)):
        with served(folder, grace_seconds=grace) as process:
            service = _register(folder)
            with hvsock.create_server(("loopback", service), backlog=0, partition=host):
                first = start_connect(host, ("e0e16197-dd56-4a10-9195-5ee7a155a838", service))
                assert first.settled() == 0
                waiting = start_connect(
                    host, ("e0e16197-dd56-4a10-9195-5ee7a155a838", service), milliseconds=60_000
                )
                wait_until(lambda: client.call(host, "status")["connecting"] == 1)
                process.terminate()
                wait_until(lambda: not os.path.exists(f"{host}/stream"))
                if second:
                    time.sleep(0.05)
                    assert process.poll() is None
                    process.terminate()
                assert process.wait(PATIENCE_SECONDS) == 0
                assert waiting.settled() == -1
                first.close()
                waiting.close()


def test_many_signals_do_no_harm(tmp_path: Path) -> None:
    with served(tmp_path / "fabric") as process:
        assert told_until_it_ends(process, signal.SIGTERM) == 0


def test_two_processes_do_not_share_a_fabric(tmp_path: Path) -> None:
    folder = tmp_path / "fabric"
    with served(folder) as process:
        command = [sys.executable, "-c", _CODE, str(folder), "1"]
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert f"a broker runs in {folder} already (process {process.pid})" in other.stderr
        assert client.call(str(folder / "partitions" / "host"), "ping")["pid"] == process.pid


def test_it_takes_all_descriptors_that_it_may_have(tmp_path: Path) -> None:
    with served(tmp_path / "fabric") as process:
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard


def test_greedy_guests_keep_neither_the_host_nor_the_next_guest_out(tmp_path: Path) -> None:
    folder = tmp_path / "fabric"
    host = str(folder / "partitions" / "host")
    with served(folder, descriptors=128), ExitStack() as opened:
        guests = [client.call(host, "partition.create", name=f"guest {n}", kind="vm")["folder"] for n in range(5)]
        for guest in guests[:4]:
            for _ in range(100):
                opened.enter_context(control(guest))
        for one in (host, guests[4]):
            assert client.call(one, "ping")


def test_partitions_leave_descriptors_for_clients(tmp_path: Path) -> None:
    folder = tmp_path / "fabric"
    host = str(folder / "partitions" / "host")
    with served(folder, descriptors=64):
        for number in range(7):
            client.call(host, "partition.create", name=f"guest {number}", kind="vm")
        with pytest.raises(UsageError, match="has 8 partitions, the most"):
            client.call(host, "partition.create", name="one more", kind="vm")
        client.call(host, "partition.remove", name="guest 0")


def test_out_of_descriptors_it_rests_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "fabric"
    host = str(folder / "partitions" / "host")
    with served(folder) as process:
        limits = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        with control(host) as asked:  # what it used to say that it is ready, and for this, is closed by then
            asked.sendall(PING)
            assert ended(asked)
        in_use = {int(number) for number in os.listdir(f"/proc/{process.pid}/fd")}
        first_free = min(set(range(len(in_use) + 1)) - in_use)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (first_free, limits[1]))
        with control(host) as waiting:
            waiting.sendall(PING)
            before = _processor_seconds(process.pid)
            waiting.settimeout(0.5)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            assert _processor_seconds(process.pid) - before < 0.25
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limits)
            waiting.settimeout(PATIENCE_SECONDS)
            assert read_errno(waiting) == 0


def _processor_seconds(pid: int) -> float:
    """What a process has used of the processors."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("kind", ["path", "abstract", "gone"])
def test_systemd_is_told_where_it_asks(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        name = f"hvsock-test-{os.getpid()}" if kind == "abstract" else str(tmp_path / "notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if kind == "abstract" else name)
        if kind != "gone":
            systemd.bind(f"\0{name}" if kind == "abstract" else name)
        notify("READY=1")
        if kind != "gone":
            assert systemd.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def _register(folder: Path) -> str:
    with Registry(folder / "registry") as registry:
        return str(registry.register(f"Service {time.monotonic_ns()}").id)
