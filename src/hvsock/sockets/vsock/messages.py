"""Sends of SEQPACKET messages that may not wait for ever, or not at all.

Linux (6.1 and 6.12) puts as much of a message on its way as the peer has room for. A socket that waits in the
kernel sends the rest when there is more room; one that does not gets EAGAIN, and what went is the beginning of its
next message. So a message is begun when there is room for some of it, and then sent by a descriptor that waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket as _stdlib
import struct
import sys
from collections.abc import Iterator
from typing import Any, Final

if sys.platform != "linux":
    raise ImportError("AF_VSOCK is in Linux guests")

REST_SECONDS: Final = 10.0
"""How long, at least, a peer may take to make room for the rest of a message; without it nothing can follow."""
MICROSECONDS: Final = 1_000_000
"""In a second."""
TIMEVAL: Final = struct.Struct("@ll")
"""struct timeval, as options of sockets have it."""


def send(sock: _stdlib.socket, timeout: float, name: str, *args: Any, **keywords: Any) -> Any:
    """Send one message, whole.

    Args:
        sock: an AF_VSOCK socket of SOCK_SEQPACKET, which does not wait in the kernel.
        timeout: seconds to wait until there is room for some of it; 0 is not at all.
        name: the socket's method.
        args, keywords: its arguments.

    Raises:
        BlockingIOError, TimeoutError: there is no room; nothing was sent.
        OSError: ECONNRESET: the peer made no room for the rest, and the connection is over; else as the method.
    """
    seconds = max(timeout, REST_SECONDS)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    if not poll.poll(timeout * 1000):
        if timeout:
            raise TimeoutError("timed out")
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    try:
        with _waiting(sock, seconds) as plain:
            return getattr(plain, name)(*args, **keywords)
    except BlockingIOError:
        sock.shutdown(_stdlib.SHUT_RDWR)
        text = f"the peer made no room for the rest of a message in {seconds:g} s"
        raise ConnectionResetError(errno.ECONNRESET, text) from None


@contextlib.contextmanager
def _waiting(sock: _stdlib.socket, seconds: float) -> Iterator[_stdlib.socket]:
    """An object with the descriptor of `sock`, which waits in the kernel meanwhile, but no longer than that."""
    # an object that is made non-blocking leaves the descriptor as it is, and tries nothing again by itself
    plain = _stdlib.socket(_stdlib.AF_UNIX, _stdlib.SOCK_SEQPACKET | _stdlib.SOCK_NONBLOCK, 0, sock.fileno())
    try:
        before = plain.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDTIMEO, TIMEVAL.size)
        plain.setsockopt(
            _stdlib.SOL_SOCKET,
            _stdlib.SO_SNDTIMEO,
            TIMEVAL.pack(*divmod(int(seconds * MICROSECONDS), MICROSECONDS)),
        )
        os.set_blocking(plain.fileno(), True)
        try:
            yield plain
        finally:
            os.set_blocking(plain.fileno(), False)
            plain.setsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_SNDTIMEO, before)
    finally:
        plain.detach()
