"""Checks of Hyper-V's own sockets, on Windows."""

from __future__ import annotations

import os
import platform
import sys
from typing import Final

from hvsock.transport import Transport
from hvsock.windows import builds

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


@asks("Does this build have Hyper-V's sockets?")
def _build() -> Answer:
    if sys.platform == "win32":
        return judged(builds.windows(sys.getwindowsversion().build))
    if os.path.isdir(VMBUS):
        return judged(builds.linux(platform.release()))
    return no(
        "no: this is neither Windows nor a guest of Hyper-V", "see docs/windows.md for the builds that have them"
    )


def judged(verdict: builds.Verdict) -> Answer:
    """The answer of the table of builds; what came later is told, and nothing is wrong where it is missing."""
    if not verdict.ok:
        return Answer(f"no: {verdict.found}", ok=False, cure=verdict.cure)
    later = "; ".join(f"{one.brought} came with {one.release}" for one in verdict.missing)
    return yes(f"yes: {verdict.found}{f'; {later}' if later else ''}")


GROUP: Final = Group(Transport.HYPERV, (_system, _build, usable(Transport.HYPERV)))
