"""What a refused caller is told.

The text of a refusal names partitions and their bindings, so that somebody on the host can see what to do.
A guest learns the errno, and no more than that says.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from hvsock.topology.partitions import Kind, Partition
from hvsock.topology.refusals import Refusal

GUEST_TEXTS: Final[dict[int, str]] = {
    errno.ECONNREFUSED: "nothing listens there that takes a connection from here",
    errno.EHOSTUNREACH: "no partition with that id can be reached from here",
    errno.EADDRNOTAVAIL: "there is no such address for a socket in this partition",
    errno.EADDRINUSE: "that address is in use in this partition",
    errno.EPROTOTYPE: "the listener has the other socket type, SOCK_STREAM or SOCK_SEQPACKET",
    errno.ETIMEDOUT: "the listener's backlog was full until the connect time-out",
    errno.ENOBUFS: "the fabric is short of resources; try again",
}


def text_for(partition: Partition, refusal: Refusal) -> str:
    """The text of `refusal` for a caller in `partition`."""
    if partition.kind is Kind.HOST:
        return refusal.text
    return GUEST_TEXTS.get(refusal.errno) or os.strerror(refusal.errno)
