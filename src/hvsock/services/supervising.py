"""The agent's supervisor: the process that has loaded what services need, and that forks the agent and its keeper.

Where one of them is killed or crashes, the next one is there at once, since it loads nothing: an emulated guest
would load for some seconds. All that can go wrong is in those; their supervisor only waits for signals.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from typing import Final

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
"""Least time from one start of a process to its next: one that always crashes takes no whole processor."""
END_SECONDS: Final = 30.0
"""How long the agent may take to end by itself, once it is told to. Commands get 5 s of it, PowerShell a few times
10 s; what takes longer hangs. The unit's TimeoutStopSec is longer."""
PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What ends the agent, unless it was ignored from the beginning."""
_PR_SET_PDEATHSIG: Final = 1
_SIGNALLED: Final = 128
"""What shells add to a signal's number for an exit code."""


class Child:
    """A process that is a fork of this one, and a new one where that has ended; it is killed when this one ends.

    There must be no other thread.

    Args:
        name: what the log calls it.
        run: what it does; returns its exit code.
    """

    def __init__(self, name: str, run: Callable[[], int]) -> None:
        self.name = name
        self._run = run
        self.pid = 0
        """Its number; 0 where there is none."""
        self.due = 0.0
        """When it may be started again, as time.monotonic counts."""

    def start(self, mask: Collection[int] = ()) -> None:
        """Fork it.

        Args:
            mask: the signals that are blocked there.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the kernel keeps no exit codes
        self.due = time.monotonic() + RESTART_SECONDS
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:  # or it has ended before that
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                code = self._run()
        except BaseException:
            log.exception("%s failed", self.name)
        finally:
            os._exit(code)  # nothing of what the supervisor, or a test, has begun is finished here

    def ended(self) -> int | None:
        """The exit code of one that ended, or a signal's negated number; None where none did, or it was said."""
        if not self.pid:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End it by SIGKILL, if there is one, and wait for that."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def supervise(agent: Child, keeper: Child) -> int:
    """Run the agent, and another one where it ends by a signal, until it ends by itself; and a keeper beside it.

    A signal of :data:`PASSED_ON` is passed on, and the end that follows is the last: by SIGKILL, if it does not
    come within :data:`END_SECONDS`. There is another keeper however one ends.

    Args:
        agent: the agent.
        keeper: the keeper, which may have been started.

    Returns:
        The last exit code, or 128 and the number of the signal that ended the agent.
    """
    ending = {number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    before = {int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *ending})}
    try:
        while True:
            for child in (keeper, agent):
                pid = child.pid
                if (code := child.ended()) is not None:
                    if child is agent and code >= 0:
                        return code
                    how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
                    log.warning("%s (process %d) %s; another is started", child.name, pid, how)
                if not child.pid and child.due <= time.monotonic():
                    child.start(before)
            dues = [child.due for child in (keeper, agent) if not child.pid]
            found = _awaited({signal.SIGCHLD, *ending}, min(dues, default=None))
            if found is not None and found[0] in ending:
                return _end(agent, found, ending) if agent.pid else _SIGNALLED + found[0]
    finally:
        keeper.kill()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(agent: Child, found: tuple[int, int] | None, ending: set[signal.Signals]) -> int:
    """Pass on the signal that ends the agent, and those that follow, until it has ended; its exit code."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        # one of a process; a terminal sends what it sends to the agent, too
        if found is not None and found[0] in ending and found[1] <= 0:
            os.kill(agent.pid, found[0])
        found = _awaited({signal.SIGCHLD, *ending}, deadline)
        if found is None:
            log.warning(
                "%s (process %d) does not end within %g s, and is killed", agent.name, agent.pid, END_SECONDS
            )
            agent.kill()
            return _SIGNALLED + signal.SIGKILL
        if (code := agent.ended()) is not None:
            return code if code >= 0 else _SIGNALLED - code


def _awaited(signals: set[signal.Signals], until: float | None) -> tuple[int, int] | None:
    """The next of these signals and its code; None where none comes until then, as time.monotonic counts."""
    if until is None:
        found = signal.sigwaitinfo(signals)
        return found.si_signo, found.si_code
    within = signal.sigtimedwait(signals, max(0.0, until - time.monotonic()))
    return None if within is None else (within.si_signo, within.si_code)
