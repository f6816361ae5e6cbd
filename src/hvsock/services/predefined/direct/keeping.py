"""The agent's hold of its keeper."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket as stdlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, Self

from hvsock.sockets.aio import ready
from hvsock.sockets.chosen import socket

from . import keeper
from .keeper import MAX_SESSIONS
from .order import Order

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

_PROGRAM: Final = (sys.executable, "-P", "-m", "hvsock.services.predefined.direct.keeper")


class Keeper:
    """A keeper's process, which this process starts, and which ends by :meth:`close`.

    Args:
        control: the socket to it, which this owns.
        pid: its process.
        wait: waits for its end.
    """

    def __init__(self, control: stdlib.socket, pid: int, wait: Callable[[], object]) -> None:
        self._control = control
        self._control.setblocking(False)
        self._wait = wait
        self.pid = pid

    @classmethod
    def forked(cls, *, load: bool = False) -> Self:
        """One that is a fork of this process, which has no threads and no event loop yet.

        Args:
            load: have it load asyncssh at once; else the first connection has it.
        """
        near, far = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                near.close()
                os.setsid()
                keeper.run(far, load=load)
                code = 0
            except BaseException:
                log.exception("direct: the keeper failed")
            finally:
                os._exit(code)
        far.close()
        return cls(near, pid, partial(os.waitpid, pid, 0))

    @classmethod
    def started(cls, sessions: int = MAX_SESSIONS) -> Self:
        """One that is a program of its own, which may be started at any time.

        Args:
            sessions: how many there may be at once.

        Raises:
            OSError: it cannot be started.
        """
        near, far = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_SEQPACKET)
        with far:
            try:
                process = subprocess.Popen(
                    [*_PROGRAM, str(far.fileno()), str(sessions)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[far.fileno()],
                    start_new_session=True,
                )
            except BaseException:
                near.close()
                raise
        return cls(near, process.pid, process.wait)

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
                await asyncio.wait({ended})  # its commands are ended first, for which they have a time
                raise

    async def _send(self, message: bytes, descriptors: list[int]) -> None:
        while True:
            try:
                stdlib.send_fds(self._control, [message], descriptors)
                return
            except BlockingIOError:
                await ready(self._control.fileno(), write=True)

    def close(self) -> None:
        """End it, and wait for that; what it has under way ends by itself."""
        self._control.close()
        self._wait()


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


def current() -> Keeper | None:
    """The keeper of this process, if it has one."""
    return _kept


@contextlib.contextmanager
def one_more() -> Iterator[Keeper]:
    """A keeper for one connection, where this process has none, or has one no more."""
    with contextlib.closing(Keeper.started()) as made:
        yield made
