"""The fabric's folder: its lock, its modes, and the partitions with their control sockets."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from typing import Any, Final

from hvsock.addresses import VmId
from hvsock.errors import HvsockError, StateError
from hvsock.fabric import paths
from hvsock.topology.partitions import Kind, Partition, Tree

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: control sockets are AF_UNIX sockets")

CONTROL_BACKLOG: Final = 4096
"""Connects that may wait at a control socket (Linux cuts it to net.core.somaxconn); more get ENOBUFS."""
STATE_VERSION: Final = 1


class FabricFolder:
    """The folder of one fabric, locked for one broker.

    Args:
        path: the folder; made if it is not there.
        admin_gid: the group whose members administer the fabric; None keeps what the folder has.
        shared: every user of the machine may reach the host's sockets (what they may do, the services'
            settings say); else only the owner and the admin group.

    Raises:
        StateError: another broker runs here, or the folder is somebody else's.
    """

    def __init__(self, path: str, *, admin_gid: int | None = None, shared: bool = False) -> None:
        self.path = os.path.abspath(path)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        if os.stat(self.path).st_uid not in (os.geteuid(),):
            raise StateError(f"{self.path} belongs to another user; set {paths.FOLDER_VARIABLE} to your own")
        self._lock = self._take_lock()
        try:
            self.admin_gid = self._prepare(admin_gid, shared)
        except BaseException:
            os.close(self._lock)
            raise

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
        """Let go of the lock; another broker may start."""
        os.close(self._lock)

    def _take_lock(self) -> int:
        descriptor = os.open(os.path.join(self.path, "broker.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StateError(f"a broker runs in {self.path} already (process {pid})") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return descriptor

    def _prepare(self, admin_gid: int | None, shared: bool) -> int | None:
        """Make the folders with their modes; returns the admin group."""
        registry_was_there = os.path.isdir(self.registry)
        for name in ("registry", "partitions", "listeners", "state"):
            os.makedirs(os.path.join(self.path, name), mode=0o700, exist_ok=True)
        if admin_gid is None and registry_was_there and os.stat(self.registry).st_mode & 0o020:
            admin_gid = os.stat(self.registry).st_gid
        others = 0o005 if shared else 0
        group = 0o050 if admin_gid is not None else 0
        for name in ("", "partitions"):
            os.chmod(os.path.join(self.path, name), 0o700 | group | others)
        os.chmod(self.listeners, 0o700)
        os.chmod(os.path.join(self.path, "state"), 0o700 | group | others)
        if admin_gid is None:
            os.chmod(self.registry, 0o700 | others)
        else:
            for name in ("", "partitions", "registry", "state"):
                os.chown(os.path.join(self.path, name), -1, admin_gid)
            os.chmod(self.registry, 0o2770 | others)
        self._host_mode = 0o700 | group | others
        return admin_gid

    def make_partition(self, partition: Partition, owner_uid: int | None = None) -> str:
        """Make the folder of a partition and return its path.

        The host's folder has the fabric's mode; another partition's is open to `owner_uid` alone (default:
        the broker's user), who speaks as that partition by opening it.
        """
        path = self.partition(partition)
        os.makedirs(path, mode=0o700, exist_ok=True)
        if partition.kind is Kind.HOST:
            os.chmod(path, self._host_mode)
            if self.admin_gid is not None:
                os.chown(path, -1, self.admin_gid)
        elif owner_uid is not None and owner_uid != os.stat(path).st_uid:
            os.chown(path, owner_uid, -1)
        return path

    def partition(self, partition: Partition) -> str:
        """The path of a partition's folder."""
        name = paths.HOST_FOLDER if partition.kind is Kind.HOST else str(partition.id)
        return os.path.join(self.path, "partitions", name)

    def remove_partition(self, partition: Partition) -> None:
        """Remove a partition's folder with all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.partition(partition))

    def remove_stale_partitions(self, tree: Tree) -> None:
        """Remove the folders of partitions that are not in `tree`: left by a broker that was killed."""
        known = {os.path.basename(self.partition(partition)) for partition in tree}
        for name in os.listdir(os.path.join(self.path, "partitions")):
            if name not in known:
                shutil.rmtree(os.path.join(self.path, "partitions", name), ignore_errors=True)

    def save_tree(self, tree: Tree) -> None:
        """Write the partitions down, durably: what is told to a caller survives a crash."""
        partitions = [
            {"id": p.id, "name": p.name, "kind": p.kind, "parent": p.parent, "group": p.group} for p in tree
        ]
        self._write_json("partitions.json", {"version": STATE_VERSION, "partitions": partitions})

    def load_tree(self) -> Tree:
        """The partitions as they were written down; a fresh host where nothing was.

        Raises:
            StateError: the file is damaged or of another version; it is left as it is.
        """
        return load_tree(self.path) or Tree(Partition(VmId.new(), "host", Kind.HOST))

    def _write_json(self, name: str, value: Any) -> None:
        path = self.state(name)
        descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + ".new", path)


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
            )
            for one in value["partitions"]
        ]
        tree = Tree(host)
        for partition in others:
            tree.add(partition)
    except FileNotFoundError:
        return None
    except StateError:
        raise
    except (OSError, ValueError, KeyError, TypeError, HvsockError) as error:
        raise StateError(f"{path} cannot be read: {error}; move it away to start without partitions") from None
    return tree


def control_socket(folder: str, name: str, type_: int) -> socket.socket:
    """A non-blocking listening socket called `name` in a partition's folder, in place of any there was.

    Everybody may connect who can enter the folder. The new socket takes the name in one step, so that a
    connector finds the old one or the new one.
    """
    sock = socket.socket(socket.AF_UNIX, type_)
    try:
        sock.setblocking(False)
        fresh = f".{name}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, fresh))
        bind: Callable[[str], None] = sock.bind
        paths.at(folder, fresh, bind)
        os.chmod(os.path.join(folder, fresh), 0o666)
        sock.listen(CONTROL_BACKLOG)
        os.replace(os.path.join(folder, fresh), os.path.join(folder, name))
    except BaseException:
        sock.close()
        raise
    return sock
