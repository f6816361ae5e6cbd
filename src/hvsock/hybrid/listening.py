"""Listening at a path of the file system: made safely, taken over from a killed process, and cleaned up.

The kernel leaves the file of a Unix socket behind, so whoever finds one has to tell whether somebody listens
there. That, the removal and the new socket are one step for all who do it in this way: they hold a lock on the
folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from hvsock.errors import BusyError, StateError
from hvsock.fabric import paths

from .connecting import ServiceLike, service_id_of
from .handshake import listener_paths
from .profiles import HVSOCK, Profile

if sys.platform != "linux":
    raise ImportError("hybrid sockets need Linux, as the VMMs do")

OWNER_MODE: Final = 0o600
"""Mode of a socket that only its owner may connect to."""
BACKLOG: Final = 128
"""Connections that may wait to be accepted."""
LOCK_SECONDS: Final = 1.0
"""How long to wait for the lock on a folder, which is held for a moment only."""
LOCK_PAUSE_SECONDS: Final = 0.01


class HostListener:
    """A listening Unix socket with its file; ``with`` closes it.

    Attributes:
        path: where it listens.
        sock: the listening socket, which this object owns.
    """

    def __init__(self, path: str, sock: socket.socket, identity: tuple[int, int] | None) -> None:
        self.path = path
        self.sock = sock
        self._identity = identity
        self._pid = os.getpid()

    def fileno(self) -> int:
        """The descriptor of the socket; -1 once closed."""
        return self.sock.fileno()

    def accept(self) -> socket.socket:
        """The next connection; as the socket's own accept."""
        return self.sock.accept()[0]

    def close(self) -> None:
        """Listen no more, and remove the file if it is still this listener's. Calling this twice is fine.

        In a process that was forked meanwhile it leaves the file to the parent.
        """
        if self._identity is None or self._pid != os.getpid():
            self.sock.close()
            return
        folder, name = os.path.split(self.path)
        with contextlib.suppress(OSError, BusyError), _locked(folder) as descriptor:
            if _identity(name, descriptor) == self._identity:
                os.unlink(name, dir_fd=descriptor)
        self._identity = None
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def listen(
    base: str,
    service: ServiceLike,
    *,
    profile: Profile = HVSOCK,
    mode: int = OWNER_MODE,
    backlog: int = BACKLOG,
) -> HostListener:
    """Listen for what a VMM's guest connects to on its host.

    Args:
        base: the VMM's own path; for libkrun, the path that it has for this port.
        service: a port, a GUID where the VMM takes them, or a registered name.
        profile: the VMM's.
        mode: who may connect; the VMM has to be able to.
        backlog: connections that may wait to be accepted.

    Raises:
        OSError, StateError, BusyError: as :func:`listen_at` says.
        UsageError, NotFoundError, NoFabricError: no such service.
    """
    return listen_at(listener_paths(base, service_id_of(service), profile)[0], mode=mode, backlog=backlog)


def listen_at(path: str, *, mode: int = OWNER_MODE, backlog: int = BACKLOG) -> HostListener:
    """Listen at a path; a socket that nobody listens at any more is replaced.

    Args:
        path: where, of any length; no link is followed there.
        mode: who may connect: never, not even for a moment, anybody else.
        backlog: connections that may wait to be accepted.

    Raises:
        OSError: EADDRINUSE: somebody listens there; others are the file system's. Nothing was changed.
        StateError: what is there is no socket; it was left as it is.
        BusyError: somebody holds a lock on the folder.
    """
    folder, name = os.path.split(os.path.abspath(path))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), mode & OWNER_MODE)  # bind gives the file the socket's mode
        with _locked(folder) as descriptor:
            _make_way(folder, name, descriptor)
            try:
                paths.at(folder, name, sock.bind)
            except OSError as error:
                raise OSError(error.errno, error.strerror, path) from None
            identity = _identity(name, descriptor)
            try:
                _give_mode(name, descriptor, mode)
                sock.listen(backlog)
            except BaseException:
                os.unlink(name, dir_fd=descriptor)
                raise
    except BaseException:
        sock.close()
        raise
    return HostListener(os.path.join(folder, name), sock, identity)


def is_served(folder: str, name: str) -> bool:
    """Whether somebody has the stream socket `name` in `folder`; he does not notice.

    A socket of another type is refused in another way where there is one than where there is none.
    """
    return _probed(folder, name) == errno.EPROTOTYPE


def _probed(folder: str, name: str) -> int:
    """The errno of a connect by another type of socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            paths.at(folder, name, probe.connect)
        except OSError as error:
            return error.errno or 0
        return 0


def _make_way(folder: str, name: str, descriptor: int) -> None:
    try:
        found = os.lstat(name, dir_fd=descriptor)
    except FileNotFoundError:
        return
    path = os.path.join(folder, name)
    if not stat.S_ISSOCK(found.st_mode):
        raise StateError(f"{path} is there, and no socket: move it away, or choose another path")
    code = _probed(folder, name)
    if code == errno.ECONNREFUSED:
        os.unlink(name, dir_fd=descriptor)
    elif code == errno.EACCES:
        raise OSError(code, "another user's socket is there", path)
    else:
        raise OSError(errno.EADDRINUSE, "somebody listens there already", path)


def _give_mode(name: str, descriptor: int, mode: int) -> None:
    """Give the socket the mode that the process's umask took from it."""
    own = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
    try:
        if stat.S_IMODE(os.fstat(own).st_mode) != mode:
            os.chmod(f"/proc/self/fd/{own}", mode)
    finally:
        os.close(own)


def _identity(name: str, descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.lstat(name, dir_fd=descriptor)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[int]:
    """A descriptor of `folder`, with the lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BusyError(f"another process holds a lock on {folder}; try again") from None
                time.sleep(LOCK_PAUSE_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)
