"""The listeners: sockets that the broker makes, binds in a folder that only it can enter, and gives away.

Beside each socket is a small file with its binding, so that a broker that is started again finds every
listener. The broker keeps no descriptor of them: a listener ends with the process that has it.

Whether somebody still has it the kernel tells when a datagram socket is connected to its path: a socket that
is there is of the wrong type for that (EPROTOTYPE), and does not notice; one that is gone refuses.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hvsock.addresses import Address, ServiceId, VmId
from hvsock.fabric import paths
from hvsock.fabric.messages import Flag
from hvsock.topology.partitions import Tree

from .quota import Quota

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: listeners are AF_UNIX sockets")

if TYPE_CHECKING:
    from .handover import Handover

log = logging.getLogger(__name__)

MAX_LISTENERS: Final = 98_304
"""Bound sockets in one fabric. Each is two files, and some 1.5 KiB of the broker's memory."""
MAX_LISTENERS_PER_PARTITION: Final = 16_384
"""Bound sockets in one partition: as many as the registry holds services."""
SWEEP_STEP: Final = 8
"""Listeners looked after with each bind, in turn: dead ones go twice as fast as new ones come, and more."""
FULL_SWEEP_STEP: Final = 256
"""Listeners looked after with each bind while a partition has all that it may have: less than 2 ms."""
TYPES: Final = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
_RECORD_SUFFIX = ".json"
_NEW_SUFFIX = ".new"


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
        pid: the process that bound it, 0 from a namespace that the broker does not see; others may have it by now.
        flags: options of the socket at its bind; DEVICE makes it the one of a VM's device.
        listening: whether listen() was called.
        waiting: connects that found its backlog full, the oldest first.
        device: whether it is the one of a VM's device.
    """

    id: bytes
    partition: VmId
    vm_id: VmId
    service_id: ServiceId
    type: int
    uid: int
    pid: int
    flags: Flag = Flag.NONE
    listening: bool = False
    waiting: OrderedDict[Handover, None] = field(default_factory=OrderedDict)
    device: bool = field(init=False)

    def __post_init__(self) -> None:
        self.device = bool(self.flags & Flag.DEVICE)

    @property
    def key(self) -> tuple[VmId, ServiceId]:
        """What connects look it up by."""
        return self.partition, self.service_id


class Listeners:
    """All listeners of the fabric, in memory and in `folder`.

    ``by_key`` is what the rules match against, ``devices`` are those of devices by partition. Dead ones may be
    among all these until they are looked after.

    Args:
        folder: the folder of the sockets; only the broker's user may enter it.
        tree: the partitions that there are; what is left of others is removed.
    """

    def __init__(self, folder: str, tree: Tree) -> None:
        self.folder = folder
        self.by_key: dict[tuple[VmId, ServiceId], list[Listener]] = {}
        self.devices: dict[VmId, Listener] = {}
        self.changes = 0  # counts up with every change of what connects may find
        self._quota = Quota(tree.host.id, MAX_LISTENERS, MAX_LISTENERS_PER_PARTITION)
        self._by_id: dict[bytes, Listener] = {}
        self._in_turn: deque[Listener] = deque()
        self._orphans: list[Listener] = []
        self._probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self._load(tree)
        except BaseException:
            self._probe.close()
            raise

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._by_id.values())

    def close(self) -> None:
        """Close the broker's own descriptor; the listeners live on. Calling this twice is fine."""
        self._probe.close()

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
        return any(self._keep(listener) for listener in bound)

    def has_room(self, partition: VmId) -> bool:
        """Whether one more may be bound in `partition`; some dead ones are removed on the way."""
        self._look_after(SWEEP_STEP)
        if self._quota.has_room(partition):
            return True
        self._look_after(FULL_SWEEP_STEP)
        return self._quota.has_room(partition)

    def bind(
        self, partition: VmId, address: Address, type_: int, uid: int, pid: int, flags: Flag = Flag.NONE
    ) -> tuple[Listener, socket.socket]:
        """Make a socket bound to `address`; the caller sends it to its owner and closes it.

        Raises:
            OSError: no descriptor or no space is left; nothing was made.
        """
        listener_id = os.urandom(16)
        sock = socket.socket(socket.AF_UNIX, type_)
        try:
            listener = Listener(listener_id, partition, address.vm_id, address.service_id, type_, uid, pid, flags)
            self._write(listener, listening=False)
            paths.at(self.folder, listener_id.hex(), sock.bind)
        except BaseException:
            sock.close()
            self._unlink(listener_id)
            raise
        self._add(listener)
        return listener, sock

    def mark_listening(self, listener: Listener) -> None:
        """Let connects go to it from now on; written down, so that a broker started again knows.

        Raises:
            OSError: it cannot be written down; nothing was changed.
        """
        if not listener.listening:
            self._write(listener, listening=True)
            listener.listening = True
            self.changes += 1

    def remove(self, listener: Listener) -> None:
        """Forget a listener and unlink its socket; who still has the socket gets no new connections."""
        if self.forget(listener):
            self.unlink(listener)

    def unlink(self, listener: Listener) -> None:
        """Unlink the socket of a listener that was forgotten."""
        self._unlink(listener.id)

    def forget(self, listener: Listener) -> bool:
        """Have no connects go to a listener any more; its socket stays. Tells whether it was known."""
        if self._by_id.pop(listener.id, None) is None:
            return False
        self.changes += 1
        self._quota.give_back(listener.partition)
        siblings = self.by_key[listener.key]
        siblings.remove(listener)
        if not siblings:
            del self.by_key[listener.key]
        if listener.device:
            del self.devices[listener.partition]
        return True

    def take_orphans(self) -> list[Listener]:
        """The listeners of devices whose partitions were removed by a broker that could not tell them."""
        orphans, self._orphans = self._orphans, []
        return orphans

    def alive(self, listener: Listener) -> bool:
        """Whether somebody has the socket."""
        try:
            paths.at(self.folder, listener.id.hex(), self._probe.connect)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # EPROTOTYPE; with any other error, nobody can tell
        return True

    def sweep(self) -> None:
        """Remove the listeners whose sockets are gone; takes some 5 µs for each."""
        for listener in list(self._by_id.values()):
            self._keep(listener)

    def _look_after(self, count: int) -> None:
        for _ in range(min(count, len(self._in_turn))):
            listener = self._in_turn.popleft()
            if listener.id in self._by_id and self._keep(listener):
                self._in_turn.append(listener)

    def _keep(self, listener: Listener) -> bool:
        if self.alive(listener):
            return True
        self.remove(listener)
        return False

    def _add(self, listener: Listener) -> None:
        self.changes += 1
        self._by_id[listener.id] = listener
        self._in_turn.append(listener)
        self._quota.take(listener.partition)
        self.by_key.setdefault(listener.key, []).append(listener)
        if listener.device:
            self.devices[listener.partition] = listener

    def _write(self, listener: Listener, *, listening: bool) -> None:
        record = {
            "partition": listener.partition,
            "vm_id": listener.vm_id,
            "service_id": listener.service_id,
            "type": int(listener.type),
            "uid": listener.uid,
            "pid": listener.pid,
            "flags": int(listener.flags),
            "listening": listening,
        }
        path = os.path.join(self.folder, listener.id.hex() + _RECORD_SUFFIX)
        with open(path + _NEW_SUFFIX, "w", encoding="ascii") as file:
            json.dump(record, file)
        os.replace(path + _NEW_SUFFIX, path)

    def _unlink(self, listener_id: bytes) -> None:
        name = listener_id.hex()
        for file in (name, name + _RECORD_SUFFIX, name + _RECORD_SUFFIX + _NEW_SUFFIX):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.folder, file))

    def _load(self, tree: Tree) -> None:
        names = os.listdir(self.folder)
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix == _RECORD_SUFFIX:
                try:
                    listener = self._read(stem)
                except Exception as error:
                    log.warning("the record of a listener cannot be read and is removed: %s: %s", name, error)
                    continue
                if listener.partition in tree and self.alive(listener):
                    self._add(listener)
                elif listener.device and self.alive(listener):
                    self._orphans.append(listener)
        kept = {listener.id.hex() for listener in (*self._by_id.values(), *self._orphans)}
        for name in names:
            if name.removesuffix(_RECORD_SUFFIX) not in kept:
                try:
                    os.unlink(os.path.join(self.folder, name))
                except OSError as error:
                    log.warning("what does not belong in %s stays: %s: %s", self.folder, name, error.strerror)

    def _read(self, stem: str) -> Listener:
        with open(os.path.join(self.folder, stem + _RECORD_SUFFIX), encoding="ascii") as file:
            record: Any = json.load(file)
        listener = Listener(
            bytes.fromhex(stem),
            VmId(record["partition"]),
            VmId(record["vm_id"]),
            ServiceId(record["service_id"]),
            int(record["type"]),
            int(record["uid"]),
            int(record["pid"]),
            Flag(record.get("flags", 0)),  # a broker that knew none wrote none
            bool(record["listening"]),
        )
        if listener.id.hex() != stem or len(listener.id) != 16 or listener.type not in TYPES:
            raise ValueError("not a binding")
        return listener
