"""Finds what a piece of code leaves behind: descriptors, threads, child processes, asyncio tasks.

Descriptors and children are found in /proc; where there is none, only threads and tasks are compared.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

GRACE_SECONDS = 2.0
"""How long things may take to go away by themselves: a thread that is about to end, a process that exits."""
FIRST_PAUSE_SECONDS = 0.000_5
"""Pause before the first look again; each later one is twice as long, up to the longest."""
LONGEST_PAUSE_SECONDS = 0.05

IDLE_TRIO_THREAD = re.compile(r"Trio thread \d+")
"""Names of trio's idle worker threads. It keeps them for ten seconds, for all runs of the process; while
they work they bear the name of what they do."""

SPARE_DESCRIPTOR = "/memfd:hvsock-spare (deleted)"
"""What the one descriptor refers to that hvsock keeps, from the first accept on, so that a process out of
descriptors loses no connection. A second one is a leak."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a process holds at one moment; the keys are what makes two things the same.

    Attributes:
        descriptors: (number, what it refers to); a number that was closed and used anew counts as new.
        threads: by their objects, with their names.
        children: process ids, with the command and its state; an unreaped one (state Z) is one, too.
        tasks: those of the running event loop that are not done, with their representation; none where
            no event loop runs.
    """

    descriptors: dict[tuple[int, str], str]
    threads: dict[threading.Thread, str]
    children: dict[int, str]
    tasks: dict[asyncio.Task[Any], str]

    @classmethod
    def take(cls) -> Snapshot:
        """Looks at this process."""
        return cls(_descriptors(), _threads(), _children(), _tasks())

    def new_since(self, earlier: Snapshot) -> list[str]:
        """What is here and was not `earlier`, one line each."""
        lines = [text for key, text in self.descriptors.items() if key not in earlier.descriptors]
        lines += [text for thread, text in self.threads.items() if thread not in earlier.threads]
        lines += [text for pid, text in self.children.items() if pid not in earlier.children]
        return lines + [text for task, text in self.tasks.items() if task not in earlier.tasks]


@contextmanager
def leak_check(*, grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Requires that the body leaves no descriptor, thread, child process or asyncio task behind.

    What the body's caller gets from it counts as well: close it inside. Nothing is left to the garbage
    collector: a socket that only it would close is a leak. Daemon threads are no exception. Threads of
    the code around the body must not open anything meanwhile.

    When the body itself fails, its exception passes through and nothing is checked. Also usable as a
    decorator.

    Args:
        grace_seconds: how long to wait for things that are about to go away by themselves; nothing is
            waited for where nothing is left. Inside a coroutine this blocks the event loop.

    Raises:
        AssertionError: something is left; the text has one line for each (a descriptor with its number
            and what it refers to, a thread's name, a process's id and command, a task).
    """
    before = Snapshot.take()
    yield
    deadline = time.monotonic() + grace_seconds
    pause = FIRST_PAUSE_SECONDS
    while left := Snapshot.take().new_since(before):
        if time.monotonic() >= deadline:
            raise AssertionError("left behind:\n" + "\n".join(f"  {line}" for line in left))
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _descriptors() -> dict[tuple[int, str], str]:
    found = {}
    spare_seen = False
    with suppress(FileNotFoundError, NotADirectoryError):
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # the listing's own descriptor, closed by now
                target = os.readlink(f"/proc/self/fd/{number}")
                if target == SPARE_DESCRIPTOR and not spare_seen:
                    spare_seen = True
                    continue
                found[int(number), target] = f"descriptor {number}: {target}"
    return found


def _threads() -> dict[threading.Thread, str]:
    return {
        thread: f"thread {thread.name!r}{', a daemon' if thread.daemon else ''}"
        for thread in threading.enumerate()
        if not IDLE_TRIO_THREAD.fullmatch(thread.name)
    }


def _tasks() -> dict[asyncio.Task[Any], str]:
    try:
        return {task: f"asyncio task {task!r}" for task in asyncio.all_tasks()}
    except RuntimeError:  # no event loop runs in this thread
        return {}


if sys.platform == "linux":

    def _children() -> dict[int, str]:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return {}  # by far the most frequent case, and a cheap one
        found: dict[int, str] = {}
        try:
            names = os.listdir("/proc")
        except FileNotFoundError:
            return found
        for name in names:
            if not name.isdecimal():
                continue
            with suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                # "PID (COMMAND) STATE PARENT ...", where the command may hold any character
                head, _, tail = file.read().rpartition(")")
                state, parent = tail.split()[:2]
                if int(parent) == os.getpid():
                    found[int(name)] = f"process {name}: {head.partition('(')[2]}, state {state}"
        return found

else:

    def _children() -> dict[int, str]:
        return {}
