"""The broker: its parts, put together."""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
from collections import Counter
from typing import Final

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import UsageError
from hvsock.fabric import paths
from hvsock.registry.store import Registry
from hvsock.topology.access import Owner, Service
from hvsock.topology.decision import Rules
from hvsock.topology.partitions import Partition

from .clients import MAX_CLIENTS_PER_PARTITION, REQUEST_SECONDS, Client, Gate
from .connections import Connections
from .counters import Counters
from .folder import FabricFolder, control_socket
from .handover import MAX_UNDELIVERED_PER_PARTITION, Delivery
from .listeners import Listener, Listeners
from .liveness import live_socket_inodes
from .reactor import Clock, Reactor, Timer

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

log = logging.getLogger(__name__)

MAX_PARTITIONS: Final = 4096
"""Partitions of one fabric: four times the 1,024 VMs that a Hyper-V host runs. Each takes two descriptors."""
DESCRIPTOR_SHARE: Final = 8
"""One partition may hold up to this fraction (1/8) of the broker's descriptors with its requests."""


class Broker:
    """One fabric's control process, or thread.

    Args:
        folder: the fabric's folder, locked for this broker, which closes it.
        clock: seconds, never going back.

    Raises:
        StateError: a file of the fabric cannot be used.
        OSError: a control socket cannot be made.
    """

    def __init__(self, folder: FabricFolder, *, clock: Clock | None = None) -> None:
        self.folder = folder
        self.reactor = Reactor() if clock is None else Reactor(clock)
        self.started = self.reactor.clock()
        self.tree = folder.load_tree()
        self.registry = Registry(folder.registry)
        self.listeners = Listeners(folder.listeners)
        self.counters = Counters(folder.state("counters"))
        self.connections = Connections(folder.state("connections"), live_socket_inodes)
        self.gates: dict[VmId, Gate] = {}
        self.undelivered: Counter[VmId] = Counter()
        self.deliveries: set[Delivery] = set()
        self.bad_requests = 0
        self._expected: dict[Client, float] = {}
        self._expiry: Timer | None = None
        self._services: dict[ServiceId, Service] = {}
        self._aliases: dict[ServiceId, ServiceId] = {}
        self._registry_version: int | None = None
        self._rules: Rules[Listener] = Rules(
            self.tree, self._services, self.listeners.by_key, Owner(os.geteuid(), folder.admin_gid)
        )
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_clients = min(MAX_CLIENTS_PER_PARTITION, max(1, descriptors // DESCRIPTOR_SHARE))
        self.max_undelivered = min(MAX_UNDELIVERED_PER_PARTITION, max(1, descriptors // DESCRIPTOR_SHARE))
        folder.save_tree(self.tree)
        folder.remove_stale_partitions(self.tree)
        for partition in self.tree:
            self._open_gate(partition, None)

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
        for gate in self.gates.values():
            gate.close()
        self._remove_control_sockets()
        self.reactor.after(grace_seconds, self.reactor.stop)
        self._stop_when_idle()

    def _stop_when_idle(self) -> None:
        if any(gate.clients for gate in self.gates.values()):
            self.reactor.after(_IDLE_CHECK_SECONDS, self._stop_when_idle)
        else:
            self.reactor.stop()

    def close(self) -> None:
        """Close every descriptor of the broker and let go of the folder; listeners and connections live on."""
        self._remove_control_sockets()
        self.close_descriptors()
        self.registry.close()
        self.counters.close()
        self.connections.close()

    def close_descriptors(self) -> None:
        """Close sockets and the reactor, and touch nothing else: what a forked child has to do."""
        for gate in self.gates.values():
            gate.close()
            for client in list(gate.clients):
                client.sock.close()
        for delivery in list(self.deliveries):
            delivery.close()
        self.reactor.close()
        self.folder.close()

    def _remove_control_sockets(self) -> None:
        for partition in self.tree:
            for name in (paths.STREAM_SOCKET, paths.SEQPACKET_SOCKET):
                try:
                    os.unlink(os.path.join(self.folder.partition(partition), name))
                except OSError:
                    continue  # gone already, or its folder is

    # -- the rules, over the registry as it is now

    @property
    def rules(self) -> Rules[Listener]:
        """The rules; changes of the registry by any process count from the next look on."""
        self._refresh()
        return self._rules

    def real_service(self, service_id: ServiceId) -> ServiceId:
        """The service that a ServiceId means: a port alias of the template stands for its service."""
        self._refresh()
        return self._aliases.get(service_id, service_id)

    def row_of(self, service_id: ServiceId) -> int:
        """The counter row of a service; services that are not registered share one."""
        self._refresh()
        return self.counters.row_of(service_id if service_id in self._services else _NO_SERVICE)

    def _refresh(self) -> None:
        version = self.registry.version()
        if version == self._registry_version:
            return
        self._registry_version = version
        entries = self.registry.entries()
        self._services = {entry.id: entry.service() for entry in entries}
        self._aliases = {
            ServiceId.from_port(entry.port_alias): entry.id for entry in entries if entry.port_alias is not None
        }
        self._rules.services = self._services

    # -- partitions

    def add_partition(self, partition: Partition, owner_uid: int | None) -> None:
        """Make a partition with its folder and control sockets.

        Raises:
            UsageError: the fabric is full, or the tree refuses it; nothing was made.
        """
        if len(self.tree) >= MAX_PARTITIONS:
            raise UsageError(f"this fabric has {MAX_PARTITIONS} partitions already; remove some first")
        self.tree.add(partition)
        try:
            self._open_gate(partition, owner_uid)
            self.folder.save_tree(self.tree)
        except OSError as error:
            self._close_gate(partition)
            self.tree.remove(partition)
            self.folder.remove_partition(partition)
            raise UsageError(f"the partition cannot be made: {error.strerror}") from error

    def remove_partition(self, partition: Partition) -> None:
        """Remove a partition: its folder, its listeners, its pending requests and its services' settings.

        Raises:
            UsageError: it is the host, or partitions run in it; nothing was changed.
        """
        self.tree.remove(partition)
        self.folder.save_tree(self.tree)
        self._close_gate(partition)
        for listener in [one for one in self.listeners if one.partition == partition.id]:
            self.listeners.remove(listener)
        self.folder.remove_partition(partition)
        self.registry.forget_vm(partition.id)

    def _open_gate(self, partition: Partition, owner_uid: int | None) -> None:
        folder = self.folder.make_partition(partition, owner_uid)
        sockets = [control_socket(folder, paths.STREAM_SOCKET, socket.SOCK_STREAM)]
        try:
            sockets.append(control_socket(folder, paths.SEQPACKET_SOCKET, socket.SOCK_SEQPACKET))
        except BaseException:
            sockets[0].close()
            raise
        self.gates[partition.id] = Gate(self, partition, sockets)

    def _close_gate(self, partition: Partition) -> None:
        gate = self.gates.pop(partition.id, None)
        if gate is not None:
            gate.close()
            for client in list(gate.clients):
                client.drop()

    # -- clients that owe something: a request, or taking an answer

    def expect(self, client: Client) -> None:
        """Drop `client` unless it is done, or unexpected again, within REQUEST_SECONDS."""
        self._expected[client] = self.reactor.clock() + REQUEST_SECONDS
        if self._expiry is None:
            self._expiry = self.reactor.after(REQUEST_SECONDS, self._drop_expired)

    def unexpect(self, client: Client) -> None:
        """It owes nothing now; calling this twice is fine."""
        self._expected.pop(client, None)

    def _drop_expired(self) -> None:
        now = self.reactor.clock()
        self._expiry = None
        while self._expected:
            client, deadline = next(iter(self._expected.items()))
            if deadline > now:
                self._expiry = self.reactor.after(deadline - now, self._drop_expired)
                return
            self.count_bad_request()
            client.drop()

    def count_bad_request(self) -> None:
        """Count a client that broke the protocol."""
        self.bad_requests += 1


_NO_SERVICE: Final = ServiceId("00000000-0000-0000-0000-000000000000")
_IDLE_CHECK_SECONDS: Final = 0.01
