"""Counters for each service, in a mapped file that outlives the broker.

An increment is one store into a shared mapping, so a broker that is killed loses none, and the next one
goes on counting. What has no registered service is counted under ServiceId zero: a guest that tries
random services fills one row.

Layout: a header of 64 bytes (magic, number of rows), then rows of ServiceId (16 bytes) and
:data:`ROW_COUNTERS` counters (u64 each).
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from typing import Any, Final

from hvsock.addresses import SERVICE_WILDCARD, ServiceId
from hvsock.errors import StateError
from hvsock.topology.decision import Reason

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

MAX_ROWS: Final = 32_768
"""Services with a row of their own: twice the most that the registry holds, so that renewed ids fit."""
ROW_COUNTERS: Final = 30
"""Counters in a row: three of connects and one for each reason, with room for more."""
MICROSECONDS_MAX: Final = (1 << 64) - 1

_MAGIC = b"HVSCNT1\0"
_HEADER = struct.Struct("<8sI")
_HEADER_BYTES = 64
_ROW = struct.Struct(f"<16s{ROW_COUNTERS}Q")
_U64 = struct.Struct("<Q")

_ACCEPTED, _CONNECT_TOTAL, _CONNECT_MAX, _FIRST_REASON = 0, 1, 2, 4
_REASONS = tuple(Reason)
_COLUMN = {reason: _FIRST_REASON + index for index, reason in enumerate(_REASONS)}
RESETS: Final = frozenset({Reason.CANCELLED, Reason.LISTENER_GONE})
"""Reasons that end a connection which was under way; the others refuse it at the start."""


class Counters:
    """The counters in the file at `path`; one broker at a time.

    Raises:
        StateError: the file is not one of ours.
    """

    def __init__(self, path: str) -> None:
        size = _HEADER_BYTES + MAX_ROWS * _ROW.size
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size == 0:
                os.ftruncate(descriptor, size)
            if os.fstat(descriptor).st_size != size:
                raise StateError(f"{path} is not a file of counters; remove it to count from zero")
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        magic, rows = _HEADER.unpack_from(self._map)
        if magic == bytes(8):
            _HEADER.pack_into(self._map, 0, _MAGIC, 0)
        elif magic != _MAGIC or rows > MAX_ROWS:
            self._map.close()
            raise StateError(f"{path} is not a file of counters; remove it to count from zero")
        self._rows: dict[ServiceId, int] = {}
        for row in range(rows):
            self._rows[ServiceId.from_bytes_le(self._map[self._at(row) : self._at(row) + 16])] = row
        self.row_of(SERVICE_WILDCARD)

    def close(self) -> None:
        """Unmap the file; it keeps every count."""
        self._map.close()

    def row_of(self, service_id: ServiceId) -> int:
        """The row of a service, made if need be; when all are taken, the row of what has no service."""
        row = self._rows.get(service_id)
        if row is None:
            row = len(self._rows)
            if row == MAX_ROWS:
                return self._rows[SERVICE_WILDCARD]
            at = self._at(row)
            self._map[at : at + 16] = service_id.to_bytes_le()
            _HEADER.pack_into(self._map, 0, _MAGIC, row + 1)
            self._rows[service_id] = row
        return row

    def accepted(self, row: int, seconds: float) -> None:
        """Count a connection that was handed to its listener, `seconds` after it was asked for."""
        microseconds = int(seconds * 1e6)
        self._add(row, _ACCEPTED, 1)
        self._add(row, _CONNECT_TOTAL, microseconds)
        if microseconds > self._get(row, _CONNECT_MAX):
            _U64.pack_into(self._map, self._cell(row, _CONNECT_MAX), microseconds)

    def ended(self, row: int, reason: Reason) -> None:
        """Count a refusal or a reset."""
        self._add(row, _COLUMN[reason], 1)

    def report(self, service_id: ServiceId) -> dict[str, Any]:
        """The counts of one service: accepted, refused and reset by reason, connect time in microseconds."""
        row = self._rows.get(service_id)
        counts = (0,) * ROW_COUNTERS if row is None else _ROW.unpack_from(self._map, self._at(row))[1:]
        by_reason = {reason: counts[_COLUMN[reason]] for reason in _REASONS if counts[_COLUMN[reason]]}
        accepted = counts[_ACCEPTED]
        return {
            "accepted": accepted,
            "refused": {reason.value: n for reason, n in by_reason.items() if reason not in RESETS},
            "reset": {reason.value: n for reason, n in by_reason.items() if reason in RESETS},
            "connect_microseconds_mean": round(counts[_CONNECT_TOTAL] / accepted, 1) if accepted else 0.0,
            "connect_microseconds_max": counts[_CONNECT_MAX],
        }

    def _at(self, row: int) -> int:
        return _HEADER_BYTES + row * _ROW.size

    def _cell(self, row: int, column: int) -> int:
        return self._at(row) + 16 + column * _U64.size

    def _get(self, row: int, column: int) -> int:
        value: int = _U64.unpack_from(self._map, self._cell(row, column))[0]
        return value

    def _add(self, row: int, column: int, amount: int) -> None:
        at = self._cell(row, column)
        _U64.pack_into(self._map, at, (_U64.unpack_from(self._map, at)[0] + amount) & MICROSECONDS_MAX)
