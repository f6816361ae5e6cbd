"""Files put in place: written under a temporary name, synced, renamed; never outside of the folders that are open.

Every name is looked up in the descriptor of the folder that it is in, and no link is followed. What is renamed
waits until enough has gathered to be synced at once: 100,000 small files cost some hundred syncs.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Final

from hvsock.errors import BusyError, DuplicateError, RefusedError, UsageError

from .frames import BLOCK_BYTES, Counts, Failure, Meta, Overwrite, why
from .sending import MAX_FAILURES, prefix_crc
from .walking import named, open_folder, shown

if sys.platform != "linux":
    raise ImportError("file copy needs Linux: folders are opened relative to each other, and never through links")

SYNC_FILES: Final = 128
"""Most files that wait for a sync; each holds a descriptor, and its folder another."""
SYNC_BYTES: Final = 64 << 20
"""Most bytes that wait for a sync."""
SYNC_EACH: Final = 4
"""Up to so many files are synced one by one; for more, their file systems are."""
HOPELESS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE})
"""Errors after which no other file would fare better: the copy ends."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """A folder that is open for what is put into it.

    Args:
        descriptor: of the folder, which this object owns.
        path: relative to where the copy began.
        meta: what it gets at its end; None for a folder that was there before, which stays as it is.
    """

    def __init__(self, descriptor: int, path: bytes, meta: Meta | None = None) -> None:
        self.descriptor = descriptor
        self.path = path
        self.meta = meta
        self.names: set[int] = set()  # hashes of what came into it

    def close(self) -> None:
        """Close the descriptor. Calling this twice is fine."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Partial:
    """A file that is being written, under a temporary name.

    Args:
        folder: where.
        meta: what it will be.

    Attributes:
        descriptor: open for reading and writing.
        size: what is in it.

    Raises:
        BusyError: another copy writes it.
        RefusedError: something that is no file of ours has its name.
        OSError: it cannot be made.
    """

    def __init__(self, folder: Folder, meta: Meta) -> None:
        self.folder = folder
        self.meta = meta
        self.temporary = temporary_name(meta)
        self.descriptor = os.open(self.temporary, _WRITE, 0o600, dir_fd=folder.descriptor)
        try:
            self.size = self._claimed()
        except BaseException:
            self.close()
            raise

    def _claimed(self) -> int:
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            raise RefusedError(f"{self.temporary.decode()} is in the way, and no file of ours: remove it")
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            now = os.stat(self.temporary, dir_fd=self.folder.descriptor, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError):
            now = None
        if now is None or (now.st_dev, now.st_ino) != (status.st_dev, status.st_ino):
            raise BusyError("another copy of the same file is under way")
        return status.st_size

    def begin(self, size: int) -> None:
        """Go on behind the first `size` bytes."""
        os.ftruncate(self.descriptor, size)
        os.lseek(self.descriptor, size, os.SEEK_SET)
        self.size = size

    def write(self, data: memoryview) -> None:
        """Append."""
        while data:
            count = os.write(self.descriptor, data)
            self.size += count
            data = data[count:]

    def discard(self) -> None:
        """Remove it, and close it."""
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.temporary, dir_fd=self.folder.descriptor)
        self.close()

    def close(self) -> None:
        """Close it, and leave it for another try. Calling this twice is fine."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def temporary_name(meta: Meta) -> bytes:
    """Under which name a file is written: another try of the same file finds it, and no other file does."""
    identity = b"%d %d %b" % (meta.size, meta.mtime_ns, meta.name)
    return b".hvsock-" + hashlib.sha256(identity).hexdigest()[:32].encode() + b".part"


class Placer:
    """Puts files, folders and links in place.

    Args:
        overwrite: what is done where there is a file of that name.
        mode_mask: which permission bits are set; set-user-id and the like never are.

    Attributes:
        failures: what could not be put in place.
        files, folders, links, unchanged: how many were.
    """

    def __init__(self, overwrite: Overwrite, mode_mask: int) -> None:
        self.failures: list[Failure] = []
        self.files = self.folders = self.links = self.unchanged = 0
        self._overwrite = overwrite
        self._mask = mode_mask & 0o777
        self._waiting: list[Partial | Folder] = []
        self._waiting_bytes = 0
        self._block = memoryview(bytearray(BLOCK_BYTES))

    def counts(self, size: int, resumed: int) -> Counts:
        """What was done."""
        return Counts(self.files, self.folders, self.links, self.unchanged, size, resumed)

    # -- folders and links

    def enter(self, folder: Folder, meta: Meta) -> Folder:
        """Open a folder in `folder`, which is made where there is none.

        Raises:
            OSError: it cannot be; or something else has its name, a link for instance.
        """
        made = True
        try:
            os.mkdir(meta.name, 0o700, dir_fd=folder.descriptor)
        except FileExistsError:
            made = False
        try:
            descriptor = os.open(meta.name, _FOLDER, dir_fd=folder.descriptor)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise DuplicateError("it is there, and no folder") from error
            raise
        if made:
            self.folders += 1
        else:
            self.unchanged += 1
        return Folder(descriptor, os.path.join(folder.path, meta.name), meta if made else None)

    def leave(self, folder: Folder) -> None:
        """Nothing more comes into `folder`; it gets its mode and time once all that is in it is in place."""
        self._waiting.append(folder)
        if len(self._waiting) >= 2 * SYNC_FILES:
            self.settle()

    def link(self, folder: Folder, meta: Meta) -> None:
        """Make a link.

        Raises:
            DuplicateError: there is something else.
            OSError: it cannot be made.
        """
        there = _status(folder, meta.name)
        if there is not None:
            same = stat.S_ISLNK(there.st_mode) and os.readlink(meta.name, dir_fd=folder.descriptor) == meta.target
            if same or self._overwrite is Overwrite.KEEP:
                self.unchanged += 1
                return
            self._check_replaceable(there)
        temporary = temporary_name(meta)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder.descriptor)
        os.symlink(meta.target, temporary, dir_fd=folder.descriptor)
        os.utime(temporary, ns=(meta.mtime_ns,) * 2, dir_fd=folder.descriptor, follow_symlinks=False)
        os.rename(temporary, meta.name, src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
        self.links += 1

    # -- files

    def existing(self, folder: Folder, meta: Meta) -> int | None:
        """A descriptor of the file that has the name already; None where there is none.

        Raises:
            DuplicateError: it is to be left, and has another size, or is no file.
            OSError: it cannot be opened.
        """
        there = _status(folder, meta.name)
        if there is None:
            return None
        if stat.S_ISREG(there.st_mode) and there.st_size == meta.size:
            try:
                return os.open(meta.name, _READ, dir_fd=folder.descriptor)
            except PermissionError:
                pass  # then it is taken for another one
        self._check_replaceable(there)
        return None

    def is_kept(self, folder: Folder, meta: Meta) -> bool:
        """Whether what has the name is to be left as it is, whatever it is."""
        return self._overwrite is Overwrite.KEEP and _status(folder, meta.name) is not None

    def is_begun(self, folder: Folder, meta: Meta) -> bool:
        """Whether an earlier try left a part of it."""
        return _status(folder, temporary_name(meta)) is not None

    def check_replaceable(self, folder: Folder, meta: Meta) -> None:
        """Raise DuplicateError where something has the name that is to be left, or is a folder."""
        there = _status(folder, meta.name)
        if there is not None:
            self._check_replaceable(there)

    def _check_replaceable(self, there: os.stat_result) -> None:
        if stat.S_ISDIR(there.st_mode):
            raise DuplicateError("it is there, and a folder")
        if self._overwrite is not Overwrite.REPLACE:
            raise DuplicateError("it is there, and another one; --force replaces it, --no-clobber leaves it")

    def crc_of(self, descriptor: int, size: int, busy: Callable[[], None]) -> int:
        """The CRC-32 of the first `size` bytes of a file; see :func:`.sending.prefix_crc`."""
        return prefix_crc(descriptor, size, self._block, busy)

    def same(self, descriptor: int, meta: Meta) -> None:
        """The file that was there is the very same; its mode and time are made so where it might be replaced."""
        self.unchanged += 1
        if self._overwrite is Overwrite.REPLACE:
            self._finish(descriptor, meta)

    def place_small(self, folder: Folder, meta: Meta, data: bytearray, crc: int) -> None:
        """Put a whole file in place.

        Raises:
            DuplicateError, BusyError, RefusedError, OSError: it cannot be.
        """
        descriptor = self.existing(folder, meta)
        if descriptor is not None:
            try:
                with contextlib.suppress(EOFError):
                    if self.crc_of(descriptor, meta.size, _nothing) == crc:
                        return self.same(descriptor, meta)
            finally:
                os.close(descriptor)
            self.check_replaceable(folder, meta)
        partial = Partial(folder, meta)
        try:
            partial.begin(0)
            partial.write(memoryview(data))
            self.place(partial)
        except BaseException:
            partial.discard()
            raise
        return None

    def place(self, partial: Partial) -> None:
        """Put a file in place that is complete; this object owns it from now on."""
        self._finish(partial.descriptor, partial.meta)
        self._waiting.append(partial)
        self._waiting_bytes += partial.size
        if self._waiting_bytes >= SYNC_BYTES or len(self._waiting) >= SYNC_FILES:
            self.settle()

    def _finish(self, descriptor: int, meta: Meta) -> None:
        os.fchmod(descriptor, meta.mode & self._mask)
        os.utime(descriptor, ns=(meta.mtime_ns, meta.mtime_ns))

    # -- in place for good

    def settle(self) -> None:
        """Sync all that waits, and give it its names.

        Raises:
            OSError: it cannot be synced: the disk is full or broken; nothing of it got its name.
        """
        _sync([one.descriptor for one in self._waiting if isinstance(one, Partial)])
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for one in waiting:
            if isinstance(one, Partial):
                self._name(one)
                continue
            if one.meta is not None:
                try:
                    self._finish(one.descriptor, one.meta)
                except OSError as error:
                    self.fail(one.path, why(error))
            one.close()

    def _name(self, partial: Partial) -> None:
        names = {"src_dir_fd": partial.folder.descriptor, "dst_dir_fd": partial.folder.descriptor}
        try:
            self.check_replaceable(partial.folder, partial.meta)  # somebody else may have been there meanwhile
            os.rename(partial.temporary, partial.meta.name, **names)
        except (OSError, DuplicateError) as error:
            self.fail(os.path.join(partial.folder.path, partial.meta.name), why(error))
            partial.discard()
        else:
            self.files += 1
            partial.close()

    def fail(self, path: bytes, reason: str) -> None:
        """Something was not put in place; the first MAX_FAILURES are told."""
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(Failure(path, reason))

    def close(self) -> None:
        """Give up what waits still, since it could not be synced. Calling this twice is fine."""
        for one in self._waiting:
            if isinstance(one, Partial):
                one.discard()
        for one in self._waiting:
            one.close()
        self._waiting.clear()


@contextlib.contextmanager
def opened_target(path: bytes, *, parents: bool) -> Iterator[tuple[int, bytes | None]]:
    """Where a copy is put: a folder as a descriptor, and the name in it, None for the source's own.

    A folder that exists gets the copy under its own name, as cp does. Links in `path` are followed: whoever
    names it means where it leads.

    Args:
        path: what the operator named.
        parents: whether folders that are missing are made.

    Raises:
        NotFoundError, RefusedError, OSError: the folder cannot be opened, or made.
    """
    name = None
    if not os.path.isdir(path):
        if not path.endswith(b"/"):
            path, name = os.path.split(path)
            path = path or b"."
        if parents:
            try:
                os.makedirs(path, exist_ok=True)
            except OSError as error:
                raise named(error) from error
    if name in (b".", b".."):
        raise UsageError(f"{shown(os.path.join(path, name or b''))} is no name for a copy")
    folder = open_folder(path)
    try:
        yield folder, name
    finally:
        os.close(folder)


def check_room(folder: Folder, size: int) -> None:
    """Check that the disk has room for `size` bytes.

    Raises:
        OSError: ENOSPC: it has not.
    """
    room = os.statvfs(folder.descriptor)
    if room.f_blocks and size > room.f_bavail * room.f_frsize:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {size} bytes more are needed")


def _status(folder: Folder, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _nothing() -> None:
    """Nobody is told."""


def _sync(descriptors: list[int]) -> None:
    """Have files on their disks."""
    if len(descriptors) <= SYNC_EACH:
        for descriptor in descriptors:
            os.fsync(descriptor)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    for descriptor in {os.fstat(one).st_dev: one for one in descriptors}.values():
        if libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
