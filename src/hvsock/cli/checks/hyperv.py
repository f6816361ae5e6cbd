"""Checks of Hyper-V's own sockets, on Windows."""

from __future__ import annotations

import os
import sys
from typing import Final

from hvsock.transport import Transport

from .check import Answer, Group, asks, no, usable, yes

VMBUS: Final = "/sys/bus/vmbus"
"""Linux has it where it is a guest of Hyper-V."""


@asks("Is this Windows?")
def _system() -> Answer:
    if sys.platform == "win32":
        return yes(f"yes: build {sys.getwindowsversion().build}")
    if os.path.isdir(VMBUS):
        return no(
            "no: this is Linux in a guest of Hyper-V", "there its sockets are AF_VSOCK: HVSOCK_TRANSPORT=vsock"
        )
    return no(f"no: {sys.platform}", "Hyper-V's own sockets need Windows; on Linux, the fabric has the same ones")


GROUP: Final = Group(Transport.HYPERV, (_system, usable(Transport.HYPERV)))
