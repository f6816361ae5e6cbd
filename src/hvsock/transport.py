"""How sockets reach other partitions: over the fabric of this machine, or out of a guest by AF_VSOCK.

It is chosen by an environment variable and never guessed: a machine that has /dev/vsock may well be
a host with a fabric.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from .errors import UsageError

TRANSPORT_VARIABLE: Final = "HVSOCK_TRANSPORT"
"""Environment variable: the name of the transport; the fabric where it is unset or empty."""


class Transport(StrEnum):
    """A way to reach other partitions."""

    FABRIC = "fabric"
    """This machine has a broker, and its partitions are folders."""
    VSOCK = "vsock"
    """This machine is a guest, and its host has the broker."""


def chosen(environ: Mapping[str, str] | None = None) -> Transport:
    """The transport of this process.

    Raises:
        UsageError: HVSOCK_TRANSPORT names none; the doing of whoever set it.
    """
    name = (os.environ if environ is None else environ).get(TRANSPORT_VARIABLE) or Transport.FABRIC
    try:
        return Transport(name)
    except ValueError:
        raise UsageError(f"{TRANSPORT_VARIABLE} is {name!r}; it may be: {', '.join(Transport)}") from None
