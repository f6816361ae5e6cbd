"""What the default guest has for services: a data disk, and an agent that init keeps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

assert sys.platform == "linux"

from hvsock.vm import control
from hvsock.vm.image import Image
from hvsock.vm.overlay import overlay
from hvsock.vm.qemu import Hardware
from hvsock.vm.runs import Run
from tests.vm.support import PATIENCE, console_log, default_guest, needs_qemu, started, wait_for_line, wait_until

_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_MISSING = [tool for tool in ("mkfs.ext4", "debugfs", "e2fsck") if shutil.which(tool, path=_PATH) is None]

pytestmark = needs_qemu
needs_e2fsprogs = pytest.mark.skipif(
    bool(_MISSING), reason=f"{', '.join(_MISSING)} missing; as root: apt-get install -y e2fsprogs"
)

DISK_BYTES: Final = 16 << 20
PROGRAM: Final = "usr/lib/python3/dist-packages/hvsock/services/agent.py"

AGENT = """#!/bin/sh
# In place of `hvsock`: an agent that says much, and ends.
n=$(cat /run/count 2> /dev/null || echo 0)
echo $((n + 1)) > /run/count
[ "$1" = agent ] || exit 1
if [ $n = 0 ]; then
    echo "the first agent"
    i=0
    while [ $i -lt 300 ]; do i=$((i + 1)); echo "line $i"; done
    exit 3
fi
echo "agent $((n + 1))" >&2
exec sleep 9999
"""
LOOK = """
until grep -qs "agent 2" /run/hvsock-agent.log; do sleep 0.1; done
echo "restarted, from $(readlink /proc/$(pidof sleep | tr ' ' '\\n' | head -1)/fd/0)"
echo "all lines: $(cat /run/hvsock-agent.log.old /run/hvsock-agent.log | grep -c '^line ')"
echo "bytes: $(($(wc -c < /run/hvsock-agent.log) <= 524288))"
echo "that is all"
"""

WRITE = """
ls -l /dev/vda
mount -t ext4 /dev/vda /mnt
if [ -e /mnt/file ]; then umount /mnt; echo "up again"; exec sleep 9999; fi
echo "written in the guest" > /mnt/file
sync
(exec 9> /mnt/open; echo begun >&9; exec sleep 9999) &
until [ -s /mnt/open ]; do sleep 0.1; done
echo "that is all"
wait
"""


@pytest.mark.soak  # in `make test` test_agent.py kills an agent
def test_an_agent_is_started_again_and_its_words_are_kept(guest: Image, tmp_path: Path) -> None:
    brought = tmp_path / "overlay"
    for name, text in (("usr/bin/hvsock", AGENT), (PROGRAM, "")):
        (brought / name).parent.mkdir(parents=True, exist_ok=True)
        (brought / name).write_text(text)
    run = Run(str(tmp_path), "web01")
    settings = default_guest("web01", guest, agent=True)
    with started(run, settings, made=guest, overlay=overlay(str(brought), LOOK)):
        said = wait_for_line(run, "that is all")
    assert "restarted, from /dev/null" in said
    assert "all lines: 300" in said
    assert "bytes: 1" in said
    assert "line 1" not in said
    assert "the first agent" not in said


@needs_e2fsprogs
@pytest.mark.soak  # in `make test` test_agent.py has one of these ends
@pytest.mark.parametrize("how", ["the host", "poweroff", "reboot"])
def test_a_data_disk_is_clean_in_the_end(how: str, guest: Image, tmp_path: Path) -> None:
    """Also where a program still has a file open on it."""
    disk = tmp_path / "data, one.img"
    disk.touch()
    os.truncate(disk, DISK_BYTES)
    environment = {**os.environ, "PATH": _PATH}
    subprocess.run(["mkfs.ext4", "-q", "-F", disk], env=environment, check=True)
    run = Run(str(tmp_path), "web01")
    hardware = Hardware(data_disks=(str(disk),))
    command = (
        WRITE if how == "the host" else WRITE.replace("wait\n", f"python3 -c 'import os; os.system(\"{how}\")'")
    )
    settings = default_guest("web01", guest, hardware)
    with started(run, settings, made=guest, overlay=overlay(command=command)):
        wait_for_line(run, "that is all")
        if how == "reboot":
            wait_for_line(run, "up again")
        if how == "poweroff":
            wait_until(lambda: not run.runs())
            assert run.record().reason == "the guest switched itself off"
        else:
            assert control.ask(run, "stop", seconds=PATIENCE)["reason"] == "stopped"
            run.wait_for_end()
    said = console_log(run)
    assert "recovery" not in said
    shown = subprocess.run(
        ["debugfs", "-R", "cat file", disk], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "written in the guest\n"
    checked = subprocess.run(
        ["e2fsck", "-f", "-n", disk], env=environment, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    head = subprocess.run(["dumpe2fs", "-h", disk], env=environment, capture_output=True, text=True, check=True)
    assert "needs_recovery" not in head.stdout
