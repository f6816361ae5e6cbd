"""The listeners: sockets that the broker makes, binds in a folder that only it can enter, and gives away.

Beside each socket is a small file with its binding, so that a broker that is started again finds every
listener. The broker keeps no descriptor of them: a listener ends with the process that has it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hvsock.addresses import Address, ServiceId, VmId
from hvsock.fabric import paths

from .liveness import live_socket_inodes

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: listeners are AF_UNIX sockets")

if TYPE_CHECKING:
    from .handover import Handover
    from .reactor import Timer

log = logging.getLogger(__name__)

FIRST_SWEEP: Final = 256
"""Bound sockets at which the broker first looks for ones whose process is gone."""
_RECORD_SUFFIX = ".json"


@dataclass(slots=True, eq=False)
class Listener:
    """One bound socket, listening or not yet.

    Attributes:
        id: 16 random bytes; whoever has the socket knows them.
        partition: the partition that it is in.
        vm_id: the VmId that it is bound to.
        service_id: the service that it is bound to.
        type: SOCK_STREAM or SOCK_SEQPACKET.
        uid: the user who bound it.
        pid: the process that bound it; others may have it by now.
        inode: the socket's inode.
        listening: whether listen() was called.
        waiting: connects that found its backlog full, the oldest first.
        retry: the timer that tries them again.
    """

    id: bytes
    partition: VmId
    vm_id: VmId
    service_id: ServiceId
    type: int
    uid: int
    pid: int
    inode: int
    listening: bool = False
    waiting: deque[Handover] = field(default_factory=deque)
    retry: Timer | None = None

    @property
    def key(self) -> tuple[VmId, ServiceId]:
        """What connects look it up by."""
        return self.partition, self.service_id


class Listeners:
    """All listeners of the fabric, in memory and in `folder`.

    ``by_key`` is what the rules match against; ``per_partition`` counts them, and dead ones may be among
    them until the next sweep.

    Args:
        folder: the folder of the sockets; only the broker's user may enter it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.by_key: dict[tuple[VmId, ServiceId], list[Listener]] = {}
        self.per_partition: Counter[VmId] = Counter()
        self._by_id: dict[bytes, Listener] = {}
        self._sweep_at = FIRST_SWEEP
        self._load()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._by_id.values())

    def get(self, listener_id: bytes) -> Listener | None:
        """The listener with that id."""
        return self._by_id.get(listener_id)

    def named(self, socket_path: str) -> Listener | None:
        """The listener whose socket is bound to `socket_path`, as accept() tells it of a bound connector."""
        try:
            return self._by_id.get(bytes.fromhex(os.path.basename(socket_path)))
        except ValueError:
            return None

    def in_use(self, partition: VmId, address: Address) -> bool:
        """Whether a living socket in `partition` is bound to `address`; dead ones are removed on the way."""
        bound = [one for one in self.by_key.get((partition, address.service_id), ()) if one.vm_id == address.vm_id]
        if not bound:
            return False
        live = live_socket_inodes()
        for listener in bound:
            if listener.inode not in live:
                self.remove(listener)
        return any(listener.inode in live for listener in bound)

    def bind(
        self, partition: VmId, address: Address, type_: int, uid: int, pid: int
    ) -> tuple[Listener, socket.socket]:
        """Make a socket bound to `address`; the caller sends it to its owner and closes it.

        Raises:
            OSError: no descriptor or no space is left; nothing was made.
        """
        if len(self._by_id) >= self._sweep_at:
            self.sweep()
            self._sweep_at = max(FIRST_SWEEP, 2 * len(self._by_id))
        listener_id = os.urandom(16)
        sock = socket.socket(socket.AF_UNIX, type_)
        try:
            inode = os.fstat(sock.fileno()).st_ino
            listener = Listener(listener_id, partition, address.vm_id, address.service_id, type_, uid, pid, inode)
            self._write(listener)
            paths.at(self.folder, listener_id.hex(), sock.bind)
        except BaseException:
            sock.close()
            self._unlink(listener_id)
            raise
        self._add(listener)
        return listener, sock

    def mark_listening(self, listener: Listener) -> None:
        """Let connects go to it from now on; written down, so that a broker started again knows."""
        if not listener.listening:
            listener.listening = True
            self._write(listener)

    def remove(self, listener: Listener) -> None:
        """Forget a listener and unlink its socket; who still has the socket gets no new connections."""
        if self._by_id.pop(listener.id, None) is not None:
            self.per_partition[listener.partition] -= 1
        siblings = self.by_key.get(listener.key, [])
        if listener in siblings:
            siblings.remove(listener)
            if not siblings:
                del self.by_key[listener.key]
        self._unlink(listener.id)

    def sweep(self) -> None:
        """Remove the listeners whose sockets are gone."""
        live = live_socket_inodes()
        for listener in [one for one in self._by_id.values() if one.inode not in live]:
            self.remove(listener)

    def _add(self, listener: Listener) -> None:
        self._by_id[listener.id] = listener
        self.per_partition[listener.partition] += 1
        self.by_key.setdefault(listener.key, []).append(listener)

    def _write(self, listener: Listener) -> None:
        record = {
            "partition": listener.partition,
            "vm_id": listener.vm_id,
            "service_id": listener.service_id,
            "type": int(listener.type),
            "uid": listener.uid,
            "pid": listener.pid,
            "inode": listener.inode,
            "listening": listener.listening,
        }
        path = os.path.join(self.folder, listener.id.hex() + _RECORD_SUFFIX)
        with open(path + ".new", "w", encoding="ascii") as file:
            json.dump(record, file)
        os.replace(path + ".new", path)

    def _unlink(self, listener_id: bytes) -> None:
        for name in (listener_id.hex(), listener_id.hex() + _RECORD_SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, name))

    def _load(self) -> None:
        live = live_socket_inodes()
        for name in os.listdir(self.folder):
            stem, suffix = os.path.splitext(name)
            if suffix == _RECORD_SUFFIX:
                try:
                    listener = self._read(stem)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    log.warning("the record of a listener cannot be read and is removed: %s: %s", name, error)
                    listener = None
                if listener is not None and listener.inode in live:
                    self._add(listener)
        for name in os.listdir(self.folder):
            stem = os.path.splitext(name)[0]
            if name.endswith(".new") or not any(stem == known.hex() for known in self._by_id):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.folder, name))

    def _read(self, stem: str) -> Listener:
        with open(os.path.join(self.folder, stem + _RECORD_SUFFIX), encoding="ascii") as file:
            record = json.load(file)
        return Listener(
            bytes.fromhex(stem),
            VmId(record["partition"]),
            VmId(record["vm_id"]),
            ServiceId(record["service_id"]),
            int(record["type"]),
            int(record["uid"]),
            int(record["pid"]),
            int(record["inode"]),
            bool(record["listening"]),
        )
