"""A freeze of a real ext4 disk of a guest, with a workload that writes all the while."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

assert sys.platform == "linux"

from hvsock.services.predefined.vss.host import frozen
from tests.cli.helpers import PROGRAM
from tests.vm.support import PATIENCE, wait_until
from tests.vm.traffic.world import Guest

_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MISSING: Final = [
    tool for tool in ("mkfs.ext4", "debugfs", "e2fsck", "dumpe2fs") if shutil.which(tool, path=_PATH) is None
]
"""What is not installed of what looks at disks; as root: apt-get install -y e2fsprogs."""

DISK_BYTES: Final = 16 << 20
FREEZE_SECONDS: Final = 100.0
"""More than anything here takes while all is frozen, so that no thaw is one of the time-out's."""

WORKLOAD: Final = r"""
import itertools, os, time
log = open("/mnt/log", "a")
for n in itertools.count(1):
    time.sleep(0.02)  # the agent is to have its share of the processor
    log.write(f"line {n}\n")
    log.flush()
    os.fsync(log.fileno())
    with open("/mnt/new", "w") as file:
        file.write(str(n))
        file.flush()
        os.fsync(file.fileno())
    os.rename("/mnt/new", f"/mnt/file{n % 7}")
    # in memory: how far it is for sure
    with open("/run/count.new", "w") as file:
        file.write(str(n))
    os.rename("/run/count.new", "/run/count")
"""


def made_disk(folder: Path) -> str:
    """A disk with an ext4."""
    made = folder / "data.img"
    made.touch()
    os.truncate(made, DISK_BYTES)
    tool("mkfs.ext4", "-q", "-F", str(made))
    return str(made)


def working(guest: Guest) -> None:
    """Have the workload write to the guest's disk."""
    if guest.output("test", "-e", "/run/count")[0] == 0:
        return
    sh(guest, "mount -t ext4 /dev/vda /mnt")
    sh(guest, f"echo '{WORKLOAD}' > /run/workload.py")
    sh(guest, "python3 /run/workload.py > /run/workload.log 2>&1 &")
    wait_until(lambda: guest.output("test", "-e", "/run/count")[0] == 0)


def tool(*words: str) -> str:
    """What a program of e2fsprogs prints; it must succeed."""
    done = subprocess.run(words, env={**os.environ, "PATH": _PATH}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def sh(guest: Guest, text: str) -> str:
    """What a script of the guest prints; it must succeed."""
    code, said = guest.output("sh", "-c", text)
    assert code == 0, said
    return said.decode()


def count(guest: Guest) -> int:
    """How many rounds of the workload are on the disk for sure."""
    return int(sh(guest, "cat /run/count"))


def checksum(path: str) -> str:
    """Of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def writes_again(guest: Guest) -> None:
    """Wait until the workload has done a round more, and then another."""
    before = count(guest)
    wait_until(lambda: count(guest) > before + 1)


def copied_while_frozen(guest: Guest, disk: str, folder: Path) -> None:
    """Require that a copy of a frozen disk is clean and complete."""
    copy = str(folder / "copy.img")

    async def backup() -> int:
        async with frozen(guest.name, timeout=FREEZE_SECONDS, connect_timeout=PATIENCE) as freeze:
            assert [one.path for one in freeze.file_systems] == ["/mnt"]
            before = await asyncio.to_thread(checksum, disk)
            await asyncio.to_thread(shutil.copyfile, disk, copy)
            # for as long as a round takes otherwise, a hundred times over, and it is at the same place
            stands = await asyncio.to_thread(count, guest)
            assert await asyncio.to_thread(sh, guest, "sleep 1; cat /run/count") == str(stands)
            assert await asyncio.to_thread(checksum, disk) == before == checksum(copy)
        assert freeze.warnings == []
        return stands

    done_before = count(guest)
    stands = asyncio.run(backup())
    writes_again(guest)
    assert "needs_recovery" not in tool("dumpe2fs", "-h", copy)
    tool("e2fsck", "-f", "-n", copy)
    lines = tool("debugfs", "-R", "cat log", copy).split("\n")
    assert lines[-1] == ""
    assert lines[:-1] == [f"line {n}" for n in range(1, len(lines))]
    assert done_before <= stands <= len(lines) - 1 <= stands + 1
    for n in range(stands, max(0, stands - 7), -1):
        held = int(tool("debugfs", "-R", f"cat file{n % 7}", copy))
        assert held == n or held == n + 7 == stands + 1


def thawed_without_its_host(guest: Guest, env: dict[str, str]) -> None:
    """Require that a guest goes on when the host that had it frozen is killed."""
    words = ["vss", "freeze", guest.name, "--timeout", str(FREEZE_SECONDS), "--", "sh", "-c", "echo frozen; cat"]
    with subprocess.Popen([PROGRAM, *words], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"frozen\n"
        stands = count(guest)
        assert sh(guest, "sleep 1; cat /run/count") == str(stands)
        host.send_signal(signal.SIGKILL)
        host.wait()
        writes_again(guest)


def is_clean(disk: str) -> None:
    """Require that a guest that is off has left its disk clean, although its workload had a file open."""
    assert "needs_recovery" not in tool("dumpe2fs", "-h", disk)
    tool("e2fsck", "-f", "-n", disk)
    assert tool("debugfs", "-R", "cat log", disk).endswith("\n")
