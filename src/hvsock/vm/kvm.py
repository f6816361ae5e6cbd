"""Whether KVM runs guests here: tried, since a /dev/kvm may open and not run any."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from typing import Final, NamedTuple

from .layers import images_folder

if sys.platform != "linux":
    raise ImportError("KVM is of Linux")

DEVICE: Final = "/dev/kvm"
PROBE_SECONDS: Final = 10.0
"""How long a guest of three instructions, or a kernel's first line, may take; they take 0.2 s and 1 s."""
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"
_ROM_BYTES: Final = 0x10000
"""Size of the guest's ROM, whose last 16 bytes are where a processor begins."""
_BEGIN: Final = 0xFFF0
_CODE: Final = bytes.fromhex("b02a e6f4 f4")
"""mov al, 0x2a; out 0xf4, al; hlt: by isa-debug-exit, QEMU ends with the code 0x2a * 2 + 1."""
_WORKED: Final = 0x2A * 2 + 1


class Verdict(NamedTuple):
    """Which accelerator to use.

    Attributes:
        accelerator: "kvm" or "tcg", QEMU's emulation in software.
        reason: why not KVM; empty where it is.
    """

    accelerator: str
    reason: str = ""


def choose(program: str, kernel: str | None = None) -> Verdict:
    """KVM where it runs a guest, else software emulation; tried once after each boot of the machine.

    Args:
        program: QEMU.
        kernel: a kernel with a serial console, to see that it begins too.
    """
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return Verdict("tcg", f"{DEVICE} is not there, or this user may not use it")
    with open(BOOT_ID, encoding="ascii") as file:
        question = [file.read().strip(), program, kernel is not None]
    path = os.path.join(images_folder(), "kvm.json")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
        if known["question"] == question:
            return Verdict(*known["verdict"])
    verdict = probe(program, kernel)
    with contextlib.suppress(OSError):  # a memory of it is not needed
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
            json.dump({"question": question, "verdict": verdict}, file)
        os.replace(file.name, path)
    return verdict


def probe(program: str, kernel: str | None) -> Verdict:
    """Run a guest of three instructions under KVM, then the first lines of `kernel`, if there is one."""
    with tempfile.TemporaryDirectory(prefix="hvsock-kvm-") as folder:
        rom = os.path.join(folder, "rom")
        with open(rom, "wb") as file:
            file.write(bytes(_BEGIN) + _CODE + bytes(_ROM_BYTES - _BEGIN - len(_CODE)))
        common = [program, *("-accel", "kvm", "-cpu", "max", "-nodefaults", "-no-user-config", "-display", "none")]
        small = [*common, "-m", "16M", "-bios", rom, "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
        code, _ = _run(small, folder)
        if code != _WORKED:
            return Verdict("tcg", f"KVM does not run a guest of three instructions: QEMU {_ending(code)}")
        if kernel is not None:
            words = "console=ttyS0 earlyprintk=serial panic=-1"
            whole = [
                *common,
                *("-m", "256M", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-append", words),
            ]
            code, output = _run(whole, folder)
            if b"Linux version" not in output:
                return Verdict("tcg", f"KVM does not run a Linux kernel: QEMU {_ending(code)}")
    return Verdict("kvm")


def _run(command: list[str], folder: str) -> tuple[int | None, bytes]:
    """Exit code and output of a command; no code where it had to be ended."""
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        return None, error.stdout or b""
    return done.returncode, done.stdout


def _ending(code: int | None) -> str:
    if code is None:
        return f"hung for {PROBE_SECONDS:g} s"
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
