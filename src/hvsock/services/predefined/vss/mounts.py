"""Which file systems a freeze is about, and in which order (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

FREEZABLE: Final = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "gfs2", "jfs", "nilfs2", "reiserfs", "xfs")
)
"""Kinds of file systems that the kernel freezes: those on disks with an operation for it."""
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo.

    Attributes:
        number: the mount's id.
        device: the file system's, as "major:minor"; mounts of the same one share it.
        path: where it is.
        kind: like ext4.
        source: what is mounted, like /dev/vda.
        writable: whether the file system is, even if this mount of it is not.
    """

    number: int
    device: str
    path: str
    kind: str
    source: str
    writable: bool


class Target(NamedTuple):
    """A file system to freeze, or to leave out.

    Attributes:
        mounts: where it is mounted; one of them may be hidden by another mount.
        obstacle: why it cannot be frozen; empty where it can.
    """

    mounts: tuple[Mount, ...]
    obstacle: str = ""


def parse(mountinfo: bytes) -> list[Mount]:
    """The mounts in the text of a mountinfo file, in its order, which is that of mounting; see proc(5).

    Lines of another form are left out.
    """
    found = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(b" - ")
        words, rest = left.split(b" "), right.split(b" ")
        if len(words) < 6 or len(rest) < 3 or not words[0].isdigit():
            continue
        writable = b"rw" in rest[2].split(b",")
        found.append(
            Mount(int(words[0]), _text(words[2]), _text(words[4]), _text(rest[0]), _text(rest[1]), writable)
        )
    return found


def targets(mounts: Iterable[Mount]) -> list[Target]:
    """The writable file systems on disks, the one mounted last first.

    One that lies in a file of another, or is mounted inside it, comes before that one. Each comes once, however
    often it is mounted. What lives in memory or elsewhere on a network is none of a disk's backup and left out
    silently; what lives on a disk and cannot be frozen is there, with the reason.
    """
    by_device: dict[str, list[Mount]] = {}
    for mount in mounts:
        if mount.writable and (mount.kind in FREEZABLE or mount.source.startswith("/dev/")):
            by_device.setdefault(mount.device, []).append(mount)
    found = []
    for same in reversed(by_device.values()):
        kind = same[0].kind
        found.append(Target(tuple(same), "" if kind in FREEZABLE else f"the kernel freezes no {kind}"))
    return found


def _text(field: bytes) -> str:
    plain = _ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field)
    return plain.decode("utf-8", "surrogateescape")
