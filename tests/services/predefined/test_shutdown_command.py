"""`hvsock shutdown` and a partition whose agent is a process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

assert sys.platform == "linux"

from hvsock.cli.commands.shutdown import wait_for_vm
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.testing.fabric import fabric
from hvsock.vm import runs
from hvsock.vm.runs import Run
from tests.cli.helpers import PROGRAM, environment, invoke, invoke_json, line_of, started


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedFabric]:
    """A fabric for whose host the command speaks, with a partition web01."""
    with fabric() as made:
        made.create_partition("web01")
        monkeypatch.setenv("HVSOCK_DIR", made.folder)
        monkeypatch.setenv("HVSOCK_PARTITION", made.host.folder)
        yield made


@pytest.mark.parametrize("how", [(), ("--force",)])
def test_an_agent_and_its_partition_end(
    made: EmbeddedFabric, tmp_path_factory: pytest.TempPathFactory, how: tuple[str, ...]
) -> None:
    env = environment(HVSOCK_DIR=made.folder, XDG_STATE_HOME=str(tmp_path_factory.mktemp("state")))
    env.pop("HVSOCK_PARTITION")
    in_web01 = ("run", "--partition", "web01", "--")
    with (
        started(*in_web01, sys.executable, "-c", "print(flush=True); input()", env=env, stdin=-1) as program,
        started(*in_web01, PROGRAM, "agent", env=env) as agent,
    ):
        assert line_of(program.stdout) == "\n"
        assert agent.stderr is not None
        while "the agent is ready" not in (line := line_of(agent.stderr)):
            assert line, "the agent has ended"
        said = invoke_json("shutdown", "web01", "--status")
        assert (said["phase"], said["over"]) == ("idle", False)
        assert "refused here" in invoke("shutdown", "web01", "--reboot", code=4).stderr
        assert "nothing waits" in invoke("shutdown", "web01", "--cancel", code=5).stderr
        invoke("shutdown", "web01", "--timeout", "600", "--reason", "a \x1b[31mtest")
        shown = invoke("shutdown", "web01", "--status").stdout
        assert "shutdown in " in shown
        assert "(a \\x1b[31mtest)" in shown
        assert "under way already" in invoke("shutdown", "web01", code=1).stderr
        assert "nothing is under way" in invoke("shutdown", "web01", "--cancel").stdout
        assert invoke_json("shutdown", "web01", "--wait", *how)["over"] is True
        assert program.wait(30) != 0
        assert agent.wait(30) == 0


def test_what_cannot_be_asked(made: EmbeddedFabric) -> None:
    assert "give one of" in invoke("shutdown", "web01", "--reboot", "--hibernate", code=2).stderr
    assert "a time-out of -1" in invoke("shutdown", "web01", "--timeout", "-1", code=2).stderr
    invoke("shutdown", "web01", code=1)  # there is no agent
    invoke("shutdown", "nobody", code=5)


def test_a_guest_may_be_off_long_after_its_agent(made: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs of it end, or its memory is written to a disk, for longer than a supervisor may take."""
    run = Run(made.folder, "web01")
    lock = run.take()
    looks = [lambda: None, lambda: os.close(lock)]
    monkeypatch.setattr(runs, "END_SECONDS", -1.0)
    monkeypatch.setattr(runs, "time", SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: looks.pop(0)()))
    wait_for_vm("web01")
    assert looks == []
