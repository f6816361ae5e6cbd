"""Child processes that end with their parent, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import IO, Final

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

END_SECONDS: Final = 3.0
"""How long a child may take to end after SIGTERM, before SIGKILL."""

# prctl(PR_SET_PDEATHSIG, SIGKILL) stays over exec; a parent that is gone by then sends no signal any more
_TRAMPOLINE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def tied(command: Sequence[str]) -> list[str]:
    """`command`, a program's full path and its arguments, so that it ends by SIGKILL when this process does."""
    return [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), *command]


async def start(command: Sequence[str], *, output: IO[bytes]) -> asyncio.subprocess.Process:
    """Start a child that the kernel kills when this process ends.

    Args:
        command: a program's full path, and its arguments.
        output: where its standard output and error go.
    """
    return await asyncio.create_subprocess_exec(
        *tied(command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # ctrl-C in a terminal is for the supervisor
    )


async def end(child: asyncio.subprocess.Process) -> None:
    """End a child: by SIGTERM, and where that takes too long by SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(child.wait(), END_SECONDS)
        except TimeoutError:
            child.kill()
    await child.wait()


def ending(child: asyncio.subprocess.Process) -> str:
    """How a child that is not there any more ended, for people."""
    code = child.returncode
    assert code is not None
    return f"ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with code {code}"
