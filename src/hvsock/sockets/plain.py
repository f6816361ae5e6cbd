"""For libraries that refuse subclasses of the standard socket class, or accept by themselves.

A connected Hyper-V socket's descriptor carries payload alone, so a standard socket object over it works
everywhere. A listening one does not: only :meth:`hvsock.socket.accept` knows couriers.
"""

from __future__ import annotations

import errno
import os
import socket as _stdlib
import sys

from .socket import socket

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")


def to_plain(sock: socket) -> _stdlib.socket:
    """The connection of `sock` as a standard socket, which owns the descriptor; `sock` is closed.

    Raises:
        OSError: ENOTCONN: `sock` is not connected (a listener must go on as what it is); EINPROGRESS: not
            yet; EBADF: closed.
    """
    sock._require_settled()
    if not sock._connected:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
    timeout = sock.gettimeout()
    plain = _stdlib.socket(sock.family, sock._kind, 0, sock.detach())
    plain.settimeout(timeout)
    return plain
