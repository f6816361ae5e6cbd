"""The guest half: SSH on connections of the host; what it needs is loaded by the first of them."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final

from hvsock.constants import DIRECT
from hvsock.errors import HvsockError, RefusedError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.serving import RawService
from hvsock.sockets.chosen import socket

from .guestkeys import GuestKeys
from .handover import FIRST_BYTE, GuestIdentity, parse_question, read_line, refusal
from .users import own_user

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

log = logging.getLogger(__name__)

FIRST_BYTE_SECONDS: Final = 60.0
"""How long a connection may say nothing, and take for its hand-over; an emulated guest loads asyncssh in it."""
_SERVER: Final = "hvsock.services.predefined.direct.server"


class Direct(RawService, name=DIRECT.name, port=DIRECT.port, short="direct"):
    """Commands, shells and SFTP for the host.

    Args:
        surroundings: the agent's.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._keys: GuestKeys | None = None
        self._lock = asyncio.Lock()
        self._sessions: Any = None

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Take the hand-over where there is one, and speak SSH."""
        if not caller.is_parent:
            raise RefusedError(f"Direct is for the host alone, and {caller} is not")
        try:
            async with asyncio.timeout(FIRST_BYTE_SECONDS):
                first = await _peek(connection)
                if not first:
                    return
                keys, serve = await self._loaded()
                key = await self._hand_over(connection, keys) if first == FIRST_BYTE else keys.authorized()
        except TimeoutError:
            log.info("direct: a connection said nothing, or did not finish its hand-over, and is closed")
            return
        except HvsockError as error:
            log.warning("direct: %s", error)
            await asyncio.get_running_loop().sock_sendall(connection, refusal(str(error)))
            return
        await serve(connection, keys.private, key, self._surroundings.policy, self._sessions)

    async def _loaded(self) -> tuple[GuestKeys, Callable[..., Awaitable[None]]]:
        """The keys and the SSH server; the first time takes seconds of processor time in an emulated guest."""
        async with self._lock:  # not on the event loop, where the heartbeat would miss its beats
            server = await asyncio.to_thread(importlib.import_module, _SERVER)
            if self._keys is None:
                self._keys = await asyncio.to_thread(GuestKeys, self._surroundings.path("direct"))
                self._sessions = server.Sessions()
        serve: Callable[..., Awaitable[None]] = server.serve
        return self._keys, serve

    async def _hand_over(self, connection: socket, keys: GuestKeys) -> str:
        key = parse_question(await read_line(connection))
        await asyncio.to_thread(keys.authorize, key)
        answer = GuestIdentity(keys.public, keys.kept, own_user().name)
        await asyncio.get_running_loop().sock_sendall(connection, answer.line())
        return key


async def _peek(connection: socket) -> bytes:
    """The first byte of a connection, which stays there; empty where it ended."""
    from socket import MSG_PEEK

    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection.fileno(), readable.set)
    try:
        while True:
            await readable.wait()
            readable.clear()
            try:
                return connection.recv(1, MSG_PEEK)
            except BlockingIOError:
                continue
    finally:
        loop.remove_reader(connection.fileno())
