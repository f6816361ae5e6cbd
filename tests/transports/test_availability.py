"""What each transport lacks, in words, without connecting to anybody."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from hvsock import availability
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.transport import Transport

assert sys.platform == "linux"


def configure(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    """Give this process a configuration with a profile of that text."""
    file = folder / f"{os.urandom(4).hex()}.toml"
    file.write_text(f"[profiles.default]\n{text}", encoding="utf-8")
    monkeypatch.setenv("HVSOCK_CONFIG", str(file))


def test_all_are_looked_at() -> None:
    assert [one.transport for one in availability.look()] == list(Transport)


def test_the_fabric(hvsock_fabric: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = availability.of(Transport.FABRIC)
    assert (found.ok, found.found) == (True, f"a broker is in {hvsock_fabric.host.folder}")
    monkeypatch.setenv("HVSOCK_DIR", str(tmp_path / "none"))
    found = availability.of(Transport.FABRIC)
    assert (found.ok, found.cure) == (False, "start one with: hvsock up")
    assert found.found.startswith("no broker is in ")


def test_vsock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "vsock"
    monkeypatch.setattr(availability, "VSOCK_DEVICE", str(device))
    found = availability.of(Transport.VSOCK)
    assert not found.ok
    assert "does not speak AF_VSOCK" in found.found
    assert found.cure is not None
    device.touch()
    assert availability.of(Transport.VSOCK).found.endswith("a guest, if it has a device")
    configure(monkeypatch, tmp_path, "guests = 'table'")
    found = availability.of(Transport.VSOCK)
    assert found.ok
    assert found.found.endswith("a host, as the configuration says")


def test_hybrid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = availability.of(Transport.HYBRID)
    assert (found.ok, found.found) == (False, "no VM with a path is known")
    assert found.cure is not None
    assert "a configuration" in found.cure
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/v.sock"
        vms = f"a.path = '{path}'\nb.path = '/nowhere/b'\nc.cid = 3"
        configure(monkeypatch, tmp_path, f"[profiles.default.vms]\n{vms}")
        found = availability.of(Transport.HYBRID)
        assert (found.ok, found.found) == (False, "0 of 2 VMs have a socket at their path")
        with socket.socket(socket.AF_UNIX) as vmm:
            vmm.bind(path)
            found = availability.of(Transport.HYBRID)
            assert (found.ok, found.found) == (True, "1 of 2 VMs have a socket at their path")


def test_windows() -> None:
    found = availability.of(Transport.HYPERV)
    assert (found.ok, found.found) == (False, "it needs Windows, and this is linux")


def test_a_configuration_with_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configure(monkeypatch, tmp_path, "guest = 'table'")
    found = availability.of(Transport.HYBRID)
    assert not found.ok
    assert "profiles.default.guest: there is no such key" in found.found
