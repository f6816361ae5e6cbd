"""QEMU's command line (pure, but for :func:`find`).

Sockets have short names in the run folder, which is QEMU's working folder: so a path of any length works.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hvsock.errors import NotFoundError

PROGRAM_VARIABLE: Final = "HVSOCK_QEMU"
"""Environment variable: the QEMU to use."""
PROGRAM: Final = "qemu-system-x86_64"
INSTALL: Final = "apt-get install -y --no-install-recommends qemu-system-x86"
"""The command that installs QEMU on Debian and Ubuntu."""
MIN_MEMORY: Final = 256
"""Least MiB of memory: the default guest unpacks 75 MiB into it."""
MAX_CPUS: Final = 64
"""Most processors; QEMU's pc machine takes 255."""
MAX_DATA_DISKS: Final = 16
"""Most data disks of a VM: each takes one of the 32 slots of the machine's bus, like its other devices."""

DEVICE_SOCKET: Final = "device"
REPORT_SOCKET: Final = "report"
QMP_SOCKET: Final = "qmp"
CONSOLE_SOCKET: Final = "console"
CONSOLE_LOG: Final = "console.log"
INITRD: Final = "initrd"
VSOCK: Final = "vsock"
"""Id of the vsock device, for unplugging it."""

PARAMETERS: Final = ("console=ttyS0", "quiet", "panic=-1", "cryptomgr.notests")
"""The default guest's kernel parameters: its console, few messages, a restart after a panic, and no tests of
ciphers, which take half a second of an emulated processor."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a VM has.

    Attributes:
        memory: MiB.
        cpus: processors.
        kernel: the kernel's file; None boots from the disk.
        initrd: its initramfs; None for none.
        append: its parameters.
        disk: the file of a disk; None for none.
        data_disks: the files of disks with data, none of which is booted.
        options: more options for QEMU.
    """

    memory: int = 512
    cpus: int = 1
    kernel: str | None = None
    initrd: str | None = None
    append: tuple[str, ...] = ()
    disk: str | None = None
    data_disks: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def find(environ: Mapping[str, str] | None = None) -> str:
    """The path of QEMU: HVSOCK_QEMU, else the program in PATH.

    Raises:
        NotFoundError: it is not installed.
    """
    environ = os.environ if environ is None else environ
    wanted = environ.get(PROGRAM_VARIABLE) or PROGRAM
    if found := shutil.which(wanted, path=environ.get("PATH")):
        return found
    more = "" if wanted == PROGRAM else f"; or unset {PROGRAM_VARIABLE}"
    raise NotFoundError(f"{wanted} is not installed; as root, on Debian and Ubuntu: {INSTALL}{more}")


def command_line(
    program: str, name: str, accelerator: str, hardware: Hardware, *, chardev: str | None
) -> list[str]:
    """The command that runs a VM, stopped until QMP says otherwise.

    Args:
        program: QEMU.
        name: of the VM.
        accelerator: "kvm" or "tcg".
        hardware: what the VM has.
        chardev: the id of the connection to the vsock device's process; None for a VM without one.
    """
    command = [
        *(program, "-name", quoted(name), "-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *("-accel", accelerator, "-cpu", "max", "-smp", str(hardware.cpus), "-m", f"{hardware.memory}M"),
        # the machine with ACPI hot-plug of plain PCI devices: the vsock device is plugged in again after a crash
        *("-machine", "pc,memory-backend=mem,vmport=off"),
        *("-object", f"memory-backend-memfd,id=mem,size={hardware.memory}M,share=on"),
        *("-chardev", f"socket,id=qmp,path={QMP_SOCKET},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,path={CONSOLE_SOCKET},server=on,wait=off,logfile={CONSOLE_LOG}"),
        *("-serial", "chardev:console"),
    ]
    if hardware.kernel is not None:
        command += ["-kernel", hardware.kernel, "-append", " ".join(hardware.append)]
        if hardware.initrd is not None:
            command += ["-initrd", hardware.initrd]
    for disk in (*([] if hardware.disk is None else [hardware.disk]), *hardware.data_disks):
        command += ["-drive", f"file={quoted(disk)},if=virtio,format={disk_format(disk)}"]
    if chardev is not None:
        command += ["-chardev", f"socket,id={chardev},path={DEVICE_SOCKET}"]
        command += ["-device", f"vhost-user-vsock-pci,id={VSOCK},chardev={chardev}"]
    return command + list(hardware.options)


def quoted(text: str) -> str:
    """`text` as the value of one of QEMU's options, in which a comma ends a value."""
    return text.replace(",", ",,")


def disk_format(path: str) -> str:
    """The format of a disk by the name of its file: qcow2 by its ending, else raw; contents are not looked at.

    What a guest writes to a raw disk must not make another format of it.
    """
    return "qcow2" if path.endswith((".qcow2", ".qcow")) else "raw"
