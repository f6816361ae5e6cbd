"""Commands of child processes that end with their parent, however that ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

if sys.platform != "linux":
    raise ImportError("the kernel's word of a parent's death is Linux's")

# prctl(PR_SET_PDEATHSIG, SIGKILL) stays over exec; a parent that is gone by then sends no signal any more
_TRAMPOLINE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """`command`, a program's full path and its arguments, so that it ends by SIGKILL when this process does.

    More exactly, when the thread ends that starts it.
    """
    return [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *command]
