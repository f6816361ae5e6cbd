"""PowerShell in a guest, by its name: a session over Hyper-V sockets, without a network."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from .commands import Command, Script
from .handshake import Credentials
from .hosts import Host, HostGoneError
from .records import Record, Result, ScriptError, Secret, State, Stream

if TYPE_CHECKING:
    from .pools import RunspacePool

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

__all__ = [
    "Command",
    "Credentials",
    "Host",
    "HostGoneError",
    "Record",
    "Result",
    "Script",
    "ScriptError",
    "Secret",
    "State",
    "Stream",
    "connect",
]

SESSION_SECONDS: Final = 60.0
"""How long a session may take from the first connection on until scripts can run."""


@contextlib.asynccontextmanager
async def connect(
    vm: str,
    credentials: Credentials | None = None,
    *,
    user: str | None = None,
    configuration: str = "",
    partition: str | None = None,
    host: Host | None = None,
    runspaces: int = 1,
    timeout: float = SESSION_SECONDS,
    require_authentication: bool = False,
    container: bool = False,
) -> AsyncIterator[RunspacePool]:
    """A session of PowerShell in a VM, closed at the end.

    ::

        async with connect("web01", Credentials("root", "secret")) as pool:
            result = await pool.run("Get-Process | Select-Object -First 3")
            print(result.output[0]["Name"])

    Args:
        vm: the VM, by its name or its VmId.
        credentials: whom to be there; without them, the guest lets this host in by its key.
        user: whom to be there by the host's key; by default the agent's own user.
        configuration: the name of a session configuration; the guest's default one without.
        partition: the partition's folder to connect from; by default that of the process.
        host: whom scripts may ask and write to; without one, they have no host.
        runspaces: how many pipelines may run at the same time; others wait in the guest.
        timeout: seconds that all of it may take.
        require_authentication: refuse guests that speak the older version, which has no tokens.
        container: the session is a container's, which asks for no credentials.

    Raises:
        OSError, UsageError, NotFoundError, NoFabricError: as :func:`hvsock.resolve` and connect say.
        HvsockError: the session, as :func:`hvsock.services.powershell.brokering.open_session` and
            :func:`hvsock.services.powershell.pools.opened` say.
    """
    from .brokering import host_credentials, open_session
    from .pools import opened  # psrpcore takes a while to load
    from .streams import SocketStream

    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    if credentials is None and not container:
        credentials = await host_credentials(vm, user, partition=partition, timeout=timeout)
    sock = await open_session(
        vm,
        credentials,
        configuration=configuration,
        partition=partition,
        timeout=max(deadline - loop.time(), 0.001),
        require_authentication=require_authentication,
        container=container,
    )
    stream = SocketStream(sock)
    left = max(deadline - loop.time(), 0.001)
    async with opened(stream, stream, host=host, runspaces=runspaces, timeout=left) as pool:
        yield pool
