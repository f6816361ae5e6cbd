"""Keeps one of the command's long-running sides as a child process, for as long as it is wanted.

The child ends with its parent, also where that is killed: what one started is gone when it is gone, and no process
is left that nobody looks after.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from hvsock.fabric import paths
from hvsock.tied import tied
from hvsock.transport import TRANSPORT_VARIABLE, Transport

if sys.platform != "linux":
    raise ImportError("the kernel's word of a parent's death is Linux's")

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.4
"""Pause between two looks whether the program is wanted."""
RESTART_SECONDS: Final = 1.0
"""Pause before a program that ended is started again."""
END_SECONDS: Final = 3.0
"""How long the program may take to end after SIGTERM, before SIGKILL."""
_NOT_THEIRS: Final = (paths.PARTITION_VARIABLE, "NOTIFY_SOCKET")
"""Variables that are this process's alone."""

Wanted = Callable[[], AbstractContextManager[Callable[[], bool]]]
"""Makes, in the thread that asks, what tells whether the program is wanted."""


class Kept:
    """Keeps one program, from :meth:`start` to :meth:`stop`, in a thread of its own.

    Args:
        what: the program as its users know it, for the log, like "the relay".
        words: those of its `hvsock` command.
        folder: the fabric's folder, for whose host it speaks.
        wanted: asked until it is true, after each end of the program too. What it raises ends the thread.
        loses: what is lost when the program ends, for the log; may be empty.
        until_unwanted: whether the program is ended when it is not wanted any more; else it goes on.
    """

    def __init__(
        self,
        what: str,
        words: tuple[str, ...],
        folder: str,
        wanted: Wanted,
        *,
        loses: str = "",
        until_unwanted: bool = False,
    ) -> None:
        self._what = what
        self._command = [sys.executable, "-P", "-m", "hvsock", *words]
        self._environment = {name: value for name, value in os.environ.items() if name not in _NOT_THEIRS}
        self._environment[paths.FOLDER_VARIABLE] = folder
        self._environment[TRANSPORT_VARIABLE] = Transport.FABRIC  # whatever the configuration says to others
        self._wanted = wanted
        self._loses = loses
        self._until_unwanted = until_unwanted
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"hvsock keeps {what}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the program, if it was started here; waits until it has ended. To be called once."""
        os.eventfd_write(self._stop, 1)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        # this thread lives as long as its child: the kernel ends the child with the thread that started it
        with self._wanted() as wanted:
            while True:
                while not wanted():
                    if self._stopped_within(LOOK_SECONDS):
                        return
                if self._keep(wanted):
                    return

    def _keep(self, wanted: Callable[[], bool]) -> bool:
        """Start the program and wait for its end; whether this process is to end."""
        try:
            child = subprocess.Popen(
                tied(self._command),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # ctrl-C in a terminal is for this process
            )
        except OSError as error:
            log.error("%s cannot be started: %s", self._what, error)
            return self._stopped_within(RESTART_SECONDS)
        with child, _descriptor(os.pidfd_open(child.pid)) as ended:
            while not _readable(ended):
                stopped = self._stopped_within(LOOK_SECONDS if self._until_unwanted else None, ended)
                if stopped or (self._until_unwanted and not wanted()):
                    _end(child, ended)
                    return stopped
        code = child.returncode
        how = f"by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"with code {code}"
        log.warning("%s ended %s%s; it is started again", self._what, how, self._loses)
        return self._stopped_within(RESTART_SECONDS)

    def _stopped_within(self, seconds: float | None, other: int | None = None) -> bool:
        """Wait for :meth:`stop`, for `other` to be readable, or for the time; whether it is the first."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if other is not None:
            poll.register(other, select.POLLIN)
        return any(
            descriptor == self._stop for descriptor, _ in poll.poll(None if seconds is None else seconds * 1000)
        )


@contextlib.contextmanager
def _descriptor(number: int) -> Iterator[int]:
    try:
        yield number
    finally:
        os.close(number)


def _readable(descriptor: int, seconds: float = 0) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _end(child: subprocess.Popen[bytes], ended: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    if not _readable(ended, END_SECONDS):
        child.kill()
    child.wait()
