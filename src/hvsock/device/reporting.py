"""The counters of a device at a socket: who connects gets them as one JSON object, and the end of stream."""

from __future__ import annotations

import functools
import heapq
import json
import os
import select
import socket
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hvsock.errors import StateError
from hvsock.fabric import paths
from hvsock.fabric.door import Door
from hvsock.virtio.connection import Connection
from hvsock.virtio.counters import SUMS
from hvsock.virtio.packet import STREAM

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor
    from hvsock.virtio.muxer import Muxer

MAX_READERS: Final = 16
"""Readers of the counters at once; one that does not read keeps its place, and no more than that."""
MAX_REPORT_BYTES: Final = 16 << 20
"""Longest report that is read: a service in it takes some 300 bytes, of which there may be 16,384."""
READ_SECONDS: Final = 10.0
"""How long a report may take; it takes milliseconds, so a device is stuck by then."""
MAX_CONNECTIONS_LISTED: Final = 100
"""Connections in a report, those that moved most: a list of all would hold up payload for milliseconds."""


def read_report(path: str) -> dict[str, Any]:
    """The report of the device whose report socket is at `path`.

    Raises:
        StateError: no device answers there, or not with a report.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(READ_SECONDS)
        data = bytearray()
        try:
            paths.at(*os.path.split(os.path.abspath(path)), link.connect)
            while len(data) <= MAX_REPORT_BYTES and (piece := link.recv(1 << 16)):
                data += piece
            found = json.loads(data)
        except OSError as error:
            raise StateError(f"no device answers at {path}: {error.strerror or error}") from None
        except ValueError:
            raise StateError(f"what answers at {path} is no device, or one with too many readers") from None
    if not isinstance(found, dict) or "cid" not in found:
        raise StateError(f"what answers at {path} is no device")
    return found


def report_of(muxer: Muxer) -> dict[str, Any]:
    """What there is to tell of all connections, as JSON takes it.

    To what :meth:`~hvsock.virtio.muxer.Muxer.report` says comes the sum over all services, with all ends by their
    reason, and a list of connections; `connections_left_out` are those that are not in it.
    """
    found = muxer.report()
    services = found["services"].values()
    ended = Counter(found["refused"])
    for one in services:
        ended.update(one["ended"])
    sums = {name: sum(one[name] for one in services) for name in SUMS}
    listed = heapq.nlargest(MAX_CONNECTIONS_LISTED, muxer.live(), key=_moved)
    return {
        **found,
        "total": {"opened": sum(one["opened"] for one in services), **sums, "ended": dict(sorted(ended.items()))},
        "listed": [_show(one) for one in listed],
        "connections_left_out": found["connections"] - len(listed),
    }


def _moved(connection: Connection) -> int:
    return connection.bytes_from_guest + connection.bytes_to_guest


def _show(connection: Connection) -> dict[str, Any]:
    return {
        "service": connection.service or None,
        "type": "stream" if connection.type == STREAM else "seqpacket",
        "state": connection.state.name.lower(),
        "guest_port": connection.guest_port,
        "peer_cid": connection.peer_cid,
        "peer_port": connection.peer_port,
        "survives_pause": connection.survives_pause,
        "stalled": connection.stalled,
        **{name: getattr(connection, name) for name in SUMS},
    }


class Reports:
    """Gives out reports.

    Args:
        reactor: watches the descriptors.
        listener: where readers come in, non-blocking; closed by close().
        report: makes one, as JSON takes it.
    """

    def __init__(self, reactor: Reactor, listener: socket.socket, report: Callable[[], dict[str, Any]]) -> None:
        self._reactor = reactor
        self._report = report
        self._readers: dict[socket.socket, memoryview] = {}
        self._door = Door(reactor, listener, self._admit)

    def close(self) -> None:
        """Give out nothing any more."""
        self._door.close()
        for reader in list(self._readers):
            self._drop(reader)

    def _admit(self, reader: socket.socket) -> None:
        if len(self._readers) >= MAX_READERS:
            reader.close()
            return
        self._readers[reader] = memoryview(json.dumps(self._report()).encode())
        try:
            self._reactor.watch(reader.fileno(), select.EPOLLOUT, functools.partial(self._send, reader))
        except OSError:
            self._drop(reader)

    def _send(self, reader: socket.socket, events: int) -> None:
        try:
            rest = self._readers[reader] = self._readers[reader][reader.send(self._readers[reader]) :]
        except BlockingIOError:
            return
        except OSError:  # the reader left
            rest = memoryview(b"")
        if not rest:
            self._drop(reader)

    def _drop(self, reader: socket.socket) -> None:
        del self._readers[reader]
        self._reactor.forget(reader.fileno())
        reader.close()
