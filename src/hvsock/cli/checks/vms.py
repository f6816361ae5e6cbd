"""Checks of what it takes to run virtual machines."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from hvsock.errors import HvsockError, NotFoundError

from .check import Answer, Group, asks, no, yes

VERSION_SECONDS: Final = 10.0
"""How long QEMU may take to say what it is; it takes 0.1 s."""
FRONT_END: Final = "vhost-user-vsock-pci"
"""QEMU's device in front of hvsock's."""


def qemu_says(*arguments: str) -> str:
    """What QEMU prints.

    Raises:
        HvsockError: it is not installed, or does not answer.
    """
    if sys.platform != "linux":
        raise HvsockError("hvsock runs VMs on Linux")
    from hvsock.vm import qemu

    try:
        done = subprocess.run(
            [qemu.find(), *arguments], capture_output=True, text=True, timeout=VERSION_SECONDS, check=True
        )
    except (subprocess.SubprocessError, UnicodeDecodeError) as error:
        raise HvsockError(f"QEMU does not answer: {error}") from None
    return done.stdout


@asks("Is QEMU there, with the device that hvsock needs?", cure="run  make qemu, or see docs/vms.md")
def _qemu() -> Answer:
    version = qemu_says("--version").partition("\n")[0]
    if f'"{FRONT_END}"' not in qemu_says("-device", "help"):
        return no(f"no: {version} has no {FRONT_END}", "install a QEMU of 5.1 or newer with vhost-user")
    return yes(f"yes: {version}")


@asks("Does KVM run guests here?", cure="run  make qemu, or see docs/vms.md")
def _kvm() -> Answer:
    if sys.platform != "linux":
        raise NotFoundError("KVM is of Linux")
    from hvsock.vm import kvm, qemu

    accelerator, reason = kvm.choose(qemu.find())
    if accelerator == "kvm":
        return yes("yes")
    return no(
        f"no: {reason}",
        "nothing, guests are emulated in software; else: nested virtualization, group kvm",
    )


GROUP: Final = Group("virtual machines", optional=(_qemu, _kvm))
