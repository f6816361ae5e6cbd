"""The agent's hold of a keeper: it starts one, hears what it says, and thaws in its place should it be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from . import hooks
from .hooks import FOLDER, HOOK_SECONDS
from .interface import PREPARE_SECONDS
from .keeper import Order, thaw_hooks
from .kernel import Kernel, Linux

if sys.platform != "linux":
    raise ImportError("file systems are frozen by Linux")

KEEPER: Final = (sys.executable, "-P", "-m", "hvsock.services.predefined.vss.keeper")
"""The command of a keeper, before its order."""
GRACE_SECONDS: Final = 2.0
"""How much later than its time a keeper may be before the agent thaws in its place; a thaw takes milliseconds."""
MAX_HELD_RECORDS: Final = 1000
"""Most lines of the log that are held back during a freeze; what is more is dropped, the oldest first."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a freeze is made with; other than by default in tests alone.

    Attributes:
        mountinfo: the file with the mounts.
        hooks: the folder of hooks.
        hook_seconds: how long each may take.
        keeper: the command of a keeper.
        kernel: what the agent thaws by, should its keeper be killed.
    """

    mountinfo: str = "/proc/self/mountinfo"
    hooks: str = FOLDER
    hook_seconds: float = HOOK_SECONDS
    keeper: Sequence[str] = KEEPER
    kernel: Kernel = field(default_factory=Linux)


class Keeping:
    """One freeze, as the agent sees it.

    Args:
        setting: what it is made with.
        timeout: seconds.
        targets: (descriptor, path) of the file systems, in order; the descriptors stay the caller's.
    """

    def __init__(self, setting: Setting, timeout: float, targets: Sequence[tuple[int, str]]) -> None:
        self._setting = setting
        self._timeout = timeout
        self._targets = tuple(targets)
        self._near, far = socket.socketpair()
        self._near.setblocking(False)
        order = Order(far.fileno(), timeout, self._targets, setting.hooks, setting.hook_seconds)
        try:
            self._process = subprocess.Popen(
                [*setting.keeper, order.written()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[far.fileno(), *(number for number, _ in targets)],
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            self._near.close()
            raise
        finally:
            far.close()

    def thaw(self) -> None:
        """Have everything thawed; nothing happens where it is already."""
        with contextlib.suppress(OSError):
            self._near.send(b"thaw\n")

    def let_go(self) -> None:
        """Have everything thawed, as if this process had ended."""
        with contextlib.suppress(OSError):
            self._near.shutdown(socket.SHUT_WR)

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """What the keeper says, and at last what the agent did in its place; the keeper has ended then."""
        reader, writer = await asyncio.open_unix_connection(sock=self._near)
        begun: list[str] = []
        state = ""
        try:
            while True:
                limit = self._timeout + GRACE_SECONDS if state == "frozen" else PREPARE_SECONDS
                event: dict[str, Any] = {}
                with contextlib.suppress(TimeoutError, OSError, ValueError):
                    async with asyncio.timeout(limit):
                        event = json.loads(await reader.readline() or b"{}")
                if not event:
                    break
                if event["event"] == "hook":
                    begun.append(event["name"])
                elif event["event"] in ("frozen", "thawed", "failed"):
                    state = event["event"]
                yield event
        finally:
            writer.close()
            killed = state not in ("thawed", "failed")
            if killed:
                self._rescue()
        await asyncio.to_thread(self._process.wait)
        if killed:
            self._thaw()  # what it was about to freeze when it was killed
            why = "the process that freezes was killed"
            yield (
                {"event": "thawed", "why": "ended", "seconds": 0.0} if state else {"event": "failed", "text": why}
            )
            for warning in await asyncio.to_thread(self._thaw_hooks, begun):
                yield {"event": "warning", "text": warning}

    def _rescue(self) -> None:
        """Thaw without the keeper. At once and in this thread: all others may wait for a frozen disk."""
        self._process.send_signal(signal.SIGKILL)
        self._thaw()

    def _thaw(self) -> None:
        for descriptor, path in reversed(self._targets):
            with contextlib.suppress(OSError):  # it is not frozen
                self._setting.kernel.thaw(descriptor, path)

    def _thaw_hooks(self, begun: list[str]) -> list[str]:
        known = {one.name: one for one in hooks.find(self._setting.hooks)}
        return thaw_hooks([known[name] for name in begun if name in known], self._setting.hook_seconds)


class _Held(logging.Handler):
    """Keeps records for later."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=MAX_HELD_RECORDS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.records.append(record)


@contextlib.contextmanager
def log_held_back() -> Iterator[None]:
    """Hold the log of this process back: it may go to a frozen disk, and this process would wait for it."""
    root = logging.getLogger()
    held, handlers = _Held(), root.handlers[:]
    root.handlers[:] = [held]
    try:
        yield
    finally:
        root.removeHandler(held)
        root.handlers[:0] = handlers
        for record in held.records:
            root.handle(record)


def opened(path: str) -> int:
    """A descriptor of the file system at `path`, which the caller closes.

    Raises:
        OSError: what open raises.
    """
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
