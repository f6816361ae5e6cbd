"""Child processes that end with their parent, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from typing import IO, Final

from hvsock.tied import tied

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

END_SECONDS: Final = 3.0
"""How long a child may take to end after SIGTERM, before SIGKILL."""


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
