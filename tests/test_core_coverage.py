"""The rules and machines at the core are covered by their own tests, every line and every branch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import FEW_VARIABLE

ROOT = Path(__file__).parent.parent

CORE = {
    "hvsock.topology": "tests/topology",
    "hvsock.fabric.messages": "tests/fabric/test_messages.py",
    "hvsock.virtio": "tests/virtio",
}
"""Package or module -> the folder or file with its tests."""


def files_of(name: str) -> set[str]:
    """The source files of a package or module, relative to the root of the project."""
    path = ROOT.joinpath("src", *name.split("."))
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return {file.relative_to(ROOT).as_posix() for file in files}


def run(*arguments: str | Path) -> None:
    """Run Python in the project's root; what it printed is the message where it fails."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    environ[FEW_VARIABLE] = "1"
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CORE)
def test_core_is_covered_by_its_own_tests(name: str, tmp_path: Path) -> None:
    data, report = f"--data-file={tmp_path / 'data'}", tmp_path / "report.json"
    # neither the project's own pytest plugin nor a cache: what counts is what these tests do
    tests = ("pytest", "-q", "-p", "no:hvsock", "-p", "no:cacheprovider", CORE[name])
    run("coverage", "run", data, "--branch", f"--source={name}", "-m", *tests)
    run("coverage", "json", data, "-o", report)
    files = json.loads(report.read_text(encoding="utf-8"))["files"]
    assert {file.replace(os.sep, "/") for file in files} == files_of(name)
    missing = {
        file: {"lines": one["missing_lines"], "branches": one["missing_branches"]}
        for file, one in files.items()
        if one["missing_lines"] or one["missing_branches"]
    }
    assert not missing, f"{CORE[name]} leaves parts of {name} untested"
