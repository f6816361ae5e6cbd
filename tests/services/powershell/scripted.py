"""A guest that plays what it is told over a fabric: a script for each connection of either service."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field

assert sys.platform == "linux"

from hvsock.constants import VM_SESSION_SERVICE, VM_SESSION_SERVICE_2
from hvsock.services.caller import Caller
from hvsock.services.serving import RawService
from hvsock.sockets.chosen import socket
from tests.services.powershell.rows import Script, sizes_of


@dataclass
class Playing:
    """Scripts for the connections of a service, one after the other.

    Attributes:
        scripts: those that are left.
        played: those that were played to their end, or until the client ended the connection.
        strange: what was said and not due.
    """

    scripts: list[Script]
    played: list[Script] = field(default_factory=list)
    strange: list[bytes] = field(default_factory=list)

    async def play(self, connection: socket) -> None:
        """Play the next script."""
        script = self.scripts.pop(0)
        self.played.append(script)
        loop = asyncio.get_running_loop()
        sizes = sizes_of(script.cuts)
        for row in script.rows:
            heard = b""
            while len(heard) < len(row.said):
                data = await loop.sock_recv(connection, len(row.said) - len(heard))
                if not data:
                    return
                heard += data
            script.said += heard
            if heard != row.said:
                self.strange.append(heard)
                return
            rest = row.answer
            while rest:
                size = next(sizes)
                await loop.sock_sendall(connection, rest[:size])
                rest = rest[size:]
                await asyncio.sleep(0)
        if not script.end:
            while await loop.sock_recv(connection, 4096):
                pass


class ScriptedBroker(RawService, name=VM_SESSION_SERVICE.name, id=VM_SESSION_SERVICE.id):
    """The first connection."""

    def __init__(self, *scripts: Script) -> None:
        self.playing = Playing(list(scripts))

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Play."""
        await self.playing.play(connection)


class ScriptedSession(RawService, name=VM_SESSION_SERVICE_2.name, id=VM_SESSION_SERVICE_2.id):
    """The second connection."""

    def __init__(self, *scripts: Script) -> None:
        self.playing = Playing(list(scripts))

    async def handle(self, caller: Caller, connection: socket) -> None:
        """Play."""
        await self.playing.play(connection)
