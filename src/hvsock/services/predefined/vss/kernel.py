"""The two ioctls; see ioctl_fsfreeze in linux/fs.h."""

from __future__ import annotations

import fcntl
import sys
from typing import Final, Protocol

if sys.platform != "linux":
    raise ImportError("file systems are frozen by Linux")

FIFREEZE: Final = 0xC0045877
"""_IOWR('X', 119, int): write out what is to be written, the journal too, and hold back all that follows."""
FITHAW: Final = 0xC0045878
"""_IOWR('X', 120, int): let it go on."""


class Kernel(Protocol):
    """What freezes and thaws; both raise OSError."""

    def freeze(self, descriptor: int, path: str) -> None:
        """Freeze the file system that has this descriptor, mounted at `path`; EBUSY where it is frozen already."""

    def thaw(self, descriptor: int, path: str) -> None:
        """Thaw it; EINVAL where it is not frozen."""


class Linux:
    """The real one, which needs CAP_SYS_ADMIN."""

    def freeze(self, descriptor: int, path: str) -> None:
        """See :class:`Kernel`."""
        fcntl.ioctl(descriptor, FIFREEZE, 0)

    def thaw(self, descriptor: int, path: str) -> None:
        """See :class:`Kernel`."""
        fcntl.ioctl(descriptor, FITHAW, 0)
