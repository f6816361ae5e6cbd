"""What the device's process gives up before it serves a guest."""

from __future__ import annotations

import ctypes
import logging
import os
import pwd
import resource
import sys
from typing import Final, NamedTuple

from hvsock.errors import StateError, UsageError

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

log = logging.getLogger(__name__)

DESCRIPTORS_PER_CONNECTION: Final = 2
"""A connection's socket and its end mark. Those between guests take one more, or are refused."""
SPARE_DESCRIPTORS: Final = 256
"""For the queues, the front end, couriers and connects under way."""
LOG_BYTES: Final = 16 << 20
"""Size up to which the device writes to a file: its log, which a guest could make it fill otherwise."""
ROOT_UID: Final = 0

_LIMITS: Final = {resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0, resource.RLIMIT_FSIZE: LOG_BYTES}
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38


class User(NamedTuple):
    """A user that a device may become.

    Attributes:
        name: the user's.
        uid, gid: the ids of the user and of the user's own group.
    """

    name: str
    uid: int
    gid: int


def user_named(name: str) -> User:
    """The user that root's device is to be.

    Raises:
        UsageError: there is no such user, or this process is not root's.
    """
    if os.geteuid() != ROOT_UID:
        raise UsageError("only root's devices can have a user of their own: leave --user out")
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f"there is no user {name!r}") from None
    return User(found.pw_name, found.pw_uid, found.pw_gid)


def give_folder(folder: str, user: User) -> None:
    """Let `user` enter a partition's folder, which nobody but root could before.

    Raises:
        StateError: the partition is somebody else's.
    """
    owner = os.stat(folder).st_uid
    if owner == ROOT_UID:
        os.chown(folder, user.uid, -1)
    elif owner != user.uid:
        raise StateError(f"the partition in {folder} belongs to user {owner}, not to {user.name}")


def open_folder(folder: str) -> str:
    """A path to `folder` that works also for a user who may not go through the folders above it; kept open.

    Raises:
        OSError: it is not there, or this user may not enter it.
    """
    return f"/proc/self/fd/{os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)}"


def connections_that_fit(wanted: int) -> int:
    """How many connections the descriptors are enough for that this process may have; `wanted` at most.

    The limit of descriptors becomes what they take.
    """
    descriptors = DESCRIPTORS_PER_CONNECTION * wanted + SPARE_DESCRIPTORS
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    except (ValueError, OSError):  # root alone may have more than it has
        descriptors = min(descriptors, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    fit = max(1, (descriptors - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION)
    if fit < wanted:
        log.info("%d descriptors are allowed, enough for %d connections and not %d", descriptors, fit, wanted)
    return min(fit, wanted)


def give_up(user: User | None = None) -> None:
    """Become `user`, and keep no right to new privileges, processes, large files or core files.

    Raises:
        OSError: it does not work; then nothing is to be served.
    """
    if user is not None:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    for limit, value in _LIMITS.items():
        _, most = resource.getrlimit(limit)
        least = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (least, least))
