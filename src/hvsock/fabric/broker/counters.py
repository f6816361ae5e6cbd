"""Counters for each service, in a mapped file that outlives the broker.

An increment is one store of eight bytes into a shared mapping, so a broker that is killed loses none and
leaves none half written, and the next one goes on counting. What has no registered service is counted under
ServiceId zero: a guest that tries random services fills one row.

What is counted of a connection, and when, says :mod:`.handover`; after a kill in between, a count may be off
by one for that connection, and by no more.

Layout, in the byte order of the machine: a header of 64 bytes (magic, number of rows), then rows of ServiceId
(16 bytes) and :data:`ROW_COUNTERS` counters (u64 each).
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import sys
from typing import Any, Final

from hvsock.addresses import SERVICE_WILDCARD, ServiceId
from hvsock.errors import StateError
from hvsock.topology.refusals import Reason

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

log = logging.getLogger(__name__)

MAX_ROWS: Final = 32_768
"""Services with a row of their own: twice the most that the registry holds, so that renewed ids fit."""
ROW_COUNTERS: Final = 30
"""Counters in a row: three of connects and one for each reason, with room for more."""

_MAGIC: Final = b"HVSCNT1\0"
_HEADER_BYTES: Final = 64
_ROW_BYTES: Final = 16 + 8 * ROW_COUNTERS
_FILE_BYTES: Final = _HEADER_BYTES + MAX_ROWS * _ROW_BYTES
_ROWS_CELL: Final = 1  # of the header, in units of 8 bytes
_U64_MAX: Final = (1 << 64) - 1

_ACCEPTED, _CONNECT_TOTAL, _CONNECT_MAX = 0, 1, 2
COLUMNS: Final[dict[Reason, int]] = {
    Reason.NOT_A_DESTINATION: 4,
    Reason.UNREACHABLE: 5,
    Reason.NOT_BINDABLE: 6,
    Reason.NOT_REGISTERED: 7,
    Reason.DENIED: 8,
    Reason.DISABLED: 9,
    Reason.NO_LISTENER: 10,
    Reason.WRONG_TYPE: 11,
    Reason.IN_USE: 12,
    Reason.BACKLOG_FULL: 13,
    Reason.CANCELLED: 14,
    Reason.LISTENER_GONE: 15,
    Reason.LIMIT: 16,
    Reason.BAD_REQUEST: 17,
    Reason.NO_PORT: 18,
}
"""Which counter of a row is whose. Files of earlier versions are read, so a number never changes its meaning."""
RESETS: Final = frozenset({Reason.CANCELLED, Reason.LISTENER_GONE})
"""Reasons that end a connection which was under way; the others refuse it at the start."""


class Counters:
    """The counters in the file at `path`; one broker at a time.

    Raises:
        StateError: the file is not one of ours.
    """

    def __init__(self, path: str) -> None:
        self._rows: dict[ServiceId, int] = {}
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._descriptor)
            if os.fstat(self._descriptor).st_size == 0:
                os.ftruncate(self._descriptor, _FILE_BYTES)
            if os.fstat(self._descriptor).st_size != _FILE_BYTES:
                raise _foreign(path)
            # a store into a mapped hole of a file is the end of the process when the disk is full
            os.posix_fallocate(self._descriptor, 0, _HEADER_BYTES + _ROW_BYTES)
            self._map = undo.enter_context(mmap.mmap(self._descriptor, _FILE_BYTES))
            self._cells = undo.enter_context(memoryview(self._map).cast("Q"))
            rows = self._cells[_ROWS_CELL]
            if self._map[:8] == bytes(8):
                self._map[:8] = _MAGIC
            elif self._map[:8] != _MAGIC or rows > MAX_ROWS:
                raise _foreign(path)
            for row in range(rows):
                at = _HEADER_BYTES + row * _ROW_BYTES
                self._rows[ServiceId.from_bytes_le(self._map[at : at + 16])] = row
            self.row_of(SERVICE_WILDCARD)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Unmap the file; it keeps every count. Calling this twice is fine."""
        self._undo.close()

    def row_of(self, service_id: ServiceId) -> int:
        """The row of a service, made if need be; when there is no room for it, the row of what has no service."""
        row = self._rows.get(service_id)
        if row is None:
            row = len(self._rows)
            if row == MAX_ROWS:
                return self._rows[SERVICE_WILDCARD]
            at = _HEADER_BYTES + row * _ROW_BYTES
            try:
                os.posix_fallocate(self._descriptor, at, _ROW_BYTES)
            except OSError as error:
                if not row:
                    raise
                log.error("a service is counted as one that is not registered: %s", error.strerror)
                return self._rows[SERVICE_WILDCARD]
            self._map[at : at + 16] = service_id.to_bytes_le()
            self._cells[_ROWS_CELL] = row + 1
            self._rows[service_id] = row
        return row

    def accepted(self, row: int, seconds: float) -> None:
        """Count a connection that was handed to its listener, `seconds` after it was asked for."""
        microseconds = int(seconds * 1e6)
        self._add(row, _ACCEPTED, 1)
        self._add(row, _CONNECT_TOTAL, microseconds)
        longest = _cell(row, _CONNECT_MAX)
        if microseconds > self._cells[longest]:
            self._cells[longest] = microseconds

    def ended(self, row: int, reason: Reason) -> None:
        """Count a refusal or a reset."""
        self._add(row, COLUMNS[reason], 1)

    def report(self, service_id: ServiceId) -> dict[str, Any]:
        """The counts of one service: accepted, refused and reset by reason, connect time in microseconds."""
        row = self._rows.get(service_id)
        counts = [0] * ROW_COUNTERS
        if row is not None:
            counts = self._cells[_cell(row, 0) : _cell(row, ROW_COUNTERS)].tolist()
        by_reason = {reason: counts[column] for reason, column in COLUMNS.items() if counts[column]}
        accepted = counts[_ACCEPTED]
        return {
            "accepted": accepted,
            "refused": {reason.value: n for reason, n in by_reason.items() if reason not in RESETS},
            "reset": {reason.value: n for reason, n in by_reason.items() if reason in RESETS},
            "connect_microseconds_mean": round(counts[_CONNECT_TOTAL] / accepted, 1) if accepted else 0.0,
            "connect_microseconds_max": counts[_CONNECT_MAX],
        }

    def _add(self, row: int, column: int, amount: int) -> None:
        cell = _cell(row, column)
        self._cells[cell] = self._cells[cell] + amount & _U64_MAX


def _cell(row: int, column: int) -> int:
    return (_HEADER_BYTES + row * _ROW_BYTES + 16) // 8 + column


def _foreign(path: str) -> StateError:
    return StateError(f"{path} is not a file of counters; remove it to count from zero")
