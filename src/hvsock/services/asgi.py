"""An ASGI application as a service: HTTP/1.1 by uvicorn's protocol over each connection."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

from hvsock.errors import StateError
from hvsock.sockets.chosen import socket

from .caller import Caller
from .serving import RawService, raw_service

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")


@contextlib.asynccontextmanager
async def asgi_service(
    app: Any, name: str, *, id: str | None = None, port: int | None = None
) -> AsyncIterator[RawService]:
    """An application as a service for `serve`, started up within the context and shut down at its end::

        async with asgi_service(app, "Web", port=2762) as web, serve(web):
            ...

    The first half of the scope's `client` is the VmId of the partition that asks, as the fabric says it.

    Args:
        app: an ASGI application, one of starlette say.
        name: the service's friendly name.
        id: its ServiceId; either this or `port`.
        port: its AF_VSOCK port.

    Raises:
        StateError: the application's startup failed.
    """
    import uvicorn
    from uvicorn.server import ServerState

    config = uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False)
    config.load()
    lifespan = config.lifespan_class(config)
    await lifespan.startup()
    if lifespan.should_exit:
        raise StateError(f"{name}: the application's startup failed; its log says why")
    state = ServerState()
    kind: Any = config.http_protocol_class

    @raw_service(name, id=id, port=port)
    async def web(caller: Caller, connection: socket) -> None:
        ended = asyncio.Event()

        class Protocol(kind):  # type: ignore[misc]
            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                ended.set()

        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Protocol(config=config, server_state=state, app_state=lifespan.state), connection
        )
        try:
            await ended.wait()
        finally:
            transport.abort()
            await ended.wait()

    try:
        yield web
    finally:
        tasks = list(state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await lifespan.shutdown()
