"""The guest's keys: its host key, and the public key that its host gave last."""

from __future__ import annotations

import os
import sys
from typing import Final

from .keyfiles import key_pair, private_folder, read_text, write_private

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

PASSING: Final = frozenset({"tmpfs", "ramfs", "rootfs", "overlay"})
"""File systems whose files may be gone after a boot."""
_AUTHORIZED: Final = "authorized_key"


def outlives_boot(folder: str, mounts: str | None = None) -> bool:
    """Whether what is in `folder` is there after a boot, as far as its file system says.

    Args:
        folder: the folder.
        mounts: the text of /proc/self/mountinfo, which is read by default.
    """
    if mounts is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                mounts = file.read()
        except OSError:
            return False
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields = line.split(" ")
        if fields[2:3] == [wanted] and "-" in fields:
            return fields[fields.index("-") + 1] not in PASSING
    return False


def authorized_key(folder: str) -> str | None:
    """The key that lets the host in, in a folder of such keys; None as long as it gave none."""
    text = read_text(os.path.join(folder, _AUTHORIZED))
    return None if text is None else text.strip()


def was_handed_over(folder: str) -> bool:
    """Whether a host gave its key to the guest whose keys are in `folder`."""
    return os.path.exists(os.path.join(folder, _AUTHORIZED))


class GuestKeys:
    """What the guest half of Direct keeps.

    Args:
        folder: its own; made where it is missing.
    """

    def __init__(self, folder: str) -> None:
        self._folder = private_folder(folder)
        self.kept = outlives_boot(folder)
        self.private, self.public = key_pair(os.path.join(folder, "host_key"))

    def authorize(self, key: str) -> None:
        """Let the host in by `key`, and by none that it gave before."""
        if key != self.authorized():
            write_private(os.path.join(self._folder, _AUTHORIZED), f"{key}\n".encode())

    def authorized(self) -> str | None:
        """The key that lets the host in; None as long as it gave none."""
        return authorized_key(self._folder)
