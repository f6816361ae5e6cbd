"""The broker: its parts, put together."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import sys
from typing import Final

from hvsock.addresses import SERVICE_WILDCARD, ServiceId
from hvsock.errors import HvsockError, UsageError
from hvsock.fabric.reactor import Reactor
from hvsock.topology.access import Owner
from hvsock.topology.decision import Rules
from hvsock.topology.partitions import Kind, Partition

from .clients import MAX_REPLIES_BYTES, Deadlines
from .connections import Connections
from .counters import Counters
from .folder import SOCKET_TYPES, FabricFolder
from .gates import Gates
from .handover import MAX_UNDELIVERED_PER_PARTITION, Delivery
from .listeners import Listener, Listeners
from .notices import Notices
from .quota import Quota
from .services import Services
from .verdicts import Verdicts
from .waiting import WaitingRoom

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

log = logging.getLogger(__name__)

MAX_PARTITIONS: Final = 4096
"""Partitions of one fabric: four times the 1,024 VMs that a Hyper-V host runs. Each takes two descriptors."""
PARTITIONS_SHARE: Final = 8
"""There are at most this fraction (1/8) of the broker's descriptors as many partitions, which take 1/4 of them."""
CLIENTS_SHARE: Final = 3
"""All clients together have up to this fraction (1/3) of the broker's descriptors."""
UNDELIVERED_SHARE: Final = 4
"""Connections that nobody accepted yet have up to this fraction (1/4) of the broker's descriptors."""
IDLE_CHECK_SECONDS: Final = 0.01
"""Pause between two looks, while the broker stops, at whether requests are still under way."""


