"""Programs that tell their state: by a lock for as long as they live, or by a lease."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.errors import BusyError, UsageError
from hvsock.services.predefined.heartbeat import applications
from hvsock.services.predefined.heartbeat.applications import (
    FOLDER,
    MAX_LEASE_SECONDS,
    MAX_PROGRAMS,
    Applications,
    ApplicationState,
    tell_for,
    telling,
    worst_of,
)

UNKNOWN, HEALTHY, CRITICAL, STOPPED = ApplicationState
HOLDER = """if True:
    import sys
    from hvsock.services.predefined.heartbeat.applications import *
    with telling("db", sys.argv[1], ApplicationState.CRITICAL):
        print("telling", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        ([], UNKNOWN),
        ([UNKNOWN, HEALTHY], HEALTHY),
        ([HEALTHY, STOPPED, HEALTHY], STOPPED),
        ([STOPPED, CRITICAL, HEALTHY, UNKNOWN], CRITICAL),
    ],
)
def test_the_worst_state_counts(states: list[ApplicationState], worst: ApplicationState) -> None:
    assert worst_of(states) is worst


def test_many_programs(tmp_path: Path) -> None:
    found = Applications(str(tmp_path))
    assert found.worst() is UNKNOWN
    with telling("web", str(tmp_path)) as web, telling("db", str(tmp_path), STOPPED):
        assert found.all() == {"db": STOPPED, "web": HEALTHY}
        assert found.worst() is STOPPED
        web.tell(CRITICAL)
        assert found.worst() is CRITICAL
        with pytest.raises(BusyError, match="another program"), telling("web", str(tmp_path)):
            pass
        assert found.worst() is CRITICAL
    assert found.all() == {}
    assert os.listdir(tmp_path / FOLDER) == []


def test_a_program_that_is_killed_tells_nothing_any_more(tmp_path: Path) -> None:
    found = Applications(str(tmp_path))
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"telling\n"
        assert found.all() == {"db": CRITICAL}
        process.kill()
        process.wait()
        assert os.listdir(tmp_path / FOLDER) == ["db"]
        assert found.all() == {}
    assert os.listdir(tmp_path / FOLDER) == []


def test_a_lease_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Applications(str(tmp_path))
    tell_for("cron", str(tmp_path), CRITICAL, 60.0)
    tell_for("cron", str(tmp_path), HEALTHY, 60.0)
    assert found.all() == {"cron": HEALTHY}
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(applications, "_since_boot", lambda: now + 70)
    assert found.all() == {}
    tell_for("cron", str(tmp_path), CRITICAL, 60.0)
    monkeypatch.setattr(applications, "_boot", lambda: "another")
    assert found.all() == {}
    assert os.listdir(tmp_path / FOLDER) == []


def test_a_lease_is_taken_back(tmp_path: Path) -> None:
    tell_for("cron", str(tmp_path), CRITICAL, 60.0)
    tell_for("cron", str(tmp_path), UNKNOWN, 60.0)
    assert Applications(str(tmp_path)).all() == {}


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "x" * 65, "\n"])
def test_no_program_is_called_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no program tells"):
        tell_for(name, str(tmp_path), HEALTHY, 1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, MAX_LEASE_SECONDS + 1, float("nan"), float("inf")])
def test_no_lease_is_so_long(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(UsageError, match="can be told"):
        tell_for("cron", str(tmp_path), HEALTHY, seconds)


def test_there_are_not_too_many(tmp_path: Path) -> None:
    for number in range(MAX_PROGRAMS):
        tell_for(f"p{number}", str(tmp_path), HEALTHY, 60.0)
    with pytest.raises(BusyError, match="more cannot"):
        tell_for("one", str(tmp_path), CRITICAL, 60.0)
    tell_for("p0", str(tmp_path), CRITICAL, 60.0)
    assert Applications(str(tmp_path)).worst() is CRITICAL


def test_files_that_are_none_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe")
    (folder / ".hidden").write_text("2 99999999999 x\n")
    (folder / "long").write_bytes(b"2" * 100_000)
    (folder / "text").write_text("9 1 x\n")
    with telling("web", str(tmp_path)):
        assert Applications(str(tmp_path)).all() == {"web": HEALTHY}
