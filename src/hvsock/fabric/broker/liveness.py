"""Which connections are alive: the kernel's own lists.

The broker keeps no duplicate of a connection (a duplicate would keep it alive), so it asks the kernel. A
connection is known by the inode of its accepted end, which stays the same wherever its descriptor goes,
also for a broker that was started again.

The kernel keeps a list for each network namespace, and a connection is in that of its connector. For
connectors of another namespace, such as a container's, the list is reached through a process in there: one
of those that connected. So a connection from another namespace counts as open while one of the processes
that connected from there is alive, and the broker sees it in its /proc; what is passed on to other
processes in there after that is open, and not counted.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Collection, Mapping
from typing import Final

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it reads /proc/net/unix")

TABLES_PER_NAMESPACE: Final = 8
"""Processes of one namespace that are asked for its list. One will do, but a process id may be used anew."""

_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h, Linux 5.14
_U64 = struct.Struct("=Q")


def namespace_of(sock: socket.socket) -> int:
    """A number for the network namespace of a socket, unique until the next boot; 0 where the kernel has none."""
    try:
        return int(_U64.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _U64.size))[0])
    except OSError:
        return 0


def own_namespace() -> int:
    """The number of this process's network namespace."""
    with socket.socket(socket.AF_UNIX) as sock:
        return namespace_of(sock)


def boot_id() -> bytes:
    """16 bytes that are others after each boot, when inodes are given out anew."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


def live_socket_inodes(elsewhere: Mapping[int, Collection[int]] | None = None) -> frozenset[int]:
    """The inodes of all Unix sockets in this network namespace, and in some others.

    Costs about 1 µs for each socket there is, so it is for reports and sweeps only. The kernel gives its list
    in pieces, and a socket that is closed in between may hide another one that is not.

    Args:
        elsewhere: for each other namespace, the processes that connected from it.
    """
    live = set(_table("/proc/net/unix"))
    for processes in (elsewhere or {}).values():
        read = 0
        for pid in processes:
            try:
                live.update(_table(f"/proc/{pid}/net/unix"))
            except OSError:
                continue  # it ended
            read += 1
            if read == TABLES_PER_NAMESPACE:
                break
    # what still waits to be accepted is listed with inode zero
    return frozenset(live - {0})


def _table(path: str) -> list[int]:
    with open(path, "rb") as table:
        next(table, b"")
        # Num RefCount Protocol Flags Type St Inode Path
        return [int(line.split(None, 7)[6]) for line in table]
