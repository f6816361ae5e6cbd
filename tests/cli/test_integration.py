"""`hvsock integration` and `hvsock agent`: what people type, and what they read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

from hvsock.constants import INTEGRATION_SERVICES
from hvsock.services.predefined import GUEST_HALVES
from hvsock.testing.fabric import EmbeddedFabric, fabric
from hvsock.vm.runs import RECORD, Record, Run, State, write_json
from tests.cli.helpers import ended, invoke, invoke_json, line_of, started

IDLE_AGENT_MOST_BYTES = 48 << 20
"""What an agent that waits may have in memory."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedFabric]:
    """A fabric with a guest, which commands are in, too."""
    with fabric() as found:
        found.create_partition("web01")
        monkeypatch.setenv("HVSOCK_DIR", found.folder)
        monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
        yield found


def listed() -> dict[str, dict[str, Any]]:
    """The services of web01 by name."""
    return {one["name"]: one for one in invoke_json("integration", "list", "web01")}


def test_policy_without_an_agent(made: EmbeddedFabric) -> None:
    before = listed()
    assert list(before) == [one.name for one in INTEGRATION_SERVICES]
    assert [name for name, one in before.items() if not one["enabled"]] == ["Guest Service Interface"]
    assert before["Heartbeat"]["primary_status"] == "No Contact"
    assert before["Heartbeat"]["secondary_status"] == "no agent answers; run it there: hvsock agent"
    assert before["Guest Service Interface"]["primary_status"] == ""
    assert invoke_json("integration", "enable", "web01", "guest service INTERFACE")["enabled"] is True
    assert invoke_json("integration", "disable", "web01", "5180")["name"] == "Heartbeat"
    after = listed()
    assert after["Guest Service Interface"]["enabled"]
    assert not after["Heartbeat"]["enabled"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("enable", "web01", "Heartbreak"), 5, "there is no integration service 'Heartbreak'"),
        (("enable", "web02", "Heartbeat"), 5, "no partition is called 'web02'"),
        (("list",), 2, "Missing argument"),
    ],
)
def test_what_cannot_be_meant(made: EmbeddedFabric, arguments: tuple[str, ...], code: int, text: str) -> None:
    assert text in invoke("integration", *arguments, code=code).stderr


@pytest.mark.parametrize("state", [State.STOPPED, State.PAUSED])
def test_a_vm_that_is_not_up_is_said_to_be_by_all_who_ask_its_agent(made: EmbeddedFabric, state: State) -> None:
    """Nobody could run an agent in it."""
    commands = {
        ("exec", "web01", "--", "true"): "Direct",
        ("direct", "ssh-config", "web01"): "Direct",
        ("kvp", "list", "web01"): "Key-Value Pair Exchange",
        ("timesync", "web01"): "Time Synchronization",
        ("shutdown", "web01"): "Shutdown",
        ("vss", "check", "web01"): "VSS",
    }
    for command, service in commands.items():
        said = invoke(*command, code=255 if command[0] == "exec" else 1).stderr
        assert f"no agent serves {service} in web01; run it there: hvsock agent; see: hvsock integration" in said
    run = Run(made.folder, "web01")
    vm_id = invoke_json("integration", "list", "web01")[0]["id"]
    record = Record("web01", vm_id, 3, state, accelerator="tcg", memory=1, cpus=1, kernel="", started=0.0)
    supervisor = run.take()
    try:
        write_json(run.path(RECORD), record.to_json())
        if state is State.STOPPED:
            text = "the VM is stopped; start it: hvsock vm start web01"
        else:
            text = "the VM is paused; let it go on: hvsock vm resume web01"
        invoke("integration", "enable", "web01", "Guest Service Interface")
        for command in (*commands, ("cp", "web01:/x", ".")):
            assert text in invoke(*command, code=255 if command[0] == "exec" else 1).stderr
        assert {one["secondary_status"] for one in listed().values()} == {text}
        reason = invoke_json("heartbeat", "web01")["heartbeats"][0]["reason"]
        assert reason == (text if state is State.STOPPED else "its VM is paused")
    finally:
        os.close(supervisor)


