"""Where a fabric is: its folder, the folders of its partitions, and sockets at paths of any length.

::

    $HVSOCK_DIR/
      broker.lock              held by the broker that runs
      registry/registry.db     the services; writable by the owner and the admin group
      partitions/host/         the host's control sockets: `stream` and `seqpacket`
      partitions/VMID/         the same for every other partition
      listeners/               sockets of the listeners; only the broker enters
      state/                   partitions.json, counters, connections; only the broker writes
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Final

from hvsock.errors import StateError

FOLDER_VARIABLE: Final = "HVSOCK_DIR"
"""Environment variable: the folder of the fabric."""
PARTITION_VARIABLE: Final = "HVSOCK_PARTITION"
"""Environment variable: the folder of the partition that a process speaks for."""
HOST_FOLDER: Final = "host"
LET_IN: Final = f"its owner lets others in with: hvsock up --shared, or --admin-group; or set {FOLDER_VARIABLE}"
"""What to do where a fabric is closed to this user."""
MAX_SUN_PATH_BYTES: Final = 107
"""Longest path that a Unix socket address holds, without its final zero (unix(7))."""
STREAM_SOCKET: Final = "stream"
SEQPACKET_SOCKET: Final = "seqpacket"


def fabric_folder(environ: Mapping[str, str] | None = None) -> str:
    """The folder of the fabric that this process uses.

    HVSOCK_DIR where it is set; else /run/hvsock for root, $XDG_RUNTIME_DIR/hvsock for a user, and a
    private folder below /tmp for a user without one.

    Raises:
        StateError: that private folder exists and is somebody else's, or open to others.
    """
    environ = os.environ if environ is None else environ
    if chosen := environ.get(FOLDER_VARIABLE):
        return os.path.abspath(chosen)
    if sys.platform == "win32":
        return os.path.join(environ.get("LOCALAPPDATA", os.path.expanduser("~")), "hvsock")
    uid = os.getuid()
    if uid == 0:
        return "/run/hvsock"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime):  # others are to be ignored, by the XDG base directory specification
        return os.path.join(runtime, "hvsock")
    return _private_folder(f"/tmp/hvsock-{uid}", uid)


def is_socket(path: str) -> bool:
    """Whether a socket is at `path`, by what this user sees."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def may_enter(folder: str) -> bool:
    """Whether this user may enter `folder`; one that is not there, or is none, forbids nothing."""
    try:
        os.stat(os.path.join(folder, "."))
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _private_folder(path: str, uid: int) -> str:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise StateError(
            f"{path} is not a private folder of user {uid}; set {FOLDER_VARIABLE} to a folder of your own"
        )
    return path


def partition_folder(environ: Mapping[str, str] | None = None) -> str:
    """The folder of the partition that this process speaks for: HVSOCK_PARTITION, else the host's."""
    environ = os.environ if environ is None else environ
    if chosen := environ.get(PARTITION_VARIABLE):
        return os.path.abspath(chosen)
    return host_folder(fabric_folder(environ))


def host_folder(folder: str) -> str:
    """The folder of the host partition of the fabric in `folder`."""
    return os.path.join(folder, "partitions", HOST_FOLDER)


def speaks_for_host(folder: str, environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process speaks for the host of the fabric in `folder`."""
    return os.path.realpath(partition_folder(environ)) == os.path.realpath(host_folder(folder))


def at(folder: str, name: str, act: Callable[[str], None]) -> None:
    """Call `act` (connect or bind) with a path to socket `name` in `folder` that fits sun_path.

    Raises:
        OSError: what `act` raises, or `folder` cannot be opened.
    """
    path = f"{folder}/{name}"
    if len(os.fsencode(path)) <= MAX_SUN_PATH_BYTES or sys.platform != "linux":
        act(path)
        return
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        act(f"/proc/self/fd/{descriptor}/{name}")
    finally:
        os.close(descriptor)
