"""The control sockets of the partitions: who may come in, and how many at once.

A partition has a bounded number of clients at once; while it has that many, its control sockets rest and
the kernel's queue fills up. They rest, too, while the broker is out of descriptors.
"""

from __future__ import annotations

import functools
import logging
import select
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from hvsock.addresses import VmId
from hvsock.topology.partitions import Partition

from .clients import Client
from .quota import Quota

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it is built on epoll and AF_UNIX")

if TYPE_CHECKING:
    from .broker import Broker

log = logging.getLogger(__name__)

MAX_CLIENTS_PER_PARTITION: Final = 4096
"""Requests of one partition under way at once, one descriptor each (fewer where few descriptors are allowed)."""
ACCEPTS_PER_TURN: Final = 64
"""Clients taken from one control socket before the others have their turn."""
TURN_SECONDS: Final = 0.005
"""Time for the clients of one control socket before the others have their turn."""
REST_SECONDS: Final = 0.05
"""Rest of a control socket until it is looked at again, if no client that leaves makes room before."""
COMPLAINT_SECONDS: Final = 10.0
"""Pause between two lines in the log about a lack of descriptors."""


class Gate:
    """The control sockets of one partition, and its clients; it closes the sockets."""

    def __init__(self, gates: Gates, partition: Partition, sockets: list[socket.socket]) -> None:
        self.broker = gates.broker
        self.partition = partition
        self.clients: set[Client] = set()
        self._gates = gates
        self._sockets = sockets
        self._watched = False

    def open(self) -> None:
        """Take clients from now on.

        Raises:
            OSError: the sockets cannot be watched.
        """
        self._watched = True
        try:
            for sock in self._sockets:
                self.broker.reactor.watch(sock.fileno(), select.EPOLLIN, functools.partial(self._accept, sock))
        except BaseException:
            self.rest()
            raise

    def rest(self) -> None:
        """Take no clients until :meth:`open`."""
        self._watched = False
        for sock in self._sockets:
            self.broker.reactor.forget(sock.fileno())

    def drain(self) -> None:
        """Take the clients that wait already."""
        for sock in self._sockets:
            for _ in range(MAX_CLIENTS_PER_PARTITION):
                if not self._accept_one(sock):
                    break

    def close(self) -> None:
        """Take no more clients; those there are go on. Calling this twice is fine."""
        if self._sockets:
            self.rest()
            for sock in self._sockets:
                sock.close()
            self._sockets = []

    def joined(self, client: Client) -> None:
        """Count a client in."""
        self.clients.add(client)
        self._gates.quota.take(self.partition.id)

    def left(self, client: Client) -> None:
        """Count a client out."""
        self.clients.discard(client)
        self._gates.quota.give_back(self.partition.id)
        self._gates.there_is_room()

    def _accept(self, sock: socket.socket, events: int) -> None:
        until = self.broker.reactor.clock() + TURN_SECONDS
        for _ in range(ACCEPTS_PER_TURN):
            if not self._watched or not self._accept_one(sock) or self.broker.reactor.clock() >= until:
                return

    def _accept_one(self, sock: socket.socket) -> bool:
        if not self._gates.quota.has_room(self.partition.id):
            self._gates.let_rest(self)
            return False
        try:
            connection, address = sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:  # EMFILE, ENFILE, ENOMEM: the client stays in the kernel's queue
            self._gates.complain(error)
            self._gates.let_rest(self)
            return False
        connection.settimeout(None)  # whatever socket.setdefaulttimeout() says in a program with a broker
        Client(self, connection, address if isinstance(address, str) else "")
        return True


class Gates:
    """The gates of all partitions, and the bound on the clients of all together.

    Args:
        broker: the broker.
        descriptors: how many descriptors the clients of all partitions may take.
    """

    def __init__(self, broker: Broker, descriptors: int) -> None:
        self.broker = broker
        self.quota = Quota(broker.tree.host.id, descriptors, MAX_CLIENTS_PER_PARTITION)
        self._by_partition: dict[VmId, Gate] = {}
        self._resting: OrderedDict[Gate, None] = OrderedDict()
        self._looks = False
        self._complained_at: float | None = None

    def __iter__(self) -> Iterator[Gate]:
        return iter(list(self._by_partition.values()))

    def __len__(self) -> int:
        return len(self._by_partition)

    def clients(self) -> list[Client]:
        """The clients of all partitions."""
        return [client for gate in self for client in gate.clients]

    def add(self, partition: Partition, sockets: list[socket.socket]) -> None:
        """Make a gate of a partition's control sockets, and open it.

        Raises:
            OSError: they cannot be watched; they were closed.
        """
        gate = Gate(self, partition, sockets)
        try:
            gate.open()
        except BaseException:
            gate.close()
            raise
        self._by_partition[partition.id] = gate

    def remove(self, partition: Partition) -> None:
        """Close a partition's gate and drop its clients; nothing where there is none."""
        gate = self._by_partition.pop(partition.id, None)
        if gate is not None:
            self._resting.pop(gate, None)
            gate.close()
            for client in list(gate.clients):
                client.drop()

    def close(self) -> None:
        """Close all gates; the clients there are go on."""
        for gate in self:
            gate.close()
        self._resting.clear()

    def let_rest(self, gate: Gate) -> None:
        """Open a gate again when there is room."""
        gate.rest()
        self._resting[gate] = None
        if not self._looks:
            self._looks = True
            self.broker.reactor.after(REST_SECONDS, self._look)

    def there_is_room(self) -> None:
        """A client left: the gate that rests the longest may have its turn."""
        if self._resting:
            self._wake(next(iter(self._resting)))

    def complain(self, error: OSError) -> None:
        """Say in the log, now and then, that there are no new clients."""
        now = self.broker.reactor.clock()
        if self._complained_at is None or now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            log.warning("no new clients for a moment: %s", error.strerror)

    def _look(self) -> None:
        self._looks = False
        for gate in list(self._resting):
            self._wake(gate)
        if self._resting and not self._looks:
            self._looks = True
            self.broker.reactor.after(REST_SECONDS, self._look)

    def _wake(self, gate: Gate) -> None:
        if not self.quota.has_room(gate.partition.id):
            self._resting.move_to_end(gate)
            return
        del self._resting[gate]
        try:
            gate.open()
        except OSError as error:
            self.complain(error)
            self.let_rest(gate)
