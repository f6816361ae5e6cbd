"""The guest half: connections of the host, each of which the keeper serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from socket import MSG_PEEK
from typing import Final

from hvsock.constants import DIRECT
from hvsock.errors import RefusedError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.serving import RawService
from hvsock.sockets.aio import ready
from hvsock.sockets.chosen import socket

from . import keeping
from .order import Order

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

log = logging.getLogger(__name__)

FIRST_BYTE_SECONDS: Final = 60.0
"""How long a connection may say nothing."""


class Direct(RawService, name=DIRECT.name, port=DIRECT.port, short="direct"):
    """Commands, shells and SFTP for the host.

    Args:
        surroundings: the agent's.
    """

    POLICY_NAMES = frozenset({"direct.exec", "direct.shell", "direct.sftp"})

    def __init__(self, surroundings: Surroundings) -> None:
        self._order = Order(surroundings.path("direct"), surroundings.policy)

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Have the keeper serve it, once it says something."""
        if not caller.is_parent:
            raise RefusedError(f"Direct is for the host alone, and {caller} is not")
        try:
            async with asyncio.timeout(FIRST_BYTE_SECONDS):
                if not await _speaks(connection):
                    return
        except TimeoutError:
            log.info("direct: a connection said nothing, and is closed")
            return
        with keeping.at_hand() as keeper:
            await keeper.serve(connection, self._order)


async def _speaks(connection: socket) -> bool:
    """Whether something comes, which stays there; not where the connection ends."""
    while True:
        await ready(connection.fileno(), write=False)
        with contextlib.suppress(BlockingIOError):
            return bool(connection.recv(1, MSG_PEEK))
