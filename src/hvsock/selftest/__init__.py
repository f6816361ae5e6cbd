"""The chosen transport of this machine, checked from end to end: what is behind `hvsock selftest`."""

from __future__ import annotations

import sys

from hvsock import transport
from hvsock.transport import Transport

from . import connections, identity, streams
from .check import Check, NotApplicable, Outcome, Result
from .ground import Ground
from .running import run

__all__ = ["CHECKS", "Check", "Ground", "NotApplicable", "Outcome", "Result", "chosen_ground", "run"]

CHECKS: tuple[Check, ...] = (*identity.CHECKS, *connections.CHECKS, *streams.CHECKS)
"""All there are, in the order in which they are run."""


def chosen_ground() -> Ground:
    """The ground of the chosen transport: this Windows, a fabric of its own, its hybrid sockets, or this kernel.

    The caller closes it.

    Raises:
        UsageError: HVSOCK_TRANSPORT names no transport.
        NotReadyError: the transport cannot be used here; the text says what to do.
    """
    chosen = transport.chosen()
    if sys.platform == "win32":
        from . import hyperv

        return hyperv.ground()
    if chosen is Transport.VSOCK:
        from . import vsock

        return vsock.ground()
    if chosen is Transport.HYBRID:
        from . import hybrid

        return hybrid.ground()
    from . import fabric

    return fabric.ground()
