"""A keeper whose kernel is a folder: what it freezes and thaws is in the file `log` there.

A file that is named like a file system and ends in .errno has it fail with that number, one in .slow has it take
as long as the file is there, and one in .thawed has the thaw find nothing frozen.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time

from hvsock.services.predefined.vss import keeper


class FolderKernel:
    """Freezes nothing, and writes down what it would.

    Args:
        folder: where.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def _note(self, what: str, path: str) -> None:
        with open(os.path.join(self._folder, "log"), "a", encoding="utf-8") as file:
            file.write(f"{what} {os.path.basename(path)}\n")

    def freeze(self, descriptor: int, path: str) -> None:
        """See :class:`hvsock.services.predefined.vss.kernel.Kernel`."""
        os.fstat(descriptor)
        base = os.path.join(self._folder, os.path.basename(path))
        with contextlib.suppress(FileNotFoundError), open(f"{base}.errno", encoding="ascii") as file:
            number = int(file.read())
            raise OSError(number, os.strerror(number))
        self._note("freezing", path)
        while os.path.exists(f"{base}.slow"):
            time.sleep(0.01)
        self._note("freeze", path)

    def thaw(self, descriptor: int, path: str) -> None:
        """See :class:`hvsock.services.predefined.vss.kernel.Kernel`."""
        os.fstat(descriptor)
        self._note("thaw", path)
        if os.path.exists(os.path.join(self._folder, f"{os.path.basename(path)}.thawed")):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


if __name__ == "__main__":
    keeper.main(FolderKernel(sys.argv.pop(1)))
