"""The processes of a partition that is a folder of somebody else's machine, and their end.

Those are a partition's whose environment named its folder when they began, and that belong to the same user. A
process that hid its environment stays; it is the operator's own user's. Processes are held by descriptors, so
that no other one is hit that got the same number.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Collection, Iterator
from typing import Final

from hvsock.errors import StateError
from hvsock.fabric import paths

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

TERM_SECONDS: Final = 5.0
"""How long a process may take to end after SIGTERM."""
KILL_SECONDS: Final = 5.0
"""How long it may take after SIGKILL: a process in the kernel's hands ends later."""
MAX_ROUNDS: Final = 10
"""How often it is looked again for processes that others began meanwhile."""
MAX_ENVIRONMENT_BYTES: Final = 4 << 20
"""How much of an environment is read; the kernel's bound is a quarter of the stack's, 2 MiB."""


def end_all(folder: str, spared: Collection[int], *, force: bool = False) -> int:
    """End the processes of a partition: SIGTERM, and SIGKILL for those that do not; returns how many there were.

    Args:
        folder: the partition's.
        spared: processes that stay.
        force: SIGKILL at once.

    Raises:
        StateError: some do not end, or begin others without end.
    """
    ended = 0
    for _ in range(MAX_ROUNDS):
        with contextlib.ExitStack() as stack:
            found = list(_held(folder, spared, stack))
            if not found:
                return ended
            ended += len(found)
            if not force:
                _send(found, signal.SIGTERM)
                found = _left(found, TERM_SECONDS)
            _send(found, signal.SIGKILL)
            if left := _left(found, KILL_SECONDS):
                raise StateError(f"{len(left)} processes of the partition do not end, not even by SIGKILL")
    raise StateError(f"processes of the partition begin others faster than they end, {ended} so far")


def _held(folder: str, spared: Collection[int], stack: contextlib.ExitStack) -> Iterator[int]:
    """Descriptors of a partition's processes, which `stack` closes."""
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) in spared or not _belongs(name, folder):
            continue
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(int(name))
            stack.callback(os.close, descriptor)
            # the number may have been another's a moment ago; what is held now stays
            if _belongs(name, folder) and _left([descriptor], 0):
                yield descriptor


def _belongs(pid: str, folder: str) -> bool:
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return False
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read(MAX_ENVIRONMENT_BYTES)
    except OSError:
        return False
    prefix = f"{paths.PARTITION_VARIABLE}=".encode()
    values = [one[len(prefix) :] for one in environment.split(b"\0") if one.startswith(prefix)]
    return any(os.path.realpath(one) == os.path.realpath(os.fsencode(folder)) for one in values if one)


def _send(descriptors: list[int], number: signal.Signals) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)


def _left(descriptors: list[int], seconds: float) -> list[int]:
    """Those whose process has not ended after so many seconds."""
    deadline = time.monotonic() + seconds
    left = select.poll()
    waiting = set(descriptors)
    for descriptor in waiting:
        left.register(descriptor, select.POLLIN)
    while waiting:
        over = left.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not over:
            break
        for descriptor, _ in over:
            left.unregister(descriptor)
            waiting.discard(descriptor)
    return [one for one in descriptors if one in waiting]
