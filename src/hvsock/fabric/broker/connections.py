"""The connections that were handed over, in a mapped file that outlives the broker.

A connection has left the broker once it is established, and ends without a word to it. What is still
open is what the kernel still lists (see :mod:`.liveness`), so "open" is right whoever was killed, and
after a restart of the broker too.

Each record is inode (u64), counter row (u32), reserved (u32), VmId of the connecting and of the
accepting partition (16 bytes each); inode zero is a free record.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable
from typing import Final

from hvsock.addresses import VmId
from hvsock.errors import StateError

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

MAX_RECORDS: Final = 1 << 20
"""Connections that can be followed at once; the file is sparse, and its full size is 48 MiB."""
FIRST_SWEEP: Final = 1 << 14
"""Records written before the first look at which are still open."""

_RECORD = struct.Struct("<QII16s16s")
_INODE = struct.Struct("<Q")

LiveInodes = Callable[[], frozenset[int]]


class Connections:
    """The records in the file at `path`; one broker at a time.

    Args:
        path: the file; made if it is not there.
        live: gives the inodes of the sockets that are alive.

    Raises:
        StateError: the file is not one of ours.
    """

    def __init__(self, path: str, live: LiveInodes) -> None:
        size = MAX_RECORDS * _RECORD.size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size == 0:
                os.ftruncate(descriptor, size)
            if os.fstat(descriptor).st_size != size:
                raise StateError(f"{path} is not a file of connections; remove it")
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._live = live
        self._free: list[int] = []
        self._used = 0  # records below this one were written at some time
        self._sweep_at = FIRST_SWEEP
        while self._used < MAX_RECORDS and any(
            self._map[self._used * _RECORD.size : (self._used + 1) * _RECORD.size]
        ):
            self._used += 1
        self.sweep()

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    def opened(self, inode: int, row: int, source: VmId, target: VmId) -> None:
        """Follow a connection from `source` to `target`, counted in counter row `row`, until its socket is gone.

        When :data:`MAX_RECORDS` are open, this one is not followed; that harms a report and nothing else.
        """
        if not self._free and self._used >= self._sweep_at:
            self.sweep()
        if self._free:
            index = self._free.pop()
        elif self._used < MAX_RECORDS:
            index = self._used
            self._used += 1
        else:
            return
        _RECORD.pack_into(
            self._map, index * _RECORD.size, inode, row, 1, source.to_bytes_le(), target.to_bytes_le()
        )

    def sweep(self) -> tuple[Counter[int], Counter[VmId]]:
        """Free the records of connections that ended; returns how many are open by counter row and by partition.

        A loopback connection counts once for its partition.
        """
        live = self._live()
        self._free.clear()
        by_row: Counter[int] = Counter()
        by_partition: Counter[VmId] = Counter()
        for index in range(self._used):
            inode, row, _, source, target = _RECORD.unpack_from(self._map, index * _RECORD.size)
            if inode in live:
                by_row[row] += 1
                by_partition.update({VmId.from_bytes_le(source), VmId.from_bytes_le(target)})
            else:
                _INODE.pack_into(self._map, index * _RECORD.size, 0)
                self._free.append(index)
        self._sweep_at = max(FIRST_SWEEP, 2 * (self._used - len(self._free)))
        return by_row, by_partition
