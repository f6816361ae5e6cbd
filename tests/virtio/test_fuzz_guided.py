"""The fuzzer that is guided by coverage; only `make soak` has this file run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.mutations import MAX_BYTES
from fuzz.programs import PROGRAMS

ROOT = Path(__file__).parent.parent.parent
GUIDED_RUNS = 500_000
GUIDED_SECONDS = 6000
"""Time limit of a run; its count is what ends it."""


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not there for this Python: pip install atheris"
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_the_guided_fuzzer_finds(name: str, tmp_path: Path) -> None:
    options = [
        f"-runs={GUIDED_RUNS}",
        f"-max_len={MAX_BYTES}",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
    ]
    new = tmp_path / "new"
    new.mkdir()
    command = [sys.executable, "-m", "fuzz", name, *options, str(new), str(ROOT / "fuzz" / "corpus" / name)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False, timeout=GUIDED_SECONDS
    )
    found = [file.read_bytes().hex() for file in tmp_path.iterdir() if file.is_file()]
    assert (done.returncode, found) == (0, []), done.stderr[-4000:]
