"""Receiving descriptors that are passed over AF_UNIX (SCM_RIGHTS)."""

from __future__ import annotations

import socket
import struct
import sys

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

_DESCRIPTOR = struct.Struct("i")


def receive(sock: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int], bool]:
    """Receive bytes with the descriptors that came along, close-on-exec; the caller owns those.

    The standard library's socket.recv_fds leaves its flags out (Python 3.11).

    Args:
        sock: an AF_UNIX socket; methods of a subclass are not called.
        size: most bytes.
        most: most descriptors; more that came are dropped.
        flags: for recvmsg.

    Returns:
        The bytes, the descriptors, and whether some were left out: more came, or this process may have no more.

    Raises:
        OSError: as recvmsg.
    """
    room = socket.CMSG_LEN(most * _DESCRIPTOR.size)
    data, ancillary, found, _ = socket.socket.recvmsg(sock, size, room, flags | socket.MSG_CMSG_CLOEXEC)
    descriptors = [
        value
        for level, kind, raw in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (value,) in _DESCRIPTOR.iter_unpack(raw[: len(raw) // _DESCRIPTOR.size * _DESCRIPTOR.size])
    ]
    return data, descriptors, bool(found & socket.MSG_CTRUNC)
