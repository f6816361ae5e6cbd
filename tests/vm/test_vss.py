"""A freeze of a real ext4 disk of a real VM, with a workload that writes all the while."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

assert sys.platform == "linux"

from hvsock.fabric import paths
from hvsock.services.agent import GuestAgent, Question
from hvsock.services.connecting import connect
from hvsock.services.predefined.vss.host import ThawedError, frozen
from hvsock.services.predefined.vss.interface import Check, Checked, Vss
from hvsock.vm import control
from tests.cli.helpers import PROGRAM, environment
from tests.cli.helpers import hvsock as command
from tests.vm.support import PATIENCE, needs_qemu, wait_until
from tests.vm.traffic.world import Guest, Kind, World

_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_MISSING = [
    tool for tool in ("mkfs.ext4", "debugfs", "e2fsck", "dumpe2fs") if shutil.which(tool, path=_PATH) is None
]

pytestmark = [
    needs_qemu,
    pytest.mark.skipif(
        bool(_MISSING), reason=f"{', '.join(_MISSING)} missing; as root: apt-get install -y e2fsprogs"
    ),
]

DISK_BYTES: Final = 16 << 20
FREEZE_SECONDS: Final = 100.0
"""More than anything here takes while all is frozen, so that no thaw is one of the time-out's."""

