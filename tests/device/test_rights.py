"""What the device's process may still do, and as whom."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock import VmId
from hvsock.device import rights
from hvsock.errors import StateError, UsageError
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.registry import ServiceEntry
from tests.cli.helpers import ended, environment, line_of, started
from tests.device.devices import device_process, guest_of
from tests.device.ends import from_guest, from_host
from tests.device.test_lifecycle import works

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device another user's")
USER = "nobody"


@pytest.fixture
def folder() -> Iterator[str]:
    """For the device's sockets; a folder that others may not enter."""
    made = tempfile.mkdtemp()
    yield made
    shutil.rmtree(made)


def status_of(pid: int) -> dict[str, list[str]]:
    """The lines of a process's status, taken apart."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return {name: rest.split() for name, _, rest in (line.partition(":") for line in file)}


def limits_of(pid: int) -> dict[str, str]:
    """The soft limits of a process."""
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        return {line[:26].strip(): line[26:47].strip() for line in file}


def test_what_every_device_gives_up(fabric: EmbeddedFabric, vm: PartitionHandle, folder: str) -> None:
    with device_process(fabric, folder, "--connections", "100") as process:
        assert status_of(process.pid)["NoNewPrivs"] == ["1"]
        limits = limits_of(process.pid)
        assert limits["Max processes"] == limits["Max core file size"] == "0"
        assert limits["Max file size"] == str(rights.LOG_BYTES)
        wanted = 100 * rights.DESCRIPTORS_PER_CONNECTION + rights.SPARE_DESCRIPTORS
        assert limits["Max open files"] == str(wanted)
        for name in ("device", "report"):
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) == 0o600


@as_root
@pytest.mark.parametrize("partition", ["new", "there"])
def test_a_user_of_its_own(fabric: EmbeddedFabric, demo: ServiceEntry, folder: str, partition: str) -> None:
    """It may enter its partition's folder and no other, through folders that are closed to it."""
    user = pwd.getpwnam(USER)
    os.chmod(fabric.folder, 0o700)
    if partition == "there":
        fabric.create_partition("vm")
    with device_process(fabric, folder, "--user", USER) as process:
        found = status_of(process.pid)
        assert found["Uid"] == [str(user.pw_uid)] * 4
        assert found["Gid"] == [str(user.pw_gid)] * 4
        assert found["Groups"] == []
        assert int(found["CapEff"][0], 16) == int(found["CapPrm"][0], 16) == 0
        (name,) = (one for one in os.listdir(os.path.join(fabric.folder, "partitions")) if one != "host")
        vm = PartitionHandle("vm", VmId(name), os.path.join(fabric.folder, "partitions", name))
        assert stat.S_IMODE(os.stat(vm.folder).st_mode) == 0o700
        with guest_of(folder) as guest:
            for ends in (from_guest(fabric, guest, demo), from_host(fabric, vm, guest, demo)):
                with ends as found_ends:
                    works(*found_ends)
            fabric.restart()
            with from_guest(fabric, guest, demo) as found_ends:
                works(*found_ends)
    with device_process(fabric, folder, "--user", USER):
        pass  # the names of the sockets of the last one were left, since it may not remove them


@as_root
def test_a_partition_of_somebody_else(fabric: EmbeddedFabric, vm: PartitionHandle, folder: str) -> None:
    os.chown(vm.folder, 12345, -1)
    with pytest.raises(StateError, match="belongs to user 12345"):
        rights.give_folder(vm.folder, rights.user_named(USER))
    options = ("--vm", "vm", "--socket-path", os.path.join(folder, "device"), "--user", USER)
    with started("device", *options, env=environment(HVSOCK_DIR=fabric.folder)) as process:
        assert "belongs to user 12345" in line_of(process.stderr)
        assert ended(process)[0] == 1


@as_root
def test_users_and_groups_that_are_not_there(fabric: EmbeddedFabric, folder: str) -> None:
    options = ("--vm", "vm", "--socket-path", os.path.join(folder, "device"))
    for more in (("--user", "nobody-of-that-name"), ("--socket-group", "nobody-of-that-name")):
        with started("device", *options, *more, env=environment(HVSOCK_DIR=fabric.folder)) as process:
            assert "nobody-of-that-name" in line_of(process.stderr)
            assert ended(process)[0] == 2


@as_root
def test_a_group_that_may_connect(fabric: EmbeddedFabric, vm: PartitionHandle, folder: str) -> None:
    group = grp.getgrgid(pwd.getpwnam(USER).pw_gid)
    with device_process(fabric, folder, "--socket-group", group.gr_name):
        found = os.stat(os.path.join(folder, "device"))
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, group.gr_gid)
        assert stat.S_IMODE(os.stat(os.path.join(folder, "report")).st_mode) == 0o600


def test_only_root_becomes_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="only root's"):
        rights.user_named(USER)


def test_a_log_in_a_file_is_written(fabric: EmbeddedFabric, vm: PartitionHandle, folder: str) -> None:
    """The limit of file sizes does not silence the device."""
    log = Path(folder, "log")
    with open(log, "wb") as file:
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                rights.give_up()
                os.write(file.fileno(), b"still heard")
            os._exit(0)
        os.waitpid(pid, 0)
    assert log.read_bytes() == b"still heard"
