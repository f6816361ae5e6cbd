"""The rules and machines at the core are covered by their own tests, every line and every branch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import coverage
import pytest

from tests.core import CORE, OF_NO_TEST, ROOT
from tests.support import FEW_VARIABLE

pytestmark = pytest.mark.timeout(300)


def files_of(name: str) -> set[str]:
    """The source files of a package or module, relative to the root of the project."""
    path = ROOT.joinpath("src", *name.split("."))
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return {file.relative_to(ROOT).as_posix() for file in files}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each part of the core has of its own tests."""
    data = tmp_path_factory.mktemp("core") / "data"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "PYTEST_"))}
    environ[FEW_VARIABLE] = "1"
    done = subprocess.run(
        [sys.executable, "-m", "tests.core", data],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return data


@pytest.mark.parametrize("name", CORE)
def test_core_is_covered_by_its_own_tests(name: str, measured: Path, tmp_path: Path) -> None:
    loaded = coverage.Coverage(data_file=measured, branch=True, source=[name])
    loaded.load()
    wanted = [str(ROOT / one) for one in files_of(name)]
    contexts = [f"^{re.escape(one)}$" for one in (OF_NO_TEST, CORE[name])]
    report = tmp_path / "report.json"
    loaded.json_report(outfile=str(report), include=wanted, contexts=contexts)
    files = json.loads(report.read_text(encoding="utf-8"))["files"]
    assert {Path(ROOT, file).relative_to(ROOT).as_posix() for file in files} == files_of(name)
    missing = {
        file: {"lines": one["missing_lines"], "branches": one["missing_branches"]}
        for file, one in files.items()
        if one["missing_lines"] or one["missing_branches"]
    }
    assert not missing, f"{CORE[name]} leaves parts of {name} untested"