KILL_KEEPER: Final = """
for process in /proc/[0-9]*; do
    grep -q 'vss[.]keeper' $process/cmdline && kill -9 ${process#/proc/}
done 2> /dev/null
true
"""
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


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A disk with an ext4."""
    made = tmp_path_factory.mktemp("disk") / "data.img"
    made.touch()
    os.truncate(made, DISK_BYTES)
    tool("mkfs.ext4", "-q", "-F", str(made))
    return str(made)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, disk: str) -> Iterator[World]:
    """A fabric with one guest, which has the disk."""
    made = World(tmp_path_factory.mktemp("world"), {"store": Kind("6.12", 1, data_disks=(disk,), agent=True)})
    before = os.environ.get(paths.FOLDER_VARIABLE)
    os.environ[paths.FOLDER_VARIABLE] = made.folder
    yield made
    made.close()
    os.environ.pop(paths.FOLDER_VARIABLE)
    if before is not None:
        os.environ[paths.FOLDER_VARIABLE] = before


@pytest.fixture
def guest(world: World, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """The guest, whose workload writes."""
    found = world.guest("store")
    if found.output("test", "-e", "/run/count")[0]:
        sh(found, "mount -t ext4 /dev/vda /mnt")
        (code := found.output("sh", "-c", f"echo '{WORKLOAD}' > /run/workload.py"))
        assert code[0] == 0, code
        sh(found, "python3 /run/workload.py > /run/workload.log 2>&1 &")
        wait_until(lambda: found.output("test", "-e", "/run/count")[0] == 0)
    asyncio.run(checked())
    failed = request.session.testsfailed
    yield found
    if request.session.testsfailed > failed:
        print(found.output("sh", "-c", "cat /run/hvsock-agent.log /run/workload.log; ps")[1].decode())
        print(world.describe())
    world.forget()


async def checked() -> Checked:
    """What the guest says of a freeze, once its agent serves, which init may have started again just now."""
    async with connect(Vss, "store", wait=True, timeout=PATIENCE) as vss:
        return await vss.check(Check(), timeout=PATIENCE)


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


def test_what_could_be_frozen(guest: Guest) -> None:
    found = asyncio.run(checked())
    assert found.obstacle == ""
    assert [(one.path, one.source, one.kind, one.obstacle) for one in found.file_systems] == [
        ("/mnt", "/dev/vda", "ext4", "")
    ]


def test_a_copy_of_a_frozen_disk_is_clean_and_complete(guest: Guest, disk: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.img")

    async def backup() -> int:
        async with frozen("store", timeout=FREEZE_SECONDS, connect_timeout=PATIENCE) as freeze:
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


def test_hooks_run_in_the_guest(guest: Guest) -> None:
    hook = "#!/bin/sh\\necho $1 $(cat /run/count) >> /run/hooks\\n"
    sh(guest, f"mkdir -p /etc/hvsock/vss.d && printf '{hook}' > /etc/hvsock/vss.d/10-note")
    sh(guest, "chmod 755 /etc/hvsock/vss.d/10-note")
    try:
        command("vss", "freeze", "store", "--timeout", "100", "--", "true", seconds=PATIENCE)
    finally:
        sh(guest, "rm -r /etc/hvsock/vss.d")
    (freeze, first), (thaw, second) = (line.split() for line in sh(guest, "cat /run/hooks").splitlines())
    assert (freeze, thaw) == ("freeze", "thaw")
    assert int(first) <= int(second)
    writes_again(guest)


def test_a_host_that_is_killed_while_the_guest_is_frozen(guest: Guest) -> None:
    words = ["vss", "freeze", "store", "--timeout", str(FREEZE_SECONDS), "--", "sh", "-c", "echo frozen; cat"]
    with subprocess.Popen(
        [PROGRAM, *words], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"frozen\n"
        stands = count(guest)
        assert sh(guest, "sleep 1; cat /run/count") == str(stands)
        host.send_signal(signal.SIGKILL)
        host.wait()
        writes_again(guest)


def test_an_agent_that_is_killed_while_the_guest_is_frozen(guest: Guest) -> None:
    async def pid() -> int:
        async with connect(GuestAgent, "store", wait=True, timeout=PATIENCE) as agent:
            return (await agent.report(Question(), timeout=PATIENCE)).pid

    words = ["vss", "freeze", "store", "--timeout", str(FREEZE_SECONDS), "--", "sh", "-c", "echo frozen; cat"]
    agent = asyncio.run(pid())
    with subprocess.Popen(
        [PROGRAM, *words], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == b"frozen\n"
        stands = count(guest)
        assert sh(guest, "sleep 1; cat /run/count") == str(stands)
        sh(guest, f"kill -9 {agent}")
        writes_again(guest)
        _, said = host.communicate(timeout=PATIENCE)
        assert host.returncode == 1
        assert b"the backup of store is not good" in said


def test_a_time_out(guest: Guest) -> None:
    """The command is told that it goes on for nothing, and its success is none."""
    words = ["vss", "freeze", "store", "--timeout", "3", "--", "sh", "-c", "echo frozen; cat"]
    with subprocess.Popen(
        [PROGRAM, *words], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as host:
        assert host.stderr is not None
        assert b"goes on for nothing" in host.stderr.readline()
        writes_again(guest)
        _, said = host.communicate(timeout=PATIENCE)
        assert host.returncode == 1
        assert b"the time-out was over" in said


def test_a_keeper_that_is_killed_while_the_guest_is_frozen(guest: Guest) -> None:
    async def freeze() -> None:
        async with frozen("store", timeout=FREEZE_SECONDS, connect_timeout=PATIENCE) as freeze:
            await asyncio.to_thread(sh, guest, KILL_KEEPER)
            await freeze.wait_thawed()
            await asyncio.to_thread(writes_again, guest)

    with pytest.raises(ThawedError, match="was ended or killed"):
        asyncio.run(freeze())


def test_a_guest_that_is_stopped_leaves_its_disk_clean(guest: Guest, disk: str) -> None:
    """Although its workload has a file open; the last test here, since the guest is off then."""
    assert control.ask(guest.run, "stop", seconds=PATIENCE)["reason"] == "stopped"
    guest.run.wait_for_end()
    assert "needs_recovery" not in tool("dumpe2fs", "-h", disk)
    tool("e2fsck", "-f", "-n", disk)
    assert tool("debugfs", "-R", "cat log", disk).endswith("\n")
