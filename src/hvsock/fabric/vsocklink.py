"""The way from a Linux guest to the broker of its host: a port of AF_VSOCK that its device answers."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Final

from hvsock.constants import VSOCK_BROKER_PORT, VSOCK_CID_HOST

if sys.platform != "linux":
    raise ImportError("AF_VSOCK is in Linux guests")

NO_DEVICE: Final = "this machine has no AF_VSOCK device to a host: is it a guest, and was it given one?"
"""What ENODEV means."""


def connect(link: socket.socket) -> None:
    """Connect `link`, an AF_VSOCK stream, to the host's broker.

    Raises:
        OSError: see :func:`connect_error`.
    """
    link.connect((VSOCK_CID_HOST, VSOCK_BROKER_PORT))


def connect_error(error: OSError) -> OSError:
    """`error` of such a connection, as the error of a Hyper-V socket."""
    if error.errno in (errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.ENOTCONN):
        text = "the host answers no calls of this machine: its device is none of hvsock's, or its broker is gone"
        return OSError(errno.ENETUNREACH, text)
    if error.errno == errno.ENODEV:
        return OSError(errno.ENETUNREACH, NO_DEVICE)
    if error.errno == errno.EAFNOSUPPORT:
        return OSError(errno.ENETUNREACH, "this kernel has no AF_VSOCK: load the module vsock")
    return error
