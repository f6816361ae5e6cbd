"""A freeze of a real ext4 disk of a real VM, with a workload that writes all the while."""

from __future__ import annotations

import asyncio
import os
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
from tests.vm import backup
from tests.vm.backup import (
    FREEZE_SECONDS,
    copied_while_frozen,
    count,
    is_clean,
    made_disk,
    sh,
    thawed_without_its_host,
    working,
    writes_again,
)
from tests.vm.support import PATIENCE, needs_qemu
from tests.vm.traffic.world import Guest, Kind, World

KILL_KEEPER: Final = """
for process in /proc/[0-9]*; do
    grep -q 'vss[.]keeper' $process/cmdline && kill -9 ${process#/proc/}
done 2> /dev/null
true
"""

pytestmark = [
    pytest.mark.soak,  # in `make test` test_agent.py has a part of it
    needs_qemu,
    pytest.mark.skipif(
        bool(backup.MISSING), reason=f"{', '.join(backup.MISSING)} missing; as root: apt-get install -y e2fsprogs"
    ),
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A disk with an ext4."""
    return made_disk(tmp_path_factory.mktemp("disk"))


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
    working(found)
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


def test_what_could_be_frozen(guest: Guest) -> None:
    found = asyncio.run(checked())
    assert found.obstacle == ""
    assert [(one.path, one.source, one.kind, one.obstacle) for one in found.file_systems] == [
        ("/mnt", "/dev/vda", "ext4", "")
    ]


def test_a_copy_of_a_frozen_disk_is_clean_and_complete(guest: Guest, disk: str, tmp_path: Path) -> None:
    copied_while_frozen(guest, disk, tmp_path)


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
    thawed_without_its_host(guest, environment())


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
    is_clean(disk)
