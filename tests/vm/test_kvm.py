"""Whether KVM runs guests, asked of programs that behave as QEMU does here and there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.vm import kvm, qemu
from tests.vm.support import needs_qemu

WORKS = '#!/bin/sh\ncase "$*" in *-kernel*) echo "Linux version 6.12";; *) exit 85;; esac\n'
"""Runs the guest of three instructions, and the kernel."""


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev/kvm that opens, and a memory of verdicts for this test alone."""
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(kvm, "DEVICE", str(path))
    monkeypatch.setattr(kvm, "PROBE_SECONDS", 60.0)
    monkeypatch.setenv("HVSOCK_IMAGES", str(tmp_path / "images"))
    return path


def program(folder: Path, text: str) -> str:
    path = folder / "qemu"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_kvm_that_works(device: Path, tmp_path: Path) -> None:
    found = program(tmp_path, WORKS)
    assert kvm.choose(found) == ("kvm", "")
    assert kvm.choose(found, "/boot/vmlinuz") == ("kvm", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#!/bin/sh\nkill -6 $$\n", "three instructions: QEMU ended by signal 6"),
        ("#!/bin/sh\nexit 1\n", "three instructions: QEMU ended with code 1"),
        ("#!/bin/sh\nexec sleep 60\n", "three instructions: QEMU hung for 1 s"),
        (WORKS.replace("Linux version 6.12", "Probing EDD"), "a Linux kernel: QEMU ended with code 0"),
        (WORKS.replace('echo "Linux version 6.12"', "exec sleep 60"), "a Linux kernel: QEMU hung for 1 s"),
    ],
)
def test_kvm_that_opens_and_does_not_work(
    device: Path, tmp_path: Path, text: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "hung" in reason:
        monkeypatch.setattr(kvm, "PROBE_SECONDS", 1.0)
    verdict = kvm.choose(program(tmp_path, text), "/boot/vmlinuz")
    assert verdict.accelerator == "tcg"
    assert verdict.reason.endswith(reason)


def test_no_kvm(device: Path, tmp_path: Path) -> None:
    device.unlink()
    assert kvm.choose(program(tmp_path, WORKS)).accelerator == "tcg"


def test_it_is_tried_once(device: Path, tmp_path: Path) -> None:
    found = program(tmp_path, WORKS)
    assert kvm.choose(found).accelerator == "kvm"
    program(tmp_path, "#!/bin/sh\nexit 1\n")
    assert kvm.choose(found).accelerator == "kvm"
    other = tmp_path / "other"
    other.mkdir()
    assert kvm.choose(program(other, "#!/bin/sh\nexit 1\n")).accelerator == "tcg"


def test_it_is_tried_again_after_the_next_boot(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = program(tmp_path, WORKS)
    assert kvm.choose(found).accelerator == "kvm"
    program(tmp_path, "#!/bin/sh\nexit 1\n")
    (tmp_path / "boot").write_text("another boot\n")
    monkeypatch.setattr(kvm, "BOOT_ID", str(tmp_path / "boot"))
    assert kvm.choose(found).accelerator == "tcg"


def test_what_is_remembered_may_be_damaged(device: Path, tmp_path: Path) -> None:
    found = program(tmp_path, WORKS)
    assert kvm.choose(found).accelerator == "kvm"
    for text in ("", "{}", "[]", '{"question": 1}', "\0"):
        (tmp_path / "images" / "kvm.json").write_text(text)
        assert kvm.choose(found).accelerator == "kvm"


@needs_qemu
def test_the_guest_of_three_instructions_ends_as_it_should(tmp_path: Path) -> None:
    """Software emulation runs it wherever there is a QEMU."""
    text = f'#!/bin/sh\nshift 2\nexec {os.path.realpath(qemu.find())} -accel tcg "$@"\n'
    assert kvm.probe(program(tmp_path, text), None) == ("kvm", "")
