"""Which Unix sockets are alive: the kernel's own list.

The broker keeps no duplicate of a connection or a listener (a duplicate would keep it alive), so it
asks the kernel. A socket is known by its inode, which stays the same wherever its descriptor goes, also
for a broker that was started again.
"""

from __future__ import annotations

_TABLE = "/proc/net/unix"


def live_socket_inodes() -> frozenset[int]:
    """The inodes of all Unix sockets in this network namespace.

    Costs about 1 µs for each socket there is, so ask on conflicts, for reports and in sweeps only.
    """
    with open(_TABLE, "rb") as table:
        next(table)
        # Num RefCount Protocol Flags Type St Inode Path
        return frozenset(int(line.split(None, 7)[6]) for line in table)
