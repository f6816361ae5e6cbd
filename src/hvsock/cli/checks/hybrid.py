"""Checks of hybrid sockets: they need nothing of the kernel but AF_UNIX, and a VMM that has them."""

from __future__ import annotations

import shutil
import sys
from typing import Final

from hvsock.transport import Transport

from .check import Answer, Group, asks, no, usable, yes

VMMS: Final = ("firecracker", "cloud-hypervisor", "vhost-device-vsock", "krunvm", "openvmm")
"""Programs that have them; libkrun is a library, of which krunvm is the best known program."""


@asks("Is this a system with hybrid sockets?")
def _system() -> Answer:
    if sys.platform == "linux":
        return yes("yes: they are AF_UNIX sockets")
    return no(f"no: {sys.platform}", "they need Linux, as the VMMs do")


@asks("Is there a VMM that has them?")
def _vmms() -> Answer:
    found = [one for one in VMMS if shutil.which(one)]
    if found:
        return yes(f"yes: {', '.join(found)}")
    return no(
        f"no: none of {', '.join(VMMS)} is in PATH",
        "install one, as by  cargo install vhost-device-vsock; another user's are no less good, and so is "
        "hvsock hybrid serve",
    )


GROUP: Final = Group(Transport.HYBRID, (_system, usable(Transport.HYBRID)), optional=(_vmms,))
