"""The vsock transport on a host with vhost-vsock: a guest that runs a QEMU of its own.

This machine's own AF_VSOCK is not used. The guest inside runs by nested KVM, for which the processor that QEMU
emulates has AMD's instructions. So it is emulated once and not twice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

assert sys.platform == "linux"

from hvsock.vm import qemu
from hvsock.vm.overlay import overlay
from hvsock.vm.qemu import Hardware
from hvsock.vm.runs import Run
from tests.transports.support import CLIENT, SERVICE
from tests.vm.guest_scripts import vhost_host
from tests.vm.support import console_log, default_guest, guest_image, needs_qemu, started, wait_for_line

SCRIPT: Final = Path(vhost_host.__file__)
DISK_BYTES: Final = 512 << 20
MEMORY: Final = 1536
"""MiB of the guest: its own files, those of the disk that it reads, and the guest inside."""
FIRMWARE: Final = ("bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin", "pvh.bin")
"""What QEMU's machine `pc` reads."""
_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

pytestmark = [
    needs_qemu,
    pytest.mark.soak,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(
        shutil.which("mkfs.ext4", path=_PATH) is None,
        reason="mkfs.ext4 is missing; as root: apt-get install -y e2fsprogs",
    ),
]


def put_qemu(root: Path) -> None:
    """This machine's QEMU with its libraries and its firmware, for a chroot."""
    program = qemu.find()
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"/\S+", linked):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    shutil.copy(program, root / "qemu-system-x86_64")
    searched = subprocess.run([program, "-L", "help"], capture_output=True, text=True, check=True).stdout.split()
    (root / "firmware").mkdir()
    for name in FIRMWARE:
        path = next(path for folder in searched if (path := Path(folder, name)).exists())
        shutil.copy(path, root / "firmware" / name)


def brought(folder: Path, *scripts: Path) -> str:
    """A folder with scripts for a guest's /root."""
    (folder / "root").mkdir(parents=True)
    for script in scripts:
        shutil.copy(script, folder / "root")
    return str(folder)


def test_a_host_of_kernel_vsock(tmp_path: Path) -> None:
    made = guest_image()
    root, disk = tmp_path / "disk", tmp_path / "disk.img"
    (root / "vm").mkdir(parents=True)
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir()
    put_qemu(root)
    inside = overlay(brought(tmp_path / "inside", SERVICE), "python3 /root/service.py parent")
    shutil.copy(made.kernel, root / "vm" / "kernel")
    made.write_initrd(str(root / "vm" / "initrd"), inside)
    with open(disk, "wb") as file:
        file.truncate(DISK_BYTES)
    environment = {**os.environ, "PATH": _PATH}
    subprocess.run(["mkfs.ext4", "-q", "-d", root, disk], env=environment, check=True)
    shutil.rmtree(root)

    parameters = " ".join((*qemu.PARAMETERS, "hvsock.agent=0"))
    script = f"""
        modprobe -a vhost_vsock kvm_amd
        mount -t ext4 /dev/vda /mnt
        mount -o bind /dev /mnt/dev
        mount -t proc proc /mnt/proc
        python3 /root/{SCRIPT.name} {parameters}
        echo; echo that was all
        tail -n 20 /mnt/console.log
    """
    outside = overlay(brought(tmp_path / "outside", SCRIPT, CLIENT), script)
    hardware = Hardware(memory=MEMORY, data_disks=(str(disk),))
    with started(
        Run(str(tmp_path), "host"), default_guest("host", made, hardware), made=made, overlay=outside
    ) as run:
        try:
            said = wait_for_line(run, "\nthat was all", seconds=vhost_host.UP_SECONDS + 200)
        finally:
            print(console_log(run)[-6000:])
    found = json.JSONDecoder().raw_decode(said, said.index('{"checks"'))[0]["checks"]
    assert found == dict.fromkeys((*vhost_host.CHECKS, vhost_host.THE_END), "passed")
