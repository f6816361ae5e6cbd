"""One device of the kernel's NBD client, by its ioctls (linux/nbd.h).

Nothing stays of it when this process ends, however it does: the kernel then fails what was asked for and takes the
disk away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import stat
import sys
from typing import Final, Self

from hvsock.errors import BusyError, HvsockError, NotFoundError, RefusedError, StateError, UsageError

from .handshake import Ability, Export

if sys.platform != "linux":
    raise ImportError("NBD devices are Linux's")

MAJOR: Final = 43
"""The number of the kernel's NBD devices (admin-guide/devices.txt)."""

_SET_SOCK: Final = 0xAB00
_SET_BLOCK_SIZE: Final = 0xAB01
_DO_IT: Final = 0xAB03
_CLEAR_SOCK: Final = 0xAB04
_SET_SIZE_BLOCKS: Final = 0xAB07
_DISCONNECT: Final = 0xAB08
_SET_TIMEOUT: Final = 0xAB09
_SET_FLAGS: Final = 0xAB0A

_PR_SET_IO_FLUSHER: Final = 57
_MCL_ALL: Final = 1 | 2 | 4  # MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT of mman.h


class Disk:
    """A device that nobody uses, from now on for this process; a context manager that takes the disk away.

    Args:
        path: the device, like /dev/nbd0.

    Raises:
        NotFoundError: there is no such device.
        UsageError: it is something else.
        RefusedError: this user may not.
        BusyError: it is in use.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = _opened(path)
        self._is_attached = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_attached:  # else it may be another process's disk by now, which this would end
            with contextlib.suppress(OSError):  # what is under way fails now, and need not wait for its time-out
                fcntl.ioctl(self._descriptor, _CLEAR_SOCK)
        os.close(self._descriptor)

    def attach(self, sock: socket.socket, export: Export, *, read_only: bool, seconds: int) -> None:
        """Tell the kernel what the disk is. It keeps a reference to `sock` of its own.

        Args:
            sock: a stream of AF_UNIX or TCP, at which the server's part of the handshake is over.
            export: what the server serves.
            read_only: whether the disk can be read alone, whatever the server says.
            seconds: how long the server may take for a block, after which the kernel gives the disk up.

        Raises:
            BusyError: somebody else has attached something just now.
            StateError: the kernel does not take it.
        """
        flags = export.abilities | (Ability.READ_ONLY if read_only else Ability(0))
        try:
            fcntl.ioctl(self._descriptor, _SET_SOCK, sock.fileno())
            self._is_attached = True
            fcntl.ioctl(self._descriptor, _SET_BLOCK_SIZE, export.block_size)
            fcntl.ioctl(self._descriptor, _SET_SIZE_BLOCKS, export.size // export.block_size)
            fcntl.ioctl(self._descriptor, _SET_TIMEOUT, seconds)
            fcntl.ioctl(self._descriptor, _SET_FLAGS, int(flags))
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise _in_use(self.path) from None
            raise StateError(f"the kernel does not take the disk for {self.path}: {error.strerror}") from None

    def is_there(self) -> bool:
        """Whether the kernel has it as a disk, from some moment of :meth:`serve` on."""
        return _size(self._descriptor) > 0

    def serve(self) -> None:
        """Be the disk; returns when it is over, by :meth:`disconnect` or since the socket ended.

        It waits in the kernel, so it takes a thread of its own.

        Raises:
            OSError: ETIMEDOUT: the server took too long; else why the kernel gave up.
        """
        fcntl.ioctl(self._descriptor, _DO_IT)

    def disconnect(self) -> None:
        """Write what is not written yet, as far as the kernel has it for this device, and end it.

        Raises:
            OSError: EIO: that could not be written; it is ended all the same.
        """
        try:
            os.fsync(self._descriptor)
        finally:
            fcntl.ioctl(self._descriptor, _DISCONNECT)


def prepare_process() -> None:
    """Have this process go on when memory is short: the kernel may wait for this disk in order to free some.

    What the user may not have done is left.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
        libc.mlockall(_MCL_ALL)


def _opened(path: str) -> int:
    """A descriptor of a device that nothing is attached to, and nothing mounted from."""
    try:
        found = os.stat(path)
        if not stat.S_ISBLK(found.st_mode) or os.major(found.st_rdev) != MAJOR:
            raise UsageError(f"{path} is no device of the kernel's NBD client; take one like /dev/nbd0")
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}; modprobe nbd makes /dev/nbd0 to nbd15") from None
    except OSError as error:
        raise _no_way(path, error) from None
    if _size(descriptor) or is_taken(path):
        os.close(descriptor)
        raise _in_use(path)
    return descriptor


def is_taken(path: str) -> bool:
    """Whether a file system or the like has the device for itself."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _size(descriptor: int) -> int:
    return os.lseek(descriptor, 0, os.SEEK_END)


def _no_way(path: str, error: OSError) -> HvsockError:
    if error.errno == errno.EBUSY:
        return _in_use(path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return RefusedError(f"this user may not open {path}: disks are root's")
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return NotFoundError(f"there is nothing behind {path}: load the kernel's module, modprobe nbd")
    return StateError(f"{path} cannot be opened: {error.strerror}")


def _in_use(path: str) -> BusyError:
    return BusyError(f"{path} is in use; unmount it and end what serves it, or take another one")
