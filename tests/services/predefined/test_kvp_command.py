"""`hvsock kvp` on the host and in a guest."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.cli.commands.kvp import shown
from hvsock.cli.outcome import printable
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.services.agenthood import Surroundings
from hvsock.services.predefined.kvp import Item, Pool, local
from hvsock.services.predefined.kvp.guest import GuestExchange
from hvsock.services.serving import serve
from hvsock.testing.fabric import fabric
from tests.cli.helpers import environment, invoke, invoke_json, line_of, started


@contextlib.contextmanager
def served(*services: Any, partition: str) -> Iterator[None]:
    """Services in a thread of their own, since the command blocks this one."""
    up = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def run() -> None:
        async with serve(*services, bind="parent", partition=partition):
            up.set()
            await over.wait()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert up.wait(30)
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.fixture
def made(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedFabric]:
    """A fabric with a guest web01 that serves data exchange."""
    with fabric() as made:
        guest = made.create_partition("web01")
        monkeypatch.setenv("HVSOCK_DIR", made.folder)
        monkeypatch.setenv("HVSOCK_PARTITION", made.host.folder)
        with served(GuestExchange(Surroundings(False, str(state))), partition=guest.folder):
            yield made


@pytest.mark.usefixtures("made")
def test_setting_getting_listing_and_deleting(tmp_path: Path) -> None:
    said = invoke_json("kvp", "set", "web01", "a=1", "b=x=y", "--label", "deploy")
    assert (said["pool"], said["keys"]) == ("external", ["a", "b"])
    (tmp_path / "value").write_bytes(b"\0\xff" * 5)
    invoke("kvp", "set", "web01", "raw", "--file", str(tmp_path / "value"))
    assert invoke("kvp", "get", "web01", "b").stdout == "x=y"
    assert invoke("kvp", "get", "web01", "raw").stdout_bytes == b"\0\xff" * 5
    invoke("kvp", "get", "web01", "raw", "--file", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"\0\xff" * 5
    rows = invoke_json("kvp", "list", "web01", "--pool", "external")
    assert [(one["key"], one.get("value"), one["owner"]) for one in rows] == [
        ("a", "1", "host/deploy"),
        ("b", "x=y", "host/deploy"),
        ("raw", None, "host"),
    ]
    lines = invoke("kvp", "list", "web01").stdout.splitlines()
    assert lines[0].split() == ["POOL", "KEY", "VALUE", "OWNER", "REVISION", "ACKNOWLEDGED"]
    assert any(line.startswith("auto ") and "OSName" in line for line in lines)
    assert ["auto_external", "VirtualMachineName", "web01"] in [line.split()[:3] for line in lines]
    invoke("kvp", "delete", "web01", "a", "nothing", code=5)
    assert invoke_json("kvp", "delete", "web01", "--label", "deploy") == {"vm": "web01", "deleted": 2}
    invoke("kvp", "delete", "web01", "raw")
    assert invoke_json("kvp", "list", "web01", "--pool", "external") == []


@pytest.mark.usefixtures("made")
def test_what_cannot_be(tmp_path: Path) -> None:
    assert "KEY=VALUE" in invoke("kvp", "set", "web01", "a", code=2).stderr
    assert "either keys" in invoke("kvp", "delete", "web01", code=2).stderr
    assert "no key 'nothing'" in invoke("kvp", "get", "web01", "nothing", code=5).stderr
    assert "no key 'nothing'" in invoke("kvp", "list", "web01", "nothing", code=5).stderr
    assert "written by the guest" in invoke("kvp", "set", "web01", "a=1", "--pool", "guest", code=4).stderr
    assert "nobody acknowledged" in invoke("kvp", "set", "web01", "a=1", "--acknowledged", "0.05", code=1).stderr
    assert "for the host" in invoke("kvp", "set", "loopback", "a=1", "--acknowledged", "1", code=2).stderr
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    large = str(tmp_path / "large")
    assert "more than 1.0 MiB" in invoke("kvp", "set", "web01", "a", "--file", large, code=2).stderr
    invoke("kvp", "list", "nobody", code=5)


def test_in_the_guest(made: EmbeddedFabric, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvsock.services.predefined.kvp.programs.own_state_folder", lambda: str(state))
    invoke("kvp", "set", "web01", "config=1")
    invoke("kvp", "set", "loopback", "state=up")
    assert invoke("kvp", "get", "web01", "state").stdout == "up"
    assert invoke("kvp", "get", "loopback", "config").stdout == "1"
    assert invoke_json("kvp", "list", "loopback", "state")[0]["pool"] == "guest"
    assert "alone can be changed" in invoke("kvp", "set", "loopback", "a=1", "--pool", "external", code=2).stderr
    invoke("kvp", "delete", "loopback", "state")
    invoke("kvp", "get", "loopback", "state", code=5)
    monkeypatch.undo()
    assert invoke("kvp", "--state-folder", str(state), "get", "loopback", "config").stdout == "1"
    assert (
        "run the agent first"
        in invoke("kvp", "--state-folder", "/nonesuch", "get", "loopback", "a", code=5).stderr
    )


def test_acknowledging(made: EmbeddedFabric, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvsock.services.predefined.kvp.programs.own_state_folder", lambda: str(state))
    env = environment(HVSOCK_DIR=made.folder, HVSOCK_PARTITION=made.host.folder)
    with started("kvp", "set", "web01", "config=1", "--acknowledged", "30", env=env) as process:
        for change in local(str(state)).watch(Pool.EXTERNAL, timeout=30):
            if change.item is not None:
                break
        said = invoke_json("kvp", "acknowledge", "loopback", "config")
        assert process.wait(30) == 0
    (row,) = invoke_json("kvp", "list", "web01", "config")
    assert (said["pool"], said["revision"]) == ("external", row["acknowledged"]) == ("external", row["revision"])
    invoke("kvp", "set", "loopback", "state=up")
    was = invoke_json("kvp", "list", "web01", "state")[0]["revision"]
    invoke("kvp", "set", "loopback", "state=down")
    assert "read it again" in invoke("kvp", "acknowledge", "web01", "state", "--revision", str(was), code=2).stderr
    assert invoke("kvp", "acknowledge", "web01", "state").stdout == ""
    assert invoke_json("kvp", "list", "loopback", "state")[0]["acknowledged"] > was
    assert "no key 'config'" in invoke("kvp", "acknowledge", "web01", "config", code=5).stderr


def test_watching(made: EmbeddedFabric, state: Path) -> None:
    mine = local(str(state))
    mine.set({"before": "1"})
    env = environment(HVSOCK_DIR=made.folder, HVSOCK_PARTITION=made.host.folder)
    with started("kvp", "watch", "web01", "--pool", "guest", "--json", env=env) as process:
        assert json.loads(line_of(process.stdout))["key"] == "before"
        mine.set({"after": "2"})
        assert json.loads(line_of(process.stdout))["value"] == "2"
        mine.delete(["after"])
        assert json.loads(line_of(process.stdout))["change"] == "deleted"


def test_a_guest_does_not_write_to_the_terminal() -> None:
    assert printable("a\x1b[31m\n\u202e") == "a\\x1b[31m\\n\\u202e"
    item = Item(Pool.GUEST, "k", b"\x1b]0;title\x07" * 1000, "guest", 1, 0, 1)
    assert "\x1b" not in shown(item)
    assert shown(item).endswith("... (9.8 KiB)")
    assert len(shown(item)) < 80
