"""The agent's hold of its keeper."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as stdlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from hvsock.sockets.aio import ready
from hvsock.sockets.chosen import socket

from . import keeper
from .guestkeys import was_handed_over
from .keeper import MAX_SESSIONS, Slots
from .order import Order

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

END_SECONDS: Final = 10.0
"""How long a connection may take to end its commands, which are killed after 5 s; then nobody waits for it."""
_PROGRAM: Final = (sys.executable, "-P", "-m", "hvsock.services.predefined.direct.keeper")


class Keeper:
    """A keeper, as a process sees it that has connections served.

    Args:
        control: the socket to it, which this owns.
    """

    def __init__(self, control: stdlib.socket) -> None:
        self._control = control
        self._control.setblocking(False)

    async def serve(self, connection: socket, order: Order) -> None:
        """Have a connection served, and wait for its end; it ends if this is cancelled.

        Args:
            connection: the socket, which is closed here once the keeper has it.
            order: how it is served.

        Raises:
            OSError: there is no keeper any more.
        """
        near, far = stdlib.socketpair()
        with near:
            near.setblocking(False)
            with far:
                await self._send(order.written(), [connection.fileno(), far.fileno()])
            os.close(connection.detach())
            loop = asyncio.get_running_loop()
            ended = asyncio.ensure_future(loop.sock_recv(near, 1))
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:
                near.shutdown(stdlib.SHUT_WR)
                await asyncio.wait({ended}, timeout=END_SECONDS)  # its commands are ended first
                ended.cancel()
                await asyncio.wait({ended})
                raise

    async def _send(self, message: bytes, descriptors: list[int]) -> None:
        while True:
            try:
                stdlib.send_fds(self._control, [message], descriptors)
                return
            except BlockingIOError:
                await ready(self._control.fileno(), write=True)

    def close(self) -> None:
        """Send nothing more; what is under way ends by itself."""
        self._control.close()


class Program(Keeper):
    """A keeper that is a program of its own, which may be started at any time, and ends by :meth:`close`.

    Args:
        sessions: how many there may be at once.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, sessions: int = MAX_SESSIONS) -> None:
        near, far = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_SEQPACKET)
        super().__init__(near)
        with far:
            try:
                self._process = subprocess.Popen(
                    [*_PROGRAM, str(far.fileno()), str(sessions)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[far.fileno()],
                    start_new_session=True,
                )
            except BaseException:
                near.close()
                raise
        self.pid = self._process.pid

    def close(self) -> None:
        """End it, and wait for that."""
        super().close()
        self._process.wait()


class Forked(Keeper):
    """A keeper that is a fork of a process without threads, and another fork where it was killed, one at a time.

    What is sent while there is none waits for the next one.

    Args:
        folder: the guest's keys.
    """

    def __init__(self, folder: str) -> None:
        near, self._far = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_SEQPACKET)
        super().__init__(near)
        self._folder = folder
        self._slots = Slots(MAX_SESSIONS)

    @property
    def is_awaited(self) -> bool:
        """Whether a host came to Direct before: it comes again, and soon."""
        return was_handed_over(self._folder)

    def run(self) -> int:
        """Be the keeper, in a fork of the process that made this."""
        self._control.close()
        os.setsid()
        keeper.run(self._far, self._slots, load=self.is_awaited)
        return 0

    def close(self) -> None:
        """As for each keeper; the fork ends, too."""
        super().close()
        self._far.close()
        self._slots.close()


_kept: Keeper | None = None


@contextlib.contextmanager
def kept(made: Keeper) -> Iterator[Keeper]:
    """Have `made`, which the caller closes, serve what comes to this process's Direct while the context lasts."""
    global _kept
    before, _kept = _kept, made
    try:
        yield made
    finally:
        _kept = before


@contextlib.contextmanager
def at_hand() -> Iterator[Keeper]:
    """The keeper of this process, or one for one connection, where it has none."""
    if _kept is not None:
        yield _kept
    else:
        with contextlib.closing(Program()) as made:
            yield made
