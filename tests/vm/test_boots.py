"""Debian's kernels start with the default guest, on one and two processors, and have what they need.

In `make test` tests/vm/traffic/test_system.py looks at guests that other tests need too.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from hvsock.fabric.embedded import EmbeddedFabric

assert sys.platform == "linux"

from hvsock.fabric import client
from hvsock.vm import control, launch
from hvsock.vm.image import Image
from hvsock.vm.overlay import overlay
from hvsock.vm.qemu import INITRD, Hardware
from hvsock.vm.runs import Run, State
from tests.vm.guest_system import LOOK, is_as_expected
from tests.vm.support import (
    PATIENCE,
    console_log,
    default_guest,
    guest_image,
    needs_qemu,
    started,
    wait_for_line,
    wait_until,
)

pytestmark = [needs_qemu, pytest.mark.soak]

PACKAGES = r"""
python3 -W error - << 'END'
import ctypes, lzma, pty, pwd, sqlite3, ssl
import asyncssh, grpclib.client, grpclib.server, rich.live, rich.progress, rich.table
from google.protobuf.internal import api_implementation
os = pty.os
key = asyncssh.generate_private_key("ssh-ed25519")
user = pwd.getpwnam("guest")
home = os.stat(user.pw_dir)
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
master, slave = pty.openpty()
print("has", api_implementation.Type(), key.get_algorithm(), user.pw_uid, home.st_uid, os.isatty(slave))
try:
    os.listdir("/var/lib/hvsock")
except PermissionError:
    print("its folder is the agent's alone")
END
. /etc/os-release
echo "system $ID $VERSION_ID, $(cat /etc/hostname) is $(hostname)"
lsmod | grep -q virtio_blk || echo "no disk, no driver"
ps | grep -q '[s]leep 2147483647' && echo "nothing to keep"
[ ! -e /run/hvsock-agent.pipe ] && echo "no agent wanted"
"""


@pytest.mark.parametrize("cpus", [1, 2])
@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_a_guest_with_a_program_of_ones_own(series: str, cpus: int, tmp_path: Path) -> None:
    made = guest_image(series)
    brought = tmp_path / "overlay" / "etc"
    brought.mkdir(parents=True)
    (brought / "brought").write_text("brought along\n")
    run = Run(str(tmp_path), "web01")
    hardware = Hardware(cpus=cpus)
    archive = overlay(
        str(brought.parent), "cat /etc/brought\n" + LOOK + (PACKAGES if series == "6.12" else "") + "echo done\n"
    )
    with started(run, default_guest("web01", made, hardware), made=made, overlay=archive):
        found = control.ask(run, "wait", seconds=PATIENCE)
        assert (found["ready"], found["cpus"], found["kernel"]) == (True, cpus, series)
        assert not os.path.exists(run.path(INITRD))
        said = wait_for_line(run, "\ndone")
        assert "brought along" in said
        is_as_expected(said, "web01", series, cpus)
        if series == "6.12":
            assert "has upb ssh-ed25519 1000 1000 True" in said
            assert "its folder is the agent's alone" in said
            assert "system debian 12, web01 is web01" in said
            assert "no disk, no driver" in said
            assert "nothing to keep" in said
            assert "no agent wanted" in said
        if cpus == 1:
            assert control.ask(run, "stop", seconds=PATIENCE)["reason"] == "stopped"
        else:
            os.kill(run.record().pid, signal.SIGTERM)
        run.wait_for_end()
    assert run.record().reason == "stopped"
    assert "Power down" in console_log(run)


def test_a_device_that_ends_again_and_again(hvsock_fabric: EmbeddedFabric, guest: Image) -> None:
    """The guest goes on without sockets, and there is a word about it."""
    partition = hvsock_fabric.create_partition("web01")
    run = Run(hvsock_fabric.folder, "web01")
    cid = client.call(hvsock_fabric.host.folder, "resolve", vm="web01", service=None)["cid"]
    script = 'test ! -e ended && touch ended && exec "$@"; exit 3'
    device = ("/bin/sh", "-c", script, "sh", *launch.device_command("web01", cid))
    settings = default_guest("web01", guest, vm_id=str(partition.id), device=device)
    with started(run, settings, made=guest, overlay=overlay(command="sleep 9999")):
        control.ask(run, "wait", seconds=PATIENCE)
        os.kill(run.record().device_pid, signal.SIGKILL)
        wait_until(lambda: "in a row" in run.record().reason)
        record = run.record()
        assert record.reason.startswith("without sockets: the vsock device cannot be plugged in again")
        assert "ended with code 3" in record.reason
        assert (record.state, record.device_pid, record.device_restarts) == (State.RUNNING, 0, 0)
