"""What there is to copy: a walk through a tree by descriptors, which no link leads astray."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final

from hvsock.errors import NotFoundError, RefusedError, UsageError

from .frames import Plan, why

if sys.platform != "linux":
    raise ImportError("file copy needs Linux: folders are opened relative to each other, and never through links")

MAX_DEPTH: Final = 100
"""Most folders within each other: each costs both sides a descriptor."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Found:
    """Something to copy.

    Attributes:
        path: relative to the place of the root, for messages.
        name: its own name.
        status: what it is; None for the end of a folder, and for what is left out.
        folder: descriptor of the folder that it is in; valid until the walk goes on.
        target: that of a link.
        reason: why it is left out.
    """

    path: bytes
    name: bytes
    status: os.stat_result | None
    folder: int
    target: bytes = b""
    reason: str = ""


Walk = Generator[Found, None, None]


@contextlib.contextmanager
def opened_parent(path: bytes) -> Iterator[tuple[int, bytes]]:
    """The folder that `path` is in, as a descriptor, and the last component.

    Links on the way are followed: whoever names a path means where it leads.

    Raises:
        NotFoundError, RefusedError, OSError: the folder cannot be opened.
        UsageError: there is no last component, as of ``/``.
    """
    path = os.path.normpath(path)
    parent, name = os.path.split(path)
    if name in (b"", b".", b".."):
        raise UsageError(f"{shown(path)} has no name of its own to copy it under; name what is in it")
    descriptor = open_folder(parent or b".")
    try:
        yield descriptor, name
    finally:
        os.close(descriptor)


def last_component(path: bytes) -> bytes:
    """The name that `path` ends with; empty for ``/``."""
    return os.path.basename(os.path.normpath(path))


def open_folder(path: bytes) -> int:
    """A descriptor of a folder that somebody named; links are followed.

    Raises:
        NotFoundError, RefusedError, OSError: it cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise named(error) from error


def named(error: OSError) -> Exception:
    """`error` as one of the library's own where there is one that says the same."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFoundError(why(error))
    if isinstance(error, PermissionError):
        return RefusedError(why(error))
    return error


def shown(path: bytes) -> str:
    """A path for people."""
    return path.decode("utf-8", "backslashreplace")


def walk(folder: int, name: bytes, *, recursive: bool) -> Walk:
    """`name` in `folder`, and all that is in it; after a folder and what is in it comes its end.

    The root's own link is followed, those below it are not.

    Args:
        folder: descriptor of the folder that it is in.
        name: its name.
        recursive: whether it may be a folder.

    Raises:
        NotFoundError, RefusedError, OSError: there is no such thing, or it cannot be read.
        UsageError: it is a folder, and `recursive` is not asked for; or it is a device or the like.
    """
    try:
        status = os.stat(name, dir_fd=folder)
    except OSError as error:
        raise named(error) from error
    if stat.S_ISDIR(status.st_mode):
        if not recursive:
            raise UsageError(f"{shown(name)} is a folder: ask for it with -r")
        try:
            inside = os.open(name, _FOLDER & ~os.O_NOFOLLOW, dir_fd=folder)
        except OSError as error:
            raise named(error) from error
        yield from _inside(inside, Found(name, name, status, folder), 1)
    elif stat.S_ISREG(status.st_mode):
        yield Found(name, name, status, folder)
    else:
        raise UsageError(f"{shown(name)} is neither a file nor a folder")


def _inside(folder: int, found: Found, depth: int) -> Walk:
    """A folder that was `found`, and what is in it; this closes its descriptor."""
    path = found.path
    try:
        yield found
        try:
            names = sorted(os.fsencode(one) for one in os.listdir(folder))
        except OSError as error:
            yield Found(path, found.name, None, folder, reason=why(error))
            names = []
        for name in names:
            yield from _one(folder, name, os.path.join(path, name), depth)
        yield Found(path, found.name, None, found.folder)
    finally:
        os.close(folder)


def _one(folder: int, name: bytes, path: bytes, depth: int) -> Walk:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            yield Found(path, name, status, folder, target=os.readlink(name, dir_fd=folder))
        elif stat.S_ISREG(status.st_mode):
            yield Found(path, name, status, folder)
        elif not stat.S_ISDIR(status.st_mode):
            yield Found(path, name, None, folder, reason="neither a file, nor a folder, nor a link")
        elif depth >= MAX_DEPTH:
            yield Found(path, name, None, folder, reason=f"more than {MAX_DEPTH} folders within each other")
        else:
            inside = os.open(name, _FOLDER, dir_fd=folder)
            yield from _inside(inside, Found(path, name, status, folder), depth + 1)
    except OSError as error:
        yield Found(path, name, None, folder, reason=why(error))


def plan_of(found: Walk) -> Plan:
    """How much a walk finds; it runs to its end."""
    entries = size = 0
    for one in found:
        if one.status is not None:
            entries += 1
            size += one.status.st_size if stat.S_ISREG(one.status.st_mode) else 0
    return Plan(entries, size)
