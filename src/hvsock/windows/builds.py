"""Which builds of Windows and Linux have Hyper-V's sockets, as host and as guest, and what older ones lack.

From Microsoft's pages, the headers, and the notes of programs that use them; none of it was tried here.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple


class Kind(StrEnum):
    """Of an operating system."""

    WINDOWS = "Windows"
    LINUX = "Linux"


Version = tuple[int, int]
"""Windows: its build and 0, as (17763, 0). Linux: the first two numbers of its kernel."""


class Since(NamedTuple):
    """What a version brought.

    Attributes:
        version: the first that has it.
        release: what it is called.
        brought: what came with it.
        needed: whether nothing works without it.
    """

    version: Version
    release: str
    brought: str
    needed: bool = False


WINDOWS: Final = (
    Since((14393, 0), "Windows 10 1607, Server 2016", "Hyper-V sockets", needed=True),
    Since((17134, 0), "Windows 10 1803", "enhanced sessions by Hyper-V sockets"),
    Since((17763, 0), "Windows 10 1809, Server 2019", "settings of services in HCS documents"),
)
"""Hosts and guests alike, oldest first; on previews before it, shutdown was missing."""
LINUX: Final = (
    Since((4, 14), "Linux 4.14", "Hyper-V sockets (hv_sock)", needed=True),
    Since((5, 5), "Linux 5.5", "a guest of Hyper-V that has guests of its own on AF_VSOCK"),
    Since((5, 6), "Linux 5.6", "connections inside of the guest (vsock_loopback)"),
)
"""Guests only, by the kernel's release, oldest first; distributions may have brought things to older ones."""
HISTORY: Final = {Kind.WINDOWS: WINDOWS, Kind.LINUX: LINUX}
CURES: Final = {
    Kind.WINDOWS: "update this Windows to 1607 (build 14393) or newer",
    Kind.LINUX: "boot kernel 4.14 or newer; a distribution's older one may have hv_sock all the same",
}
"""What to do where there are none."""

_RELEASE: Final = re.compile(r"(\d{1,5})\.(\d{1,5})")


class Verdict(NamedTuple):
    """What is known of one build.

    Attributes:
        ok: whether it has Hyper-V sockets at all.
        found: which it is, in words.
        missing: what came with later ones only.
        cure: what to do where it has none.
    """

    ok: bool
    found: str
    missing: tuple[Since, ...] = ()
    cure: str | None = None


def windows(build: int) -> Verdict:
    """What is known of a build of Windows, as sys.getwindowsversion().build tells it."""
    return judge(Kind.WINDOWS, (build, 0), f"build {build}")


def linux(release: str) -> Verdict:
    """What is known of a kernel's release, as uname tells it."""
    found = _RELEASE.match(release)
    if found is None:
        cure = "see that uname -r begins with two numbers"
        return Verdict(False, f"{release!r} is no release of Linux", LINUX, cure)
    return judge(Kind.LINUX, (int(found[1]), int(found[2])), f"kernel {release}")


def judge(kind: Kind, version: Version, called: str) -> Verdict:
    """What is known of a version.

    Args:
        kind: of the operating system.
        version: which.
        called: that in words.
    """
    missing = tuple(one for one in HISTORY[kind] if version < one.version)
    ok = not any(one.needed for one in missing)
    since = [one.release for one in HISTORY[kind] if version >= one.version]
    found = f"{called}, {since[-1]} or newer" if since else f"{called} is older than {HISTORY[kind][0].release}"
    return Verdict(ok, found, missing, None if ok else CURES[kind])
