"""The keeper: a process that freezes file systems, and thaws them whatever happens to others.

The agent starts it for one freeze, with a socket to it. The keeper has loaded all that it needs before anything
is frozen, holds its memory in place, opens no file and writes to none while something is frozen. It thaws when it
is told to, when the socket ends because the agent did (kill -9 too), at SIGTERM, and when the time is over. The
time counts from the first file system on, whether all are frozen by then or not.

On the socket it writes lines of JSON, each with an "event": hook (its thaw is due from now on, "name"), frozen
("seconds"), thawed ("why", "seconds"), failed ("text": nothing is frozen any more), warning ("text").
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, Final, NamedTuple

from . import hooks
from .hooks import FOLDER, HOOK_SECONDS
from .kernel import Kernel, Linux
from .machine import Machine

if sys.platform != "linux":
    raise ImportError("file systems are frozen by Linux")

_MCL_CURRENT_AND_FUTURE: Final = 3
_NEVER_KILLED: Final = b"-1000"
"""For /proc/self/oom_score_adj: a machine short of memory ends others first."""


class Order(NamedTuple):
    """What a keeper is started for.

    Attributes:
        control: the descriptor of its socket to the agent.
        timeout: seconds.
        targets: (descriptor, path) of file systems, in the order in which they are frozen.
        hooks: their folder.
        hook_seconds: how long each may take.
    """

    control: int
    timeout: float
    targets: tuple[tuple[int, str], ...]
    hooks: str = FOLDER
    hook_seconds: float = HOOK_SECONDS

    def written(self) -> str:
        """This as a word on the command line."""
        return json.dumps(self._asdict())

    @classmethod
    def read(cls, word: str) -> Order:
        """The other way."""
        found = json.loads(word)
        return cls(**{**found, "targets": tuple((number, path) for number, path in found["targets"])})


class Keeper:
    """One freeze.

    Args:
        order: what it is about.
        control: the socket to the agent, owned by the caller.
        wakeup: a descriptor that becomes readable when this process is told to end.
        kernel: what freezes.
    """

    def __init__(self, order: Order, control: socket.socket, wakeup: int, kernel: Kernel) -> None:
        self._order = order
        self._control = control
        self._wakeup = wakeup
        self._kernel = kernel
        self._machine = Machine(len(order.targets))
        self._lock = threading.Lock()
        self._failure = ""
        self._worker_ended, self._worker_says = os.pipe()
        self._worker = threading.Thread(target=self._freeze)

    def run(self) -> None:
        """Everything, to the end of the hooks."""
        begun: list[hooks.Found] = []
        try:
            self._before(begun)
            self._keep()
        except hooks.HookError as error:
            self._tell("failed", text=str(error))
        except hooks.InterruptError:
            self._tell("failed", text="it was ended while a hook ran")
        finally:
            if self._worker.ident is not None:
                self._worker.join()
            os.close(self._worker_ended)
            os.close(self._worker_says)
            for warning in thaw_hooks(begun, self._order.hook_seconds):
                self._tell("warning", text=warning)

    def _before(self, begun: list[hooks.Found]) -> None:
        with select.epoll() as either:
            either.register(self._control, select.EPOLLIN)
            either.register(self._wakeup, select.EPOLLIN)
            for hook in hooks.find(self._order.hooks):
                if not hook.obstacle:
                    begun.append(hook)
                    self._tell("hook", name=hook.name)
                hooks.run(hook, "freeze", either.fileno(), seconds=self._order.hook_seconds)

    def _keep(self) -> None:
        started = time.monotonic()
        deadline = started + self._order.timeout
        self._worker.start()
        watched = select.poll()
        for descriptor in (self._control.fileno(), self._wakeup, self._worker_ended):
            watched.register(descriptor, select.POLLIN)
        frozen_at = None
        while True:
            left = deadline - time.monotonic()
            ready = {number for number, _ in watched.poll(max(0.0, left) * 1000)}
            if self._worker_ended in ready:
                watched.unregister(self._worker_ended)
                if self._failure:
                    why = "failed"
                    break
                frozen_at = time.monotonic()
                self._tell("frozen", seconds=frozen_at - started)
            elif self._control.fileno() in ready:
                why = "asked" if self._told() else "host lost"
                break
            elif self._wakeup in ready:
                why = "ended"
                break
            elif time.monotonic() >= deadline:
                why = "timed out"
                break
        others = self._thaw()
        if frozen_at is not None:
            # a file system that somebody else had thawed was written to, so nothing that was copied is good
            self._tell("thawed", why="others" if others else why, seconds=time.monotonic() - frozen_at)
        else:
            self._tell(
                "failed", text=self._failure or f"{why} after {time.monotonic() - started:.1f} s of freezing"
            )

    def _told(self) -> bool:
        """Whether the agent says something, rather than nothing any more."""
        with contextlib.suppress(OSError):
            return bool(self._control.recv(64))
        return False

    def _freeze(self) -> None:
        """In a thread of its own: an ioctl cannot be interrupted, and takes as long as the disk does."""
        while True:
            with self._lock:
                number = self._machine.begin_next()
            if number is None:
                break
            descriptor, path = self._order.targets[number]
            try:
                self._kernel.freeze(descriptor, path)
            except OSError as error:
                self._failure = f"{path} cannot be frozen: {_reason(error)}"
                break
            with self._lock:
                stays = self._machine.frozen(number)
            if not stays:
                self._thaw_one(number)
        os.write(self._worker_says, b".")

    def _thaw(self) -> bool:
        """Thaw everything. Returns whether somebody else had done so already."""
        with self._lock:
            numbers = self._machine.end()
        thawed = [self._thaw_one(number) for number in numbers]
        return not all(thawed)

    def _thaw_one(self, number: int) -> bool:
        try:
            self._kernel.thaw(*self._order.targets[number])
        except OSError:
            return False
        return True

    def _tell(self, event: str, **more: Any) -> None:
        with contextlib.suppress(OSError):  # the agent is gone, or will not read: that keeps nobody from thawing
            self._control.send(json.dumps({"event": event, **more}).encode() + b"\n", socket.MSG_DONTWAIT)


def thaw_hooks(begun: list[hooks.Found], seconds: float) -> list[str]:
    """Run hooks after a thaw, the last one first; what went wrong."""
    warnings = []
    for hook in reversed(begun):
        try:
            hooks.run(hook, "thaw", seconds=seconds)
        except hooks.HookError as error:
            warnings.append(str(error))
    return warnings


def _reason(error: OSError) -> str:
    known = {
        errno.EBUSY: "somebody else has frozen it",
        errno.EPERM: "freezing needs the capability CAP_SYS_ADMIN",
        errno.EOPNOTSUPP: "the kernel has no way to freeze it",
    }
    return known.get(error.errno or 0, error.strerror or str(error))


def main(kernel: Kernel | None = None) -> None:
    """Do what the command line says.

    Args:
        kernel: what freezes, by default the real one.
    """
    order = Order.read(sys.argv[1])
    wakeup, says = os.pipe()
    os.set_blocking(says, False)
    signal.set_wakeup_fd(says)
    signal.signal(signal.SIGTERM, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _stay_in_memory()
    with socket.socket(fileno=order.control) as control:
        Keeper(order, control, wakeup, kernel or Linux()).run()


def _stay_in_memory() -> None:
    """As far as this process may: without it, pages of programs are read back from a frozen disk, which works."""
    ctypes.CDLL(None, use_errno=True).mlockall(_MCL_CURRENT_AND_FUTURE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(_NEVER_KILLED)


if __name__ == "__main__":
    main()