class Broker:
    """One fabric's control process, or thread.

    Args:
        folder: the fabric's folder, locked for this broker, which closes it (not when this raises).

    Raises:
        StateError: a file of the fabric cannot be used.
        OSError: a control socket of the host cannot be made.
    """

    def __init__(self, folder: FabricFolder) -> None:
        self.folder = folder
        self.tree = folder.load_tree()
        self.bad_requests = 0
        self.deliveries: set[Delivery] = set()
        host = self.tree.host.id
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_partitions = max(1, min(MAX_PARTITIONS, descriptors // PARTITIONS_SHARE))
        self.undelivered = Quota(host, descriptors // UNDELIVERED_SHARE, MAX_UNDELIVERED_PER_PARTITION)
        self.replies = Quota(host, MAX_REPLIES_BYTES, MAX_REPLIES_BYTES)
        with contextlib.ExitStack() as undo:
            self.reactor = Reactor()
            undo.callback(self.reactor.close)
            self.started = self.reactor.clock()
            self.deadlines = Deadlines(self)
            self.waiting = WaitingRoom(self.reactor)
            self.services = Services(folder.registry)
            undo.callback(self.services.close)
            self.listeners = Listeners(folder.listeners, self.tree)
            undo.callback(self.listeners.close)
            self.counters = Counters(folder.state("counters"))
            undo.callback(self.counters.close)
            self.connections = Connections(folder.state("connections"))
            undo.callback(self.connections.close)
            for row in self.connections.recovered:
                self.counters.accepted(row, 0.0)
            owner = Owner(os.geteuid(), folder.admin_gid)
            self._rules: Rules[Listener] = Rules(
                self.tree, self.services.by_id, self.listeners.by_key, owner, self.services.defaults
            )
            self.verdicts = Verdicts(self._rules, self.listeners)
            self.notices = Notices(self)
            folder.save_tree(self.tree)
            folder.remove_stale_partitions(self.tree)
            self.gates = Gates(self, descriptors // CLIENTS_SHARE)
            undo.callback(self.gates.close)
            for partition in self.tree:
                self._reopen(partition)
            self.notices.start()
            undo.pop_all()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self.reactor.run()

    def stop(self) -> None:
        """End :meth:`run` at once; safe from any thread and from signal handlers."""
        self.reactor.stop()

    def stop_gently(self, grace_seconds: float) -> None:
        """Take no new requests, let those under way end for up to `grace_seconds`, then end :meth:`run`.

        To be called in the reactor's thread. Established connections have nothing to do with it.
        """
        self._remove_control_sockets()
        for gate in self.gates:
            gate.drain()
        self.gates.close()
        self.reactor.after(grace_seconds, self.reactor.stop)
        self._stop_when_idle()

    def _stop_when_idle(self) -> None:
        if self.gates.clients():
            self.reactor.after(IDLE_CHECK_SECONDS, self._stop_when_idle)
        else:
            self.reactor.stop()

    def close(self) -> None:
        """Close every descriptor of the broker and let go of the folder; listeners and connections live on."""
        self._remove_control_sockets()
        self.close_descriptors()
        self.services.close()
        self.counters.close()
        self.connections.close()

    def close_descriptors(self) -> None:
        """Close sockets and the reactor, and touch nothing else: what a forked child has to do.

        The reactor goes first: its epoll is the parent's too, and must not be told to forget anything.
        """
        self.reactor.close()
        clients = self.gates.clients()
        self.gates.close()
        for client in clients:
            if client.handover is not None:
                client.handover.close_mark()
            client.sock.close()
        for delivery in list(self.deliveries):
            delivery.close()
        self.listeners.close()
        self.folder.close()

    def _remove_control_sockets(self) -> None:
        for partition in self.tree:
            self.folder.remove_control_sockets(partition)

    # -- the rules, over the registry as it is now

    def look(self) -> None:
        """See what any process has changed in the registry."""
        services = self.services.look(self.reactor.clock())
        if services is not self._rules.services:
            self._rules.services = services
            self._rules.defaults = self.services.defaults
            self.notices.services_changed(services)

    @property
    def rules(self) -> Rules[Listener]:
        """The rules, over the registry as it is now."""
        self.look()
        return self._rules

    def row_of(self, service_id: ServiceId) -> int:
        """The counter row of a service; services that are not registered share one."""
        return self.counters.row_of(service_id if service_id in self.services.by_id else SERVICE_WILDCARD)

    def count_bad_request(self) -> None:
        """Count a client that broke the protocol."""
        self.bad_requests += 1

    # -- partitions

    def add_partition(self, partition: Partition, owner_uid: int | None) -> Partition:
        """Make a partition with its folder and control sockets; returns it with its CID.

        Raises:
            UsageError: the fabric is full, or the tree refuses it; nothing was made.
            HvsockError: its folder or its sockets cannot be made; nothing is left of it.
        """
        if len(self.tree) >= self.max_partitions:
            raise UsageError(
                f"this fabric has {self.max_partitions} partitions, the most that it may have; remove some first"
            )
        partition = self.tree.add(partition)
        try:
            self.folder.make_partition(partition, owner_uid)
            self._open_gate(partition)
            self.folder.save_tree(self.tree)
        except BaseException as error:
            self.gates.remove(partition)
            self.tree.remove(partition)
            self.folder.remove_partition(partition)
            if isinstance(error, OSError):
                raise HvsockError(f"the partition cannot be made: {error.strerror}") from error
            raise
        return partition

    def remove_partition(self, partition: Partition) -> None:
        """Remove a partition: its folder, its listeners, its pending requests and its services' settings.

        Raises:
            UsageError: it is the host, or partitions run in it; nothing was changed.
            HvsockError: that cannot be written down; nothing was changed.
        """
        self.tree.remove(partition)
        try:
            self.folder.save_tree(self.tree)
        except OSError as error:
            self.tree.add(partition)
            raise HvsockError(f"the partition cannot be removed: {error.strerror}") from error
        self.gates.remove(partition)
        for listener in [one for one in self.listeners if one.partition == partition.id]:
            if listener.device:
                self.notices.cancel_all(listener)
            else:
                self.listeners.remove(listener)
            self.waiting.wake(listener)
        self.folder.remove_partition(partition)
        self.services.forget_vm(partition.id)

    def _reopen(self, partition: Partition) -> None:
        """Open a partition that was there before; if its folder's owner has spoilt it, that harms it alone."""
        try:
            self.folder.renew_partition(partition)
            self._open_gate(partition)
        except OSError as error:
            if partition.kind is Kind.HOST:
                raise
            log.error("the partition %r cannot be reached: %s", partition.name, error)

    def _open_gate(self, partition: Partition) -> None:
        sockets: list[socket.socket] = []
        try:
            for name, type_ in SOCKET_TYPES.items():
                sockets.append(self.folder.control_socket(partition, name, type_))
        except BaseException:
            for sock in sockets:
                sock.close()
            raise
        self.gates.add(partition, sockets)
