"""The chosen transport of this machine, checked from end to end: what is behind `hvsock selftest`."""

from __future__ import annotations

from hvsock import transport
from hvsock.errors import UsageError
from hvsock.transport import Transport

from . import connections, identity, streams
from .check import Check, NotApplicable, Outcome, Result
from .ground import Ground
from .running import run

__all__ = ["CHECKS", "Check", "Ground", "NotApplicable", "Outcome", "Result", "chosen_ground", "run"]

CHECKS: tuple[Check, ...] = (*identity.CHECKS, *connections.CHECKS, *streams.CHECKS)
"""All there are, in the order in which they are run."""


def chosen_ground() -> Ground:
    """The ground of the chosen transport: this Windows, or a fabric of its own. The caller closes it.

    Raises:
        UsageError: HVSOCK_TRANSPORT names no transport, or one whose other end is in another machine.
    """
    chosen = transport.chosen()
    if chosen is Transport.HYPERV:
        from . import hyperv

        return hyperv.ground()
    if chosen is Transport.FABRIC:
        from . import fabric

        return fabric.ground()
    raise UsageError(
        f"with {transport.TRANSPORT_VARIABLE}={chosen} the other end is in another machine; see: hvsock doctor; "
        f"{transport.TRANSPORT_VARIABLE}={Transport.FABRIC} checks a fabric"
    )
