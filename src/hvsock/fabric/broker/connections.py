"""The connections that were handed over, in a mapped file that outlives the broker.

A connection has left the broker once it is established, and ends without a word to it. What is still
open is what the kernel still lists (see :mod:`.liveness`), so "open" is right whoever was killed, and
after a restart of the broker too. A connection counts as open from the hand-over on, in the listener's
backlog already, until its accepted end is closed.

A record is written before its connection is handed over, and marked when it is counted. So the broker
that comes after one that was killed in between finds the record, sees by the kernel's list whether the
hand-over happened, and counts it; only when the connection has ended by then, it is never counted.

Layout, in the byte order of the machine: a header of one record's size (magic, boot id, number of records
ever used), then records of eight u64: inode of the accepted end, counter row with a mark, connecting process,
network namespace, VmId of the connecting and of the accepting partition (two each). Inode zero is a free record.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Final

from hvsock.addresses import VmId

from . import liveness

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

log = logging.getLogger(__name__)

MAX_RECORDS: Final = 1 << 20
"""Connections that can be followed at once; the file is sparse, and its full size is 64 MiB."""
FIRST_SWEEP: Final = 1 << 14
"""Records written before the first look at which are still open."""
ROOM_RECORDS: Final = 1 << 10
"""Records that room is made for at a time."""
MOST_LOOKS: Final = 5
"""Looks at the kernel's list for connections that are missing in it. While thousands of sockets come and go each
second, a look at 10,000 that stay misses two or three, others each time."""

_MAGIC: Final = b"HVSCON2\0"
_RECORD: Final = struct.Struct("=QQQQ16s16s")
_REST: Final = struct.Struct("=QQQ16s16s")  # all but the inode, which is written last and makes it valid
_WORDS: Final = _RECORD.size // 8
_FILE_BYTES: Final = (1 + MAX_RECORDS) * _RECORD.size
_USED_WORD: Final = 3  # of the header
_ROW_WORD, _PROCESS_WORD, _NAMESPACE_WORD = 1, 2, 3  # of a record; the inode is word 0
_ROW_MASK: Final = (1 << 32) - 1
_COUNTED: Final = 1 << 32
"""Mark in the word with the row: the connection is in the counters."""

LiveInodes = Callable[[Mapping[int, Collection[int]]], frozenset[int]]


class Connections:
    """The records in the file at `path`; one broker at a time.

    Args:
        path: the file; made anew if it is not there, from before the last boot, or not one of ours.
        live: gives the inodes of the sockets that are alive, as :func:`.liveness.live_socket_inodes` does.

    Attributes:
        recovered: counter rows of the connections that were handed over and not counted, because the
            broker before was killed in between.
    """

    def __init__(self, path: str, live: LiveInodes = liveness.live_socket_inodes) -> None:
        header = _MAGIC + liveness.boot_id()
        self._live = live
        self._namespace = liveness.own_namespace()
        self._free: list[int] = []
        self._sweep_at = FIRST_SWEEP
        self._not_followed = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._descriptor)
            size = os.fstat(self._descriptor).st_size
            if size != _FILE_BYTES or os.pread(self._descriptor, len(header), 0) != header:
                if size:
                    log.warning("%s is from before the last boot or of another version: it starts anew", path)
                os.ftruncate(self._descriptor, 0)
                os.ftruncate(self._descriptor, _FILE_BYTES)
                os.pwrite(self._descriptor, header, 0)
            self._map = undo.enter_context(mmap.mmap(self._descriptor, _FILE_BYTES))
            self._words = undo.enter_context(memoryview(self._map).cast("Q"))
            self._used = min(self._words[_USED_WORD], MAX_RECORDS)
            self.sweep()
            self.recovered = self._recover()
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Unmap the file. Calling this twice is fine."""
        self._undo.close()

    def begin(self, inode: int, row: int, ends: tuple[VmId, VmId], pid: int, namespace: int) -> int | None:
        """Follow a connection that is about to be handed over, until its accepted end is gone.

        When :data:`MAX_RECORDS` are open or the disk is full, this one is not followed; that harms a report
        and nothing else.

        Args:
            inode: of its accepted end.
            row: its counter row.
            ends: the connecting and the accepting partition.
            pid: the connecting process.
            namespace: the network namespace of the connector (:func:`.liveness.namespace_of`).

        Returns:
            The record, for :meth:`counted` or :meth:`cancel`; None when it is not followed.
        """
        record = self._take()
        if record is not None:
            at = record * _RECORD.size
            source, target = ends
            _REST.pack_into(self._map, at + 8, row, pid, namespace, source.to_bytes_le(), target.to_bytes_le())
            self._words[at // 8] = inode
        return record

    def counted(self, record: int | None) -> None:
        """The connection of a record was handed over and counted."""
        if record is not None:
            self._words[record * _WORDS + _ROW_WORD] |= _COUNTED

    def cancel(self, record: int | None) -> None:
        """The connection of a record was not handed over."""
        if record is not None:
            self._words[record * _WORDS] = 0
            self._free.append(record)

    def sweep(self) -> tuple[Counter[int], Counter[VmId]]:
        """Free the records of connections that ended; returns how many are open by counter row and by partition.

        A loopback connection counts once for its partition.
        """
        live = self._look()
        self._free.clear()
        by_row: Counter[int] = Counter()
        by_partition: Counter[VmId] = Counter()
        for record, inode in enumerate(self._column(0), 1):
            if inode and inode in live:
                _, row, _, _, source, target = _RECORD.unpack_from(self._map, record * _RECORD.size)
                by_row[row & _ROW_MASK] += 1
                by_partition.update({VmId.from_bytes_le(source), VmId.from_bytes_le(target)})
            else:
                if inode:
                    self._words[record * _WORDS] = 0
                self._free.append(record)
        self._sweep_at = max(FIRST_SWEEP, 2 * (self._used - len(self._free)))
        self._not_followed = 0
        return by_row, by_partition

    def _look(self) -> frozenset[int]:
        """The inodes that are alive, with all of ours among them that are.

        The kernel's list leaves some out while other sockets come and go, so what is missing is looked for
        again, until a look finds none of it.
        """
        elsewhere = self._elsewhere()
        live = self._live(elsewhere)
        missing = {inode for inode in self._column(0) if inode} - live
        for _ in range(MOST_LOOKS):
            if not missing:
                break
            found = missing & self._live(elsewhere)
            if not found:
                break
            live |= found
            missing -= found
        return live

    def _take(self) -> int | None:
        if not self._free and (self._used >= self._sweep_at or self._not_followed >= FIRST_SWEEP):
            self.sweep()
        if self._free:
            return self._free.pop()
        if self._used == MAX_RECORDS or not self._make_room():
            self._not_followed += 1
            return None
        self._used += 1
        self._words[_USED_WORD] = self._used
        return self._used

    def _make_room(self) -> bool:
        """Have the file take up space for the next record; a store into a hole would end us on a full disk."""
        if self._used % ROOM_RECORDS == 0:
            room = min(ROOM_RECORDS, MAX_RECORDS - self._used) * _RECORD.size
            try:
                os.posix_fallocate(self._descriptor, (1 + self._used) * _RECORD.size, room)
            except OSError as error:
                if not self._not_followed:
                    log.error("connections are not followed any more: %s", error.strerror)
                return False
        return True

    def _column(self, word: int) -> list[int]:
        """One word of every record that was used at some time."""
        column: list[int] = self._words[_WORDS + word : (1 + self._used) * _WORDS : _WORDS].tolist()
        return column

    def _elsewhere(self) -> dict[int, list[int]]:
        """The processes that connected from other network namespaces, the latest record's first."""
        elsewhere: dict[int, dict[int, None]] = {}
        for record in range(self._used, 0, -1):
            namespace = self._words[record * _WORDS + _NAMESPACE_WORD]
            if namespace != self._namespace and self._words[record * _WORDS]:
                elsewhere.setdefault(namespace, {})[self._words[record * _WORDS + _PROCESS_WORD]] = None
        return {namespace: list(processes) for namespace, processes in elsewhere.items()}

    def _recover(self) -> list[int]:
        rows = []
        for record in range(1, self._used + 1):
            inode, row, *_ = _RECORD.unpack_from(self._map, record * _RECORD.size)
            if inode and not row & _COUNTED:
                rows.append(row)
                self.counted(record)
        return rows
