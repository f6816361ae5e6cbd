"""Blocking work on a connection in a thread, for an event loop that must not wait."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(sock: socket.socket, work: Callable[[], T]) -> T:
    """Do `work` on `sock` in a thread. Cancelling ends the connection, and waits for the thread.

    Args:
        sock: is shut down when this is cancelled, so that `work` ends.
        work: blocking; what it raises is raised here.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # it is of no interest any more
        raise
