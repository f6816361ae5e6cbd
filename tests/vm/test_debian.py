"""Packages by apt, asked of programs that behave as apt does with and without lists and a network."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from hvsock.errors import StateError

assert sys.platform == "linux"

from hvsock.vm import debian
from hvsock.vm.debian import Archive, Package

CONTENT = b"what a package holds"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RECORD = f"Package: p\nVersion: 1:2-3\nDepends: libc6 (>= 2.3), q | r\nSHA256: {SHA256}\nDescription: x\n y\n"
P = Package("p", "1:2-3", SHA256, ("libc6", "q"))
FETCHES = f'case "$*" in *download*) printf "%s" "{CONTENT.decode()}" > p_1%3a2-3_amd64.deb;; esac'


class FakeApt:
    """Programs in place of apt's and dpkg's; each writes its arguments down."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log = folder / "log"
        for name in debian.TOOLS:
            self.program(name, "exit 100")

    def program(self, name: str, body: str) -> None:
        """Have the program `name` run `body`, a piece of shell."""
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.log}\n{body}\n')
        path.chmod(0o755)

    def calls(self, word: str) -> list[str]:
        """The command lines with `word` in them, of all programs that were run."""
        return [line for line in self.log.read_text().splitlines() if word in line.split()]


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    made = FakeApt(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


@pytest.fixture
def archive(apt: FakeApt, tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "packages"), lambda text: None)


def test_records() -> None:
    virtual = "Package: v\nVersion: 1\n"
    other = RECORD.replace("Package: p", "Package: o").replace("Depends: libc6 (>= 2.3), q | r\n", "")
    assert list(debian.parse_records(f"{RECORD}\n{virtual}\n\n{other}")) == [P, Package("o", "1:2-3", SHA256, ())]
    assert list(debian.parse_records("")) == []


def test_the_lists_of_the_machine_are_asked_first(apt: FakeApt, archive: Archive) -> None:
    apt.program("apt-cache", f"cat <<'END'\n{RECORD}END")
    assert archive.resolve(["p"]) == {"p": P}
    assert len(apt.calls("show")) == 1
    assert apt.calls("update") == []


def test_then_private_lists_which_are_fetched_once(apt: FakeApt, archive: Archive) -> None:
    apt.program("apt-cache", f"case \"$*\" in *lists-machine*) cat <<'END'\n{RECORD}END\n;; esac")
    apt.program("apt-get", f'case "$*" in *lists-machine*) {FETCHES};; *) exit 100;; esac')
    assert archive.resolve(["p"]) == {"p": P}
    archive.fetch([P])
    assert len(apt.calls("update")) == 1
    assert "--error-on=any" in apt.calls("update")[0]


def test_then_those_of_the_file_that_is_named(
    apt: FakeApt, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(debian.SOURCES_VARIABLE, str(tmp_path / "own.list"))
    apt.program("apt-cache", f"case \"$*\" in *own.list*) cat <<'END'\n{RECORD}END\n;; esac")
    apt.program("apt-get", 'case "$*" in *own.list*update*);; *) exit 100;; esac')
    assert archive.resolve(["p"]) == {"p": P}


def test_without_a_network_all_reasons_are_told(apt: FakeApt, archive: Archive) -> None:
    apt.program("apt-cache", "")
    apt.program("apt-get", "echo 'W: hm' >&2; echo 'E: no route to a mirror' >&2; exit 100")
    with pytest.raises(StateError) as caught:
        archive.resolve(["p"])
    text = str(caught.value)
    assert "the machine's lists: there is no package p" in text
    assert text.count("E: no route to a mirror") == 1
    assert "as root: apt-get update; on another system, set HVSOCK_APT_SOURCES" in text
    assert "\n" not in text


def test_fetched_packages_are_checked_and_kept(apt: FakeApt, archive: Archive, tmp_path: Path) -> None:
    apt.program("apt-get", FETCHES)
    archive.fetch([P])
    archive.fetch([P])
    assert len(apt.calls("download")) == 1
    assert apt.calls("download")[0].endswith(" download p=1:2-3")
    assert (tmp_path / "packages" / P.file).read_bytes() == CONTENT
    assert os.listdir(tmp_path / "packages") == [P.file]


def test_what_is_not_what_the_lists_say_is_refused(apt: FakeApt, archive: Archive, tmp_path: Path) -> None:
    apt.program("apt-get", FETCHES.replace("what a", "another"))
    with pytest.raises(StateError, match="has not the checksum"):
        archive.fetch([P])
    assert not (tmp_path / "packages" / P.file).exists()


def test_a_damaged_package_is_removed(apt: FakeApt, archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "packages" / P.file).write_bytes(b"damaged")
    apt.program("dpkg-deb", "echo 'dpkg-deb: error: not a Debian format archive' >&2; exit 2")
    with pytest.raises(StateError, match="not a Debian format archive"):
        archive.unpack([P], str(tmp_path / "root"))
    assert not (tmp_path / "packages" / P.file).exists()


def test_a_program_that_hangs(apt: FakeApt, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "APT_SECONDS", 0.1)
    for name in ("apt-cache", "apt-get"):
        apt.program(name, "exec sleep 60")
    with pytest.raises(StateError, match=r"took more than 0\.1 s"):
        archive.resolve(["p"])


@pytest.mark.parametrize(("tool", "package"), debian.TOOLS.items())
def test_a_program_that_is_missing(
    tool: str, package: str, apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(apt.bin))
    (apt.bin / tool).unlink()
    with pytest.raises(StateError, match=f"{tool} is missing.*apt-get install -y {package};"):
        Archive(str(tmp_path / "packages"), lambda text: None)
