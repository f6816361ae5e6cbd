"""A fabric in this process: a broker in a thread, in a folder of its own, for tests and small programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from hvsock.addresses import ServiceId, VmId
from hvsock.registry import Registry, ServiceEntry

from . import client, paths
from .broker.broker import Broker
from .broker.folder import FabricFolder

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

MEMORY_FOLDER: Final = "/dev/shm"
"""Where temporary fabrics are, unless TMPDIR says where: nothing of them is kept, so no disk has to write it."""

_running: weakref.WeakSet[Broker] = weakref.WeakSet()
_held = threading.local()


def _before_fork() -> None:
    # between two turns of its reactor, a broker holds no connection that the child would not know of
    _held.brokers = sorted(_running, key=id)
    for broker in _held.brokers:
        broker.reactor.turn.acquire()


def _after_fork_in_parent() -> None:
    for broker in _held.__dict__.pop("brokers", ()):
        broker.reactor.turn.release()


def _after_fork_in_child() -> None:
    # a child must not hold the parent's control sockets, or connections on their way
    for broker in _held.__dict__.pop("brokers", ()):
        broker.reactor.turn.release()
        broker.close_descriptors()
    _running.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)


def _temporary_folder() -> str:
    if "TMPDIR" not in os.environ:
        with contextlib.suppress(OSError):  # there is none, or it is full
            return tempfile.mkdtemp(prefix="hvsock-", dir=MEMORY_FOLDER)
    return tempfile.mkdtemp(prefix="hvsock-")


@dataclass(frozen=True, slots=True)
class PartitionHandle:
    """One partition of an embedded fabric.

    Attributes:
        name: its name.
        id: its VmId.
        folder: its folder; give it to sockets as `partition`, or to programs as HVSOCK_PARTITION.
    """

    name: str
    id: VmId
    folder: str


class EmbeddedFabric:
    """A fabric whose broker is a thread of this process, from construction to :meth:`close`.

    Args:
        folder: the fabric's folder; a temporary one, removed at the end, by default.

    Raises:
        StateError: a broker runs in that folder already.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._temporary = _temporary_folder() if folder is None else None
        self.folder = os.path.abspath(folder or self._temporary or "")
        self._broker: Broker | None = None
        self._registry: Registry | None = None
        try:
            broker = self._start()
            self.registry = self._registry = Registry(os.path.join(self.folder, "registry"))
        except BaseException:
            self.close()
            raise
        self.host = PartitionHandle("host", broker.tree.host.id, paths.host_folder(self.folder))

    def _start(self) -> Broker:
        locked = FabricFolder(self.folder)
        try:
            broker = Broker(locked)
        except BaseException:
            locked.close()
            raise
        thread = threading.Thread(target=broker.run, name="hvsock-broker", daemon=True)
        _running.add(broker)
        try:
            thread.start()
        except BaseException:
            _running.discard(broker)
            broker.close()
            raise
        self._broker, self._thread = broker, thread
        return broker

    def _stop(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None and broker in _running:  # else this is a child of the process that runs it
            broker.stop()
            self._thread.join()
            _running.discard(broker)
            broker.close()

    def restart(self) -> None:
        """End the broker and start another: established connections and listeners live on."""
        self._stop()
        self._start()

    def create_partition(
        self, name: str, kind: str = "vm", *, parent: str | None = None, group: str | None = None
    ) -> PartitionHandle:
        """Make a partition.

        Raises:
            UsageError: the name is taken or cannot be one, or there is no such parent.
        """
        made = client.call(self.host.folder, "partition.create", name=name, kind=kind, parent=parent, group=group)
        return PartitionHandle(made["name"], VmId(made["id"]), made["folder"])

    def remove_partition(self, name: str) -> None:
        """Remove a partition; its connections go on, new ones are refused."""
        client.call(self.host.folder, "partition.remove", name=name)

    def register(self, name: str, id: str | None = None, *, port_alias: int | None = None) -> ServiceEntry:
        """Register a service under `name`, with a fresh id by default."""
        return self.registry.register(name, None if id is None else ServiceId(id), port_alias=port_alias)

    def close(self) -> None:
        """End the broker; established connections live on. Calling this twice is fine.

        In a child of the process that runs it, this does nothing.
        """
        if self._broker is not None and self._broker not in _running:
            return
        self._stop()
        if self._registry is not None:
            self._registry.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
