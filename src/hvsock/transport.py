"""How sockets reach other partitions: by the fabric of this machine, AF_VSOCK, VMMs' Unix sockets, or Windows.

On Linux it is chosen, by an environment variable or the configuration, and never guessed: a machine that has
/dev/vsock may well be a host with a fabric.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from .config import files
from .errors import UsageError

TRANSPORT_VARIABLE: Final = "HVSOCK_TRANSPORT"
"""Environment variable: the name of the transport; where it is unset or empty, the configuration says, and where
that does not, it is the first that the platform has."""


class Transport(StrEnum):
    """A way to reach other partitions."""

    FABRIC = "fabric"
    """This machine has a broker, and its partitions are folders."""
    VSOCK = "vsock"
    """This machine is a guest, and its host has the broker; or it is a host, and its kernel has guests (vhost)."""
    HYBRID = "hybrid"
    """This machine is a host, whose VMMs end their guests' sockets in Unix sockets."""
    HYPERV = "hyperv"
    """This machine is a host or a guest of Hyper-V and runs Windows, whose kernel decides."""


_ON_WINDOWS: Final = (Transport.HYPERV,)
_ON_LINUX: Final = (Transport.FABRIC, Transport.VSOCK, Transport.HYBRID)


def possible(platform: str = sys.platform) -> tuple[Transport, ...]:
    """The transports that a platform may have, its default first; `platform` is as sys.platform has it."""
    return _ON_WINDOWS if platform == "win32" else _ON_LINUX


def chosen(environ: Mapping[str, str] | None = None, platform: str = sys.platform) -> Transport:
    """The transport of this process.

    Args:
        environ: the environment; None for that of the process.
        platform: as sys.platform has it.

    Raises:
        UsageError: HVSOCK_TRANSPORT or the configuration names none, or one that another platform has; or the
            configuration cannot be used. The doing of whoever set it.
    """
    environ = os.environ if environ is None else environ
    there = possible(platform)
    name, source = environ.get(TRANSPORT_VARIABLE), TRANSPORT_VARIABLE
    if not name:
        settings = files.settings(environ)
        name, source = settings.transport or there[0], f"{settings.where}.transport"
    if name in there:
        return Transport(name)
    raise UsageError(f"{source} is {name!r}; it may be: {', '.join(there)}")
