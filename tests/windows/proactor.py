"""A loop that can do of Hyper-V sockets what asyncio's Proactor loop on Windows can, and no more.

From Lib/asyncio/windows_events.py and Modules/overlapped.c: the loop has no add_reader. sock_connect binds first,
by a function for AF_INET and AF_INET6. sock_accept makes the socket for AcceptEx of the listener's family, without
its protocol. Even with it, AcceptEx has 44 bytes for an address: sockaddr_in6 and 16 more. Streams over a
connected socket are what it is good for; underneath they are those of the selector loop here.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final, NoReturn

assert sys.platform == "linux"

from tests.windows.winsock import AF_HYPERV, WSAEPROTOTYPE, winerror

ACCEPT_EX_ADDRESS_BYTES: Final = 28 + 16
"""What the loop gives AcceptEx for each address."""
NEEDED_BYTES: Final = 36 + 16
"""What AcceptEx needs for SOCKADDR_HV."""


class ProactorLoop(asyncio.SelectorEventLoop):
    """Such a loop."""

    def add_reader(self, *_: Any) -> NoReturn:  # type: ignore[override]
        raise NotImplementedError

    def add_writer(self, *_: Any) -> NoReturn:  # type: ignore[override]
        raise NotImplementedError

    async def sock_connect(self, sock: Any, address: Any) -> NoReturn:
        assert sock.family == AF_HYPERV
        raise ValueError("Only AF_INET and AF_INET6 families are supported")

    async def sock_accept(self, sock: Any) -> NoReturn:
        assert sock.family == AF_HYPERV
        assert ACCEPT_EX_ADDRESS_BYTES < NEEDED_BYTES
        raise winerror(WSAEPROTOTYPE)

    async def create_server(self, *_: Any, sock: Any = None, **__: Any) -> NoReturn:
        await self.sock_accept(sock)
