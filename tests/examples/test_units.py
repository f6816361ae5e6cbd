"""The systemd units are such to systemd itself, and WSL2's configuration is as its documentation says."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "examples" / "containers"
UNITS = [*sorted(CONTAINERS.glob("*.service")), ROOT / "src" / "hvsock" / "services" / "hvsock-agent.service"]


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is missing; as root: apt-get install -y systemd",
)
def test_units(tmp_path: Path) -> None:
    for unit in UNITS:
        shutil.copy(unit, tmp_path / unit.name.replace("@", "@one"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_wsl_conf() -> None:
    """What can be told of it without Windows."""
    found = configparser.ConfigParser()
    with open(CONTAINERS / "wsl.conf", encoding="utf-8") as file:
        found.read_file(file)
    assert found.sections() == ["boot"]
    assert dict(found["boot"]) == {"systemd": "true"}
