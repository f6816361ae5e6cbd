"""``.reg`` files through a regedit that is not ours: Wine's."""

# ruff: noqa: RUF001 - names in many scripts look alike

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.registry.formats.regfile import load_reg
from tests.cli.helpers import invoke, invoke_json

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        not (shutil.which("wine") and shutil.which("wineserver")),
        reason="Wine is not there; as root: apt-get install -y --no-install-recommends wine",
    ),
]

KEY = r"HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"
NAMES = (
    "HV Socket Demo",
    'say "hi" \\o/ ; [not a key]',
    "дневник службы",
    "υπηρεσία",
    "サービス 一覧",
    "서비스",
    "خدمة الضيف",
    "שירות",
    "सेवा",
    "บริการ",
    "Übergröße é",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🛰",
)
"""Names in many scripts; the last is outside of the basic plane, where UTF-16 needs two units."""
WINE_SECONDS = 120.0
"""How long Wine may take for one program: making its folder takes 20 s on a busy machine, the rest one."""


class Wine:
    """Wine in a folder of its own, without a display."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder.parent),
            "WINEPREFIX": str(folder),
            "WINEDEBUG": "-all",
            "WINEDLLOVERRIDES": "mscoree,mshtml=",
            "LC_ALL": "hi_IN.UTF-8",  # Hindi has no code page of its own, so programs write UTF-8
        }

    def run(self, *arguments: str) -> bytes:
        """What a program of Windows writes; it must not fail."""
        return subprocess.run(
            ["wine", *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=WINE_SECONDS,
            cwd=self.folder.parent,
        ).stdout

    def stop(self) -> None:
        """End all that runs in this folder, and wait for that."""
        for argument in ("-k", "-w"):
            subprocess.run(["wineserver", argument], env=self.environment, check=False, timeout=WINE_SECONDS)


@pytest.fixture
def wine(tmp_path: Path) -> Iterator[Wine]:
    """Wine whose registry has none of our services."""
    found = Wine(tmp_path / "wine")
    try:
        yield found
    finally:
        found.stop()


def queried(output: str) -> dict[str, str]:
    """The services that `reg query KEY /s` shows: names by GUID."""
    found, guid = {}, ""
    for line in output.splitlines():
        if line.startswith("HKEY_"):
            guid = line.rpartition("\\")[2]
        elif match := re.fullmatch(r" {4}ElementName {4}REG_SZ {4}(.*)", line):
            found[guid] = match.group(1)
    return found


@pytest.mark.timeout(300)
def test_through_regedit_and_back(hvsock_fabric: EmbeddedFabric, tmp_path: Path, wine: Wine) -> None:
    """What is exported is read by regedit, told by reg, written by regedit, and imported: unchanged."""
    services = {invoke_json("service", "register", name)["id"]: name for name in NAMES}
    ours, theirs = tmp_path / "ours.reg", tmp_path / "theirs.reg"
    assert invoke("service", "export", str(ours)).exit_code == 0

    wine.run("regedit", "/S", "ours.reg")
    assert queried(wine.run("reg", "query", KEY, "/s").decode("utf-8")) == services

    wine.run("regedit", "/E", "theirs.reg", KEY.replace("HKLM", "HKEY_LOCAL_MACHINE"))
    written = load_reg(theirs.read_bytes())
    assert {str(one.id): one.name for one in written.services} == services

    again = invoke_json("service", "import", "--replace", str(theirs))
    assert (again["added"], again["changed"], again["skipped"]) == (0, 0, len(services))
    for guid in services:
        invoke("service", "unregister", guid)
    assert invoke_json("service", "import", str(theirs))["added"] == len(services)
    after = {one["id"]: one["name"] for one in invoke_json("service", "list")}
    assert {guid: after[guid] for guid in services} == services
