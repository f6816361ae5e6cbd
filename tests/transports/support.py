"""The one service and the one client that run everywhere."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples" / "anywhere"
SERVICE, CLIENT = FOLDER / "service.py", FOLDER / "client.py"
VM = "web01"
PORTS = (5005, 5007, 6006)
"""What a fabric has to have registered."""


def checks() -> list[str]:
    """The names of the client's checks."""
    lines = CLIENT.read_text(encoding="utf-8").splitlines()
    return [line.split("(")[0].removeprefix("def ") for line in lines if line.startswith("def check_")]


ALL_PASSED = dict.fromkeys(checks(), "passed")


@contextlib.contextmanager
def served(address: str, **environ: str) -> Iterator[None]:
    """The service in a process of its own, once it listens."""
    command = [sys.executable, str(SERVICE), address]
    with subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening"), line
            yield
        finally:
            process.terminate()


def results(**environ: str) -> dict[str, str]:
    """What the client says of its checks, in a process of its own."""
    command = [sys.executable, str(CLIENT), VM]
    done = subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, check=True, timeout=120
    )
    found: dict[str, str] = json.loads(done.stdout)["checks"]
    assert found == ALL_PASSED, done.stderr
    return found
