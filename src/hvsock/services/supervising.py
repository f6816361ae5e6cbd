"""The agent's supervisor: the process that has loaded what the services need, and that forks the agent.

Where the agent is killed or crashes, the next one is there at once, since it loads nothing: an emulated guest
would load for some seconds. All that can go wrong is in the agent; its supervisor only waits for signals.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Final

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

RESTART_SECONDS: Final = 1.0
"""Least time from one start of the agent to the next: one that always crashes takes no whole processor."""
PASSED_ON: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What ends the agent, unless it was ignored from the beginning."""
_PR_SET_PDEATHSIG: Final = 1
_SIGNALLED: Final = 128
"""What shells add to a signal's number for an exit code."""


def supervise(agent: Callable[[], int]) -> int:
    """Run the agent in a process of its own, and another one where it ends by a signal, until it ends by itself.

    A signal of :data:`PASSED_ON` is passed on, and the end that follows is the last. The agent ends when this
    process does, however that ends. There must be no other thread.

    Args:
        agent: runs it, and returns its exit code.

    Returns:
        The last exit code, or 128 and the number of the signal that was passed on, where it ended by that.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the kernel keeps no exit codes
    ending = {number for number in PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN}
    before = {int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *ending})}
    try:
        while True:
            started = time.monotonic()
            pid = _forked(agent, before)
            code, is_last = _waited(pid, ending)
            if code >= 0 or is_last:
                return code if code >= 0 else _SIGNALLED - code
            log.warning("the agent (process %d) was ended by signal %d; another is started", pid, -code)
            pause = max(0.0, started + RESTART_SECONDS - time.monotonic())
            if (found := signal.sigtimedwait(ending, pause)) is not None:
                return _SIGNALLED + found.si_signo
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _waited(pid: int, ending: set[signal.Signals]) -> tuple[int, bool]:
    """Wait for a process's end: its exit code, or a signal's negated number; and whether it was to end."""
    is_last = False
    while True:
        found = signal.sigwaitinfo({signal.SIGCHLD, *ending})
        if found.si_signo in ending:
            is_last = True
            if found.si_code <= 0:  # of a process; a terminal sends what it sends to the agent, too
                os.kill(pid, found.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), is_last


def _forked(agent: Callable[[], int], mask: set[int]) -> int:
    """A fork of this process that runs the agent, with these signals blocked; its number."""
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == supervisor:  # or it has ended before that
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = agent()
    except BaseException:
        log.exception("the agent failed")
    finally:
        os._exit(code)  # nothing of what the supervisor, or a test, has begun is finished here
