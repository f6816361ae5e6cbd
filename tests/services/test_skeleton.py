"""What `hvsock service new` writes works as it is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.errors import DuplicateError, UsageError
from hvsock.services.skeleton import MAX_NAME_CHARACTERS, Names, write
from hvsock.testing.fabric import fabric

ROOT = Path(__file__).parent.parent.parent


def run(folder: Path, *command: str, **changes: str) -> None:
    """Run a module of this Python in `folder`, with changes of the environment; it has to succeed."""
    environ = {**os.environ, "MYPYPATH": str(ROOT / "src"), **changes}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a new service."""
    write(Names.of("Disk Inventory"), str(tmp_path / "made"))
    return tmp_path / "made"


def test_its_own_test_passes(written: Path) -> None:
    plugins = ("-p", "hvsock.testing.pytest_plugin", "-p", "no:cacheprovider")  # others only take time to load
    run(written, "pytest", "-q", *plugins, "-W", "error", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")


def test_ruff_is_content_whatever_the_name(tmp_path: Path) -> None:
    names = ["X", "KVP", "Zoo", "Disk Inventory", "a-b_c d", "x" * MAX_NAME_CHARACTERS]
    folders = [str(tmp_path / str(number)) for number in range(len(names))]
    for name, folder in zip(names, folders, strict=True):
        write(Names.of(name), folder)
    source = ("--config", f"src = {folders}")  # each is where its modules are
    run(tmp_path, "ruff", "check", "--isolated", "--no-cache", *source, "--select", "E,F,I,B,UP,RUF,ASYNC", ".")
    run(tmp_path, "ruff", "format", "--isolated", "--no-cache", "--check", ".")


@pytest.mark.soak
def test_mypy_is_content(written: Path) -> None:
    run(written, "mypy", "--strict", "--follow-imports=silent", f"--cache-dir={ROOT / '.mypy_cache'}", ".")


def test_nothing_is_overwritten(written: Path) -> None:
    (written / "guest.py").unlink()
    before = {path.name: path.read_text() for path in written.glob("*.py")}
    with pytest.raises(DuplicateError, match="left as it is"):
        write(Names.of("Disk Inventory"), str(written))
    assert {path.name: path.read_text() for path in written.glob("*.py")} == before


@pytest.mark.parametrize(
    "name",
    ["", "1st", "a/b", "../x", "a  b", "Größe", "a\n", "class", "json", "host", "x" * (MAX_NAME_CHARACTERS + 1)],
)
def test_no_service_is_called_so(name: str) -> None:
    with pytest.raises(UsageError):
        Names.of(name)


def test_both_halves_by_the_command(tmp_path: Path) -> None:
    """A new service is registered, served in a guest, and asked from the host."""
    hvsock = [sys.executable, "-m", "hvsock"]
    with fabric() as made:
        environ = {**os.environ, "HVSOCK_DIR": made.folder}
        environ.pop("HVSOCK_PARTITION", None)
        guest = made.create_partition("web01")
        command = [*hvsock, "service", "new", "Disk Inventory", "--folder", str(tmp_path), "--json"]
        told = json.loads(subprocess.run(command, env=environ, capture_output=True, check=True).stdout)
        made.register(told["name"], told["id"])
        command = [*hvsock, "service", "serve", "disk_inventory:DiskInventory"]
        inside = {**environ, "HVSOCK_PARTITION": guest.folder}
        with subprocess.Popen(command, cwd=tmp_path, env=inside, stderr=subprocess.PIPE, text=True) as serving:
            try:
                assert serving.stderr is not None
                assert "serving Disk Inventory" in serving.stderr.readline()
                asked = [sys.executable, "host.py", "web01"]
                done = subprocess.run(asked, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
                assert done.stdout == "2\nalpha\nbeta\n"
            finally:
                serving.terminate()
            assert serving.wait() == 0
