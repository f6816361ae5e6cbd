"""Archives that the Linux kernel unpacks as its first file system: the "newc" format of cpio (pure).

The same entries give the same bytes, whoever packs them and when: names are sorted, times are 0, everything
belongs to root. Archives may follow one another; the kernel unpacks them all, and later files replace
earlier ones.
"""

from __future__ import annotations

import posixpath
import stat
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_ALIGNMENT: Final = 4
"""Bytes to which names and data are filled up; the kernel finds the next archive there too."""
MAX_FILE_BYTES: Final = 0xFFFFFFFF
"""Most bytes of one file: sizes are eight hexadecimal digits."""


class Entry(NamedTuple):
    """A file, folder, symbolic link or device.

    Attributes:
        name: its path without a leading slash.
        mode: type and permissions, as in st_mode.
        data: what a file holds, or where a symbolic link leads.
        device: major and minor number of a device.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(name: str, data: bytes, *, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def folder(name: str) -> Entry:
    """A folder."""
    return Entry(name, stat.S_IFDIR | 0o755)


def link(name: str, target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int) -> Entry:
    """A character device, which no right of the packer's own is needed for."""
    return Entry(name, stat.S_IFCHR | 0o600, device=(major, minor))


def pack(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The pieces of an archive of `entries`, with the folders above them that are not among them.

    Args:
        entries: in any order; the last one of a name counts.

    Raises:
        ValueError: a name is no relative path, or a file is longer than MAX_FILE_BYTES.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        if not entry.name or posixpath.normpath(entry.name) != entry.name or entry.name[0] in "./":
            raise ValueError(f"{entry.name!r} is no path inside an archive")
        found[entry.name] = entry
    for name in list(found):
        while name := posixpath.dirname(name):
            found.setdefault(name, folder(name))
    for number, name in enumerate(sorted(found), start=1):
        yield from _packed(number, found[name])
    yield from _packed(0, Entry(_TRAILER, 0))


def _packed(number: int, entry: Entry) -> Iterator[bytes]:
    if len(entry.data) > MAX_FILE_BYTES:
        raise ValueError(f"{entry.name} has {len(entry.data)} bytes; a file in an archive has {MAX_FILE_BYTES}")
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    yield header + name + _padding(len(header) + len(name))
    if entry.data:
        yield entry.data
        yield _padding(len(entry.data))


def _padding(length: int) -> bytes:
    return bytes(-length % _ALIGNMENT)
