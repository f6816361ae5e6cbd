"""End marks: what tells a graceful end of stream from one that somebody's death made.

AF_UNIX shows the death of a peer as an end of stream. Where a device stands between the two ends of a
connection, an eventfd travels with it: the device sets it before it ends the stream, and whoever reads the
end without it takes it for a reset. It is never read out, so every process that has the connection finds it set.
"""

from __future__ import annotations

import os
import select
import sys

if sys.platform != "linux":
    raise ImportError("end marks need Linux: they are eventfds")

_LINK = "anon_inode:[eventfd]"


class EndMark:
    """One end mark; it closes `descriptor`, an eventfd, at the latest when it is dropped."""

    __slots__ = ("_descriptor",)

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def new(cls) -> EndMark:
        """A fresh one, not set.

        Raises:
            OSError: EMFILE, ENFILE, ENOMEM.
        """
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    @classmethod
    def received(cls, descriptor: int) -> EndMark | None:
        """The end mark that somebody sent; None, and the descriptor closed, if it is something else."""
        if os.readlink(f"/proc/self/fd/{descriptor}") == _LINK:
            return cls(descriptor)
        os.close(descriptor)
        return None

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._descriptor

    def set(self) -> None:
        """The stream that ends from now on ends gracefully."""
        os.eventfd_write(self._descriptor, 1)

    def is_set(self) -> bool:
        """Whether the stream ended gracefully, if it ended; no once this is closed."""
        if self._descriptor < 0:
            return False
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def dup(self) -> EndMark:
        """The same mark with a descriptor of its own.

        Raises:
            OSError: EMFILE; EBADF: closed.
        """
        return EndMark(os.dup(self._descriptor))

    def close(self) -> None:
        """Close the descriptor. Calling this twice is fine."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()
