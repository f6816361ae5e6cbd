"""`hvsock heartbeat` and `hvsock timesync`, over a fabric with agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.fabric import paths
from hvsock.services.agenthood import Surroundings
from hvsock.services.predefined.heartbeat.applications import Applications, ApplicationState
from hvsock.services.predefined.heartbeat.protocol import Heartbeat
from hvsock.services.predefined.timesync.protocol import TimeSynchronization
from hvsock.services.serving import serve
from hvsock.testing.fabric import EmbeddedFabric, fabric

from .helpers import PROGRAM, invoke, invoke_json, started


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedFabric]:
    with fabric() as one:
        monkeypatch.setenv(paths.FOLDER_VARIABLE, one.folder)
        monkeypatch.delenv(paths.PARTITION_VARIABLE, raising=False)
        yield one


@contextlib.contextmanager
def serving(folder: str, state: Path) -> Iterator[None]:
    """Both services in a partition, in a thread."""
    ready, over = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    surroundings = Surroundings(own_machine=False, state_folder=str(state))

    async def run() -> None:
        services = Heartbeat(surroundings), TimeSynchronization(surroundings)
        async with serve(*services, bind="parent", partition=folder):
            loops.append(asyncio.get_running_loop())
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        loops[0].call_soon_threadsafe(over.set)
        thread.join()


def test_heartbeats(made: EmbeddedFabric, tmp_path: Path) -> None:
    guest = made.create_partition("web01")
    made.create_partition("web02")
    with serving(guest.folder, tmp_path):
        invoke("heartbeat", "set", "critical", "--for", "600", "--state-folder", str(tmp_path))
        first, second = invoke_json("heartbeat")["heartbeats"]
        assert (first["vm"], first["primary_status"], first["primary"]) == ("web01", "OK", 2)
        assert (first["secondary_status"], first["secondary"]) == ("Application Critical State", 32782)
        assert (second["vm"], second["primary_status"], second["primary"]) == ("web02", "No Contact", 12)
        assert "hvsock agent" in second["reason"]
        invoke("heartbeat", "set", "unknown", "--state-folder", str(tmp_path))
        text = invoke("heartbeat", "web01").stdout
        assert text.splitlines()[1].split()[:4] == ["web01", "OK", "OK", "unknown"]


def test_a_state_is_held_for_as_long_as_the_command_runs(made: EmbeddedFabric, tmp_path: Path) -> None:
    applications = Applications(str(tmp_path))
    for number in (signal.SIGTERM, signal.SIGKILL):
        command = [PROGRAM, "heartbeat", "set", "stopped", "--name", "db", "--state-folder", str(tmp_path)]
        with subprocess.Popen(command) as process:
            while applications.worst() is not ApplicationState.STOPPED:
                assert process.poll() is None
            process.send_signal(number)
        assert applications.all() == {}
    assert os.listdir(tmp_path / "applications") == []


def test_what_cannot_be_set(made: EmbeddedFabric, tmp_path: Path) -> None:
    assert "this is the host" in invoke("heartbeat", "set", "healthy", code=2).stderr
    nowhere = str(tmp_path / "nowhere")
    said = invoke("heartbeat", "set", "healthy", "--state-folder", nowhere, code=5).stderr
    assert "run it: hvsock agent; or give its folder by --state-folder" in said
    name = ("--name", "../x", "--for", "9")
    invoke("heartbeat", "set", "healthy", "--state-folder", str(tmp_path), *name, code=2)
    invoke("heartbeat", "nobody", code=5)


def test_timesync(made: EmbeddedFabric, tmp_path: Path) -> None:
    guest = made.create_partition("web01")
    with serving(guest.folder, tmp_path):
        found = invoke_json("timesync", "web01")
        assert (found["done"], found["reason"]) == ("none", "")
        assert abs(found["offset_ns"]) <= found["round_trip_ns"]
        assert invoke("timesync", "web01").stdout.startswith("web01: offset ")
        assert "setting the clock is refused here" in invoke("timesync", "web01", "--set", code=4).stderr
        assert "setting the clock is refused here" in invoke("timesync", "web01", "--slew", code=4).stderr


def test_heartbeats_are_watched(made: EmbeddedFabric, tmp_path: Path) -> None:
    guest = made.create_partition("web01")
    watching = ("heartbeat", "web01", "--watch", "--json", "--interval", "0.1")
    with started(*watching) as process:
        assert process.stdout is not None

        def until(status: str) -> dict[str, Any]:
            assert process.stdout is not None
            for line in process.stdout:
                (found,) = json.loads(line)["heartbeats"]
                if found["primary_status"] == status:
                    return dict(found)
            raise AssertionError("it ended")

        until("No Contact")
        with serving(guest.folder, tmp_path):
            until("OK")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
