"""How sockets reach other partitions: over the fabric of this machine, out of a guest by AF_VSOCK, or by Windows.

On Linux it is chosen by an environment variable and never guessed: a machine that has /dev/vsock may well be
a host with a fabric.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from .errors import UsageError

TRANSPORT_VARIABLE: Final = "HVSOCK_TRANSPORT"
"""Environment variable: the name of the transport; where it is unset or empty, the first that the platform has."""


class Transport(StrEnum):
    """A way to reach other partitions."""

    FABRIC = "fabric"
    """This machine has a broker, and its partitions are folders."""
    VSOCK = "vsock"
    """This machine is a guest, and its host has the broker."""

    HYPERV = "hyperv"
    """This machine is a host or a guest of Hyper-V and runs Windows, whose kernel decides."""


_ON_WINDOWS: Final = (Transport.HYPERV,)
_ON_LINUX: Final = (Transport.FABRIC, Transport.VSOCK)


def chosen(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Transport:
    """The transport of this process.

    Args:
        environ: the environment; None for that of the process.
        platform: as sys.platform has it.

    Raises:
        UsageError: HVSOCK_TRANSPORT names none, or one that another platform has; the doing of whoever set it.
    """
    possible = _ON_WINDOWS if platform == "win32" else _ON_LINUX
    name = (os.environ if environ is None else environ).get(TRANSPORT_VARIABLE) or possible[0]
    if name in possible:
        return Transport(name)
    raise UsageError(f"{TRANSPORT_VARIABLE} is {name!r}; it may be: {', '.join(possible)}")