def test_a_heartbeat_that_is_disabled_says_so(made: EmbeddedFabric) -> None:
    invoke("integration", "disable", "web01", "Heartbeat")
    reason = invoke_json("heartbeat", "web01")["heartbeats"][0]["reason"]
    assert reason.startswith("'Heartbeat' is disabled here; run: hvsock service enable ")


def test_operations_that_are_denied(made: EmbeddedFabric) -> None:
    denied = {"VM Session Service": ["*"], "Key-Value Pair Exchange": ["*", "kvp.set"]}
    assert invoke_json("integration", "deny", "web01", "kvp.set")["denied"] == {
        "Key-Value Pair Exchange": ["kvp.set"]
    }
    assert [one["name"] for one in listed().values() if one["denied"]] == ["Key-Value Pair Exchange"]
    found = invoke_json("integration", "deny", "web01", "*")["denied"]
    assert {name: found[name] for name in denied} == denied
    assert set(found) == set(GUEST_HALVES)
    assert (
        "'kvp.get' is not denied for 'web01'; denied is: *, kvp.set"
        in invoke("integration", "allow", "web01", "kvp.get", code=5).stderr
    )
    assert (
        "there is no operation 'kvp.sett'; there are: agent.report, "
        in invoke("integration", "deny", "web01", "kvp.sett", code=2).stderr
    )
    assert invoke_json("integration", "allow", "web01", "*", "kvp.set")["denied"] == {}
    assert not any(one["denied"] for one in listed().values())


def own_bytes(pid: str) -> int:
    """What a process has in memory, where what several share is divided among them."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def test_an_agent_as_a_process(made: EmbeddedFabric, tmp_path: Path) -> None:
    """It serves all that is enabled, is small while it waits, and ends by SIGTERM."""
    config = tmp_path / "agent.toml"
    config.write_text('off = ["VSS"]\n')
    arguments = ("agent", "--state", str(tmp_path / "state"), "--config", str(config))
    with started("run", "--partition", "web01", "--", sys.executable, "-m", "hvsock", *arguments) as process:
        while "is ready" not in (line := line_of(process.stderr)):
            assert line, "it ended"
        found = listed()
        served = [name for name, one in found.items() if one["primary_status"] == "OK"]
        assert served == [name for name in found if name not in ("VSS", "Guest Service Interface")]
        assert found["VSS"]["secondary_status"] == "off by guest"
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as file:
            others = file.read().split()
        assert len(others) == 2  # Direct's keeper, and the agent itself, which share memory with their supervisor
        assert sum(own_bytes(one) for one in (str(process.pid), *others)) < IDLE_AGENT_MOST_BYTES
        process.terminate()
        code, _, _ = ended(process)
        assert code == 0


def test_an_agent_that_cannot_run(made: EmbeddedFabric, tmp_path: Path) -> None:
    assert "this is the host, which has no agent" in invoke("agent", code=2).stderr
    guest = {"HVSOCK_PARTITION": f"{made.folder}/partitions/{made.create_partition('web02').id}"}
    bad = tmp_path / "bad.toml"
    for text, complaint in (
        ("allow = 1", "not one of allow"),
        ("[", "is not TOML"),
        ('deny = ["A b"]', "no operation"),
        ('deny = ["kvp.*", "kvp.sett"]', "no operation 'kvp.sett'"),
        ('allow = ["nothing.*"]', "no operation 'nothing.*'"),
    ):
        bad.write_text(text)
        assert complaint in invoke("agent", "--config", str(bad), code=2, env=guest).stderr
    assert "no configuration file" in invoke("agent", "--config", "nowhere", code=5, env=guest).stderr


def test_the_unit_for_systemd() -> None:
    assert "ExecStart=/usr/bin/env hvsock agent\n" in invoke("agent", "--unit").stdout
