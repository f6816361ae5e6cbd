"""A fabric in this process: a broker in a thread, in a folder of its own, for tests and small programs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hvsock.addresses import ServiceId, VmId
from hvsock.registry import Registry, ServiceEntry

from . import client, paths
from .broker.broker import Broker
from .broker.folder import FabricFolder

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

_running: weakref.WeakSet[Broker] = weakref.WeakSet()


def _close_in_child() -> None:
    # a forked child must not hold the parent's control sockets, or connections on their way
    for broker in list(_running):
        broker.close_descriptors()
    _running.clear()


os.register_at_fork(after_in_child=_close_in_child)


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
        self._temporary = tempfile.mkdtemp(prefix="hvsock-") if folder is None else None
        self.folder = os.path.abspath(folder or self._temporary or "")
        try:
            self._start()
        except BaseException:
            self._remove_temporary()
            raise
        self.registry = Registry(os.path.join(self.folder, "registry"))
        self.host = PartitionHandle("host", self._broker.tree.host.id, paths.host_folder(self.folder))

    def _start(self) -> None:
        locked = FabricFolder(self.folder)
        try:
            self._broker = Broker(locked)
        except BaseException:
            locked.close()
            raise
        _running.add(self._broker)
        self._thread = threading.Thread(target=self._broker.run, name="hvsock-broker", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self._broker.stop()
        self._thread.join()
        _running.discard(self._broker)
        self._broker.close()

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

    def register(self, name: str, id: str | None = None) -> ServiceEntry:
        """Register a service under `name`, with a fresh id by default."""
        return self.registry.register(name, None if id is None else ServiceId(id))

    def close(self) -> None:
        """End the broker; established connections live on. Calling this twice is fine."""
        if self._broker in _running:
            self.registry.close()
            self._stop()
            self._remove_temporary()

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
