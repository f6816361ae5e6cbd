"""The fabric's folder: its lock, its modes, and the partitions with their control sockets.

Everything in it belongs to the broker's user alone, except the folders of partitions that were given to
another user. Such a user may put anything there, so the broker opens nothing in there, follows no link and
goes through no folder: it moves finished sockets in, and unlinks names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
from typing import Any, Final

from hvsock.addresses import VmId
from hvsock.errors import StateError
from hvsock.fabric import paths
from hvsock.topology.partitions import NO_CID, Kind, Partition, Tree

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: control sockets are AF_UNIX sockets")

log = logging.getLogger(__name__)

CONTROL_BACKLOG: Final = 4096
"""Connects that may wait at a control socket (Linux cuts it to net.core.somaxconn); more get ENOBUFS."""
STATE_VERSION: Final = 1
SOCKET_TYPES: Final = {
    paths.STREAM_SOCKET: socket.SOCK_STREAM,
    paths.SEQPACKET_SOCKET: socket.SOCK_SEQPACKET,
}
"""The control sockets of a partition and their types."""
_PARTITIONS = "partitions"
_NEW_SUFFIX = ".new"
_LEFT_PREFIX = ".left-"


class FabricFolder:
    """The folder of one fabric, locked for one broker.

    Args:
        path: the folder; made if it is not there.
        admin_gid: the group whose members administer the fabric; None keeps what the folder has.
        shared: every user of the machine may reach the host's sockets (what they may do, the services'
            settings say); else only the owner and the admin group.

    Raises:
        StateError: another broker runs here, or the folder is somebody else's or cannot be made.
    """

    def __init__(self, path: str, *, admin_gid: int | None = None, shared: bool = False) -> None:
        self.path = os.path.abspath(path)
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            if os.stat(self.path).st_uid != os.geteuid():
                raise StateError(f"{self.path} belongs to another user; set {paths.FOLDER_VARIABLE} to your own")
            self._lock: int | None = self._take_lock()
            try:
                self.admin_gid = self._prepare(admin_gid, shared)
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise StateError(f"{error.filename or self.path} cannot be used: {error.strerror}") from error

    @property
    def listeners(self) -> str:
        """Where the listeners' sockets are."""
        return os.path.join(self.path, "listeners")

    @property
    def registry(self) -> str:
        """Where the registry is."""
        return os.path.join(self.path, "registry")

    def state(self, name: str) -> str:
        """The path of a file that only the broker writes."""
        return os.path.join(self.path, "state", name)

    def close(self) -> None:
        """Let go of the lock; another broker may start. Calling this twice is fine."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> int:
        descriptor = os.open(os.path.join(self.path, "broker.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            pid = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StateError(f"a broker runs in {self.path} already (process {pid})") from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _prepare(self, admin_gid: int | None, shared: bool) -> int | None:
        """Make the folders with their modes; returns the admin group."""
        registry_was_there = os.path.isdir(self.registry)
        for name in ("registry", _PARTITIONS, "listeners", "state"):
            os.makedirs(os.path.join(self.path, name), mode=0o700, exist_ok=True)
        if admin_gid is None and registry_was_there and os.stat(self.registry).st_mode & 0o020:
            admin_gid = os.stat(self.registry).st_gid
        others = 0o005 if shared else 0
        group = 0o050 if shared or admin_gid is not None else 0
        if admin_gid is not None:
            for name in ("", _PARTITIONS, "registry", "state"):
                os.chown(os.path.join(self.path, name), -1, admin_gid)
        for name in ("", _PARTITIONS, "state"):
            os.chmod(os.path.join(self.path, name), 0o700 | group | others)
        os.chmod(self.listeners, 0o700)
        os.chmod(self.registry, (0o700 | group if admin_gid is None else 0o2770) | others)
        self._host_mode = 0o700 | group | others
        return admin_gid

    # -- partitions

    def partition(self, partition: Partition) -> str:
        """The path of a partition's folder."""
        name = paths.HOST_FOLDER if partition.kind is Kind.HOST else str(partition.id)
        return os.path.join(self.path, _PARTITIONS, name)

    def make_partition(self, partition: Partition, owner_uid: int | None) -> None:
        """Make the folder of a new partition, open to `owner_uid` alone (default: the broker's user).

        Whoever can open the folder speaks as that partition.

        Raises:
            OSError: it cannot be made, or not be given to that user.
        """
        path = self.partition(partition)
        with contextlib.suppress(FileNotFoundError):
            self._remove_folder(path)  # of one with the same id, before
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)
        if owner_uid is not None:
            os.chown(path, owner_uid, -1)

    def renew_partition(self, partition: Partition) -> None:
        """Make the folder of a partition that was there before, if it is gone; the host's gets the fabric's mode.

        Raises:
            OSError: it cannot be made.
        """
        path = self.partition(partition)
        os.makedirs(path, mode=0o700, exist_ok=True)
        if partition.kind is Kind.HOST:
            if self.admin_gid is not None:
                os.chown(path, -1, self.admin_gid)
            os.chmod(path, self._host_mode)

    def remove_partition(self, partition: Partition) -> None:
        """Remove a partition's folder; what others put there is left under another name."""
        try:
            self._remove_folder(self.partition(partition))
        except FileNotFoundError:
            pass
        except OSError as error:
            log.error("the folder of the removed partition %r stays: %s", partition.name, error)

    def remove_stale_partitions(self, tree: Tree) -> None:
        """Remove the folders of partitions that are not in `tree`: left by a broker that was killed."""
        known = {os.path.basename(self.partition(partition)) for partition in tree}
        folder = os.path.join(self.path, _PARTITIONS)
        for name in os.listdir(folder):
            if name not in known:
                try:
                    self._remove_folder(os.path.join(folder, name))
                except OSError as error:
                    log.error("what does not belong in %s stays: %s", folder, error)

    def _remove_folder(self, path: str) -> None:
        """Remove a folder if there is nothing but our sockets in it; else put it out of the way."""
        for name in SOCKET_TYPES:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(path, name))
        try:
            os.rmdir(path)
        except FileNotFoundError:
            raise
        except OSError:
            head, name = os.path.split(path)
            if not name.startswith(_LEFT_PREFIX):
                os.rename(path, os.path.join(head, _LEFT_PREFIX + os.urandom(8).hex()))

    def control_socket(self, partition: Partition, name: str, type_: int) -> socket.socket:
        """A non-blocking listening socket called `name` in a partition's folder, in place of any there was.

        Everybody may connect who can enter the folder. The socket is finished where nobody else can touch
        it and takes its name in one step, so a connector finds the old one or the new one.

        Raises:
            OSError: it cannot be made, or not be put there.
        """
        fresh = f"control-{os.urandom(8).hex()}{_NEW_SUFFIX}"
        path = os.path.join(self.listeners, fresh)
        sock = socket.socket(socket.AF_UNIX, type_)
        try:
            sock.setblocking(False)
            paths.at(self.listeners, fresh, sock.bind)
            os.chmod(path, 0o666)
            sock.listen(CONTROL_BACKLOG)
            os.replace(path, os.path.join(self.partition(partition), name))
        except BaseException:
            sock.close()
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return sock

    def remove_control_sockets(self, partition: Partition) -> None:
        """Take the names of a partition's control sockets away, if they are there."""
        for name in SOCKET_TYPES:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.partition(partition), name))

    # -- the partitions, written down

    def save_tree(self, tree: Tree) -> None:
        """Write the partitions down, durably: what is told to a caller survives a crash.

        Raises:
            OSError: that cannot be done; what was written down before stays.
        """
        partitions = [
            {"id": p.id, "name": p.name, "kind": p.kind, "parent": p.parent, "group": p.group, "cid": p.cid}
            for p in tree
        ]
        state = {"version": STATE_VERSION, "partitions": partitions, "resting_cids": list(tree.resting)}
        self._write_json("partitions.json", state)

    def load_tree(self) -> Tree:
        """The partitions as they were written down; a fresh host where nothing was.

        Raises:
            StateError: the file is damaged or of another version; it is left as it is.
        """
        return load_tree(self.path) or Tree(Partition(VmId.new(), "host", Kind.HOST))

    def _write_json(self, name: str, value: Any) -> None:
        path = self.state(name)
        descriptor = os.open(path + _NEW_SUFFIX, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + _NEW_SUFFIX, path)
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_tree(folder: str) -> Tree | None:
    """The partitions of the fabric in `folder` as its broker wrote them down; None where none ever ran.

    Raises:
        StateError: the file is damaged or of another version.
    """
    path = os.path.join(folder, "state", "partitions.json")
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
        if value["version"] != STATE_VERSION:
            raise StateError(f"{path} has version {value['version']}; this hvsock reads {STATE_VERSION}")
        host, *others = [
            Partition(
                VmId(one["id"]),
                one["name"],
                Kind(one["kind"]),
                None if one["parent"] is None else VmId(one["parent"]),
                one["group"],
                int(one.get("cid", NO_CID)),  # a partition that was made before there were any gets one now
            )
            for one in value["partitions"]
        ]
        tree = Tree(host, map(int, value.get("resting_cids", ())))
        for partition in others:
            tree.add(partition)
    except FileNotFoundError:
        return None
    except StateError:
        raise
    except Exception as error:  # whatever JSON there is, or none
        raise StateError(f"{path} cannot be read: {error}; move it away to start without partitions") from None
    return tree
