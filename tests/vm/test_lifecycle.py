"""VMs from start to end, with firmware alone, since their guest does not matter."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from hvsock.errors import NotFoundError, StateError

assert sys.platform == "linux"

from hvsock.vm import control, launch
from hvsock.vm.qemu import Hardware
from hvsock.vm.runs import Run, State
from tests.vm.support import needs_qemu, settings_of, started, wait_until
from tests.waiting import is_alive

pytestmark = needs_qemu

FIRMWARE = Hardware(memory=64)
"""A VM with nothing to start: its firmware says so, again and again."""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / ("x" * 120)), "web01")  # longer than a socket's path may be


def test_pause_resume_reset_and_kill(run: Run) -> None:
    with started(run, settings_of("web01", FIRMWARE)):
        found = control.ask(run, "status")
        assert (found["state"], found["reason"], found["accelerator"]) == ("running", "", "tcg")
        assert is_alive(found["pid"])
        assert is_alive(found["qemu_pid"])
        assert control.ask(run, "pause")["state"] == "paused"
        assert run.record().state is State.PAUSED
        assert control.ask(run, "pause")["state"] == "paused"
        assert control.ask(run, "resume")["state"] == "running"
        assert control.ask(run, "reset")["state"] == "running"
        with pytest.raises(StateError, match="nobody knows"):
            control.ask(run, "wait", seconds=1)
        assert control.ask(run, "kill")["state"] == "stopped"
        run.wait_for_end()
        record = run.record()
        assert (record.state, record.reason, record.pid, record.qemu_pid) == (State.STOPPED, "killed", 0, 0)
        assert not is_alive(found["qemu_pid"])
    with pytest.raises(NotFoundError, match="does not run"):
        control.ask(run, "status")


def test_a_guest_that_does_not_listen_is_switched_off(run: Run) -> None:
    with started(run, settings_of("web01", FIRMWARE)):
        assert control.ask(run, "stop", seconds=0.2)["reason"].startswith("switched off")


def test_a_paused_guest_is_stopped_too(run: Run) -> None:
    with started(run, settings_of("web01", FIRMWARE)):
        control.ask(run, "pause")
        assert control.ask(run, "stop", seconds=0.2)["state"] == "stopped"


def test_a_second_start_is_refused(run: Run) -> None:
    with started(run, settings_of("web01", FIRMWARE)):
        with pytest.raises(StateError, match="runs already"):
            launch.start(run, settings_of("web01", FIRMWARE))
        assert control.ask(run, "status")["state"] == "running"


def test_a_killed_supervisor_takes_qemu_along_and_its_folder_is_taken_over(run: Run) -> None:
    with started(run, settings_of("web01", FIRMWARE)):
        before = run.record()
        os.kill(before.pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(before.qemu_pid))
        run.wait_for_end()
        found = run.record()
        assert (found.state, found.reason) == (State.STOPPED, "its supervisor was killed")
        assert os.path.exists(run.path("control"))
        with started(run, settings_of("web01", FIRMWARE)):
            assert run.record().state is State.RUNNING


def test_a_vm_whose_folder_is_removed_ends(run: Run) -> None:
    with started(run, settings_of("web01", FIRMWARE)):
        record = run.record()
        shutil.rmtree(run.folder)
        wait_until(lambda: not is_alive(record.pid))
        assert not is_alive(record.qemu_pid)


def test_qemu_killed(run: Run) -> None:
    with started(run, settings_of("web01", FIRMWARE)):
        os.kill(run.record().qemu_pid, signal.SIGKILL)
        run.wait_for_end()
    assert run.record().reason == "QEMU ended by signal 9 (Killed)"


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (("/bin/sh", "-c", "echo no such luck; exit 3"), "the vsock device ended with code 3: no such luck"),
        (("/bin/sh", "-c", "kill -9 $$"), "the vsock device ended by signal 9 (Killed): it said nothing"),
    ],
)
def test_a_device_that_does_not_start(run: Run, device: tuple[str, ...], text: str) -> None:
    with pytest.raises(StateError, match="does not start") as caught:
        launch.start(run, settings_of("web01", FIRMWARE, device=device))
    assert text in str(caught.value)
    run.wait_for_end()
    record = run.record()
    assert (record.state, record.reason) == (State.STOPPED, text)


def test_a_qemu_that_does_not_start(run: Run) -> None:
    with pytest.raises(StateError, match="nonesuch"):
        launch.start(run, settings_of("web01", Hardware(memory=64, options=("-nonesuch",))))
