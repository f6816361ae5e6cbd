"""`hvsock cp`, with a broker and an agent that are processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvsock

assert sys.platform == "linux"

from hvsock.fabric import paths
from tests.cli.helpers import PATIENCE, broker, ended, environment, invoke, invoke_json, started

NAME = "Guest Service Interface"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fabric with the partition web01 and its agent; file copy is off, as by default."""
    folder = str(tmp_path / "fabric")
    monkeypatch.setenv("HVSOCK_DIR", folder)
    monkeypatch.delenv("HVSOCK_PARTITION", raising=False)
    with broker(folder):
        made = invoke_json("partition", "create", "web01")
        with started("agent", env=environment(HVSOCK_PARTITION=made["folder"])) as agent:
            yield tmp_path
            agent.send_signal(signal.SIGTERM)
            ended(agent)


def enable() -> None:
    """Have the service enabled, and served."""
    invoke("integration", "enable", "web01", NAME)
    folder = paths.host_folder(paths.fabric_folder())
    hvsock.wait_for_service(("web01", NAME), PATIENCE, partition=folder)


def test_copying_by_the_command(served: Path) -> None:
    source = served / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_bytes(b"data" * 1000)
    (source / "other").write_bytes(b"")
    refused = invoke("cp", str(source / "other"), f"web01:{served}/x", code=4)
    assert f'hvsock integration enable web01 "{NAME}"' in refused.stderr
    enable()
    (sent,) = invoke_json("cp", "-r", "--parents", str(source), f"web01:{served}/deep/there")
    assert (sent["files"], sent["folders"], sent["bytes"], sent["failures"]) == (2, 2, 4000, [])
    assert sent["target"] == f"web01:{served}/deep/there"
    (served / "back").mkdir()
    assert invoke("cp", "-r", f"web01:{served}/deep/there", str(served / "back")).stdout == ""
    assert (served / "back/there/sub/file").read_bytes() == b"data" * 1000
    # several sources, and what is there
    both = [str(source / "other"), str(source / "sub/file")]
    (served / "flat").mkdir()
    assert [one["files"] for one in invoke_json("cp", *both, f"web01:{served}/flat")] == [1, 1]
    (source / "sub/file").write_bytes(b"new")
    (first, second) = invoke_json("cp", *both, f"web01:{served}/flat", code=1)
    assert (first["unchanged"], second["files"]) == (1, 0)
    assert "--force" in second["failures"][0]["reason"]
    invoke("cp", "--no-clobber", *both, f"web01:{served}/flat")
    assert (served / "flat/file").read_bytes() == b"data" * 1000
    invoke("cp", "--force", *both, f"web01:{served}/flat")
    assert (served / "flat/file").read_bytes() == b"new"
    # what cannot be
    invoke("cp", "-r", f"web01:{served}/deep", str(served / "small"), "--max-entries", "2", code=1)
    invoke("cp", f"web01:{served}/source/sub/file", str(served / "small"), "--max-size", "2", code=1)
    assert not (served / "small").is_file()
    invoke("cp", f"web01:{served}/nothing", str(served), code=5)
    invoke("cp", str(source), f"web01:{served}/folder", code=2)


def test_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HVSOCK_DIR", str(tmp_path))
    for arguments in (
        ("cp", "a", "b"),
        ("cp", "web01:/a", "web02:/b"),
        ("cp", "web01:/a", "./with:colon", "x"),
        ("cp", "a", "web01:relative"),
        ("cp", "--force", "--no-clobber", "a", "web01:/b"),
        ("cp", "web01:/a", "web01:/b", os.fspath(tmp_path / "no-folder")),
    ):
        invoke(*arguments, code=2)
