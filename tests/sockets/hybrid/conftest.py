"""VMMs played by threads, and a configuration that knows them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Configure = Callable[..., None]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short: hybrid sockets are files, and AF_UNIX takes 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hvsock-") as made:
        yield Path(made)


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Configure:
    """Gives this process a profile with VMs; by default web01 and web02 in the folder, with VMMs of our own."""

    def write(vmm: str = "hvsock", names: tuple[str, ...] = ("web01", "web02"), more: str = "") -> None:
        vms = "".join(f"[profiles.default.vms.{name}]\npath='{folder / name}'\n" for name in names)
        file = folder / f"{os.urandom(4).hex()}.toml"
        file.write_text(f"[profiles.default]\ntransport='hybrid'\nvmm='{vmm}'\n{more}\n{vms}", encoding="utf-8")
        monkeypatch.setenv("HVSOCK_CONFIG", str(file))

    return write
