"""A starlette application as a service."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

assert sys.platform == "linux"

import hvsock
from hvsock.errors import StateError
from hvsock.services.asgi import asgi_service
from hvsock.services.serving import serve
from hvsock.testing.fabric import fabric


async def who(request: Request) -> PlainTextResponse:
    """Who asks."""
    assert request.client is not None
    return PlainTextResponse(request.client.host)


def test_an_application_is_served_and_sees_who_asks() -> None:
    events: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        events.append("up")
        yield
        events.append("down")

    app = Starlette(routes=[Route("/who", who)], lifespan=lifespan)
    with fabric() as made:
        service = made.register("Web")
        guest = made.create_partition("web01")

        async def main() -> None:
            async with (
                asgi_service(app, "Web", id=service.id) as web,
                serve(web, partition=made.host.folder) as (serving,),
            ):
                assert events == ["up"]
                reader, writer = await hvsock.open_connection(("parent", service.id), partition=guest.folder)
                for connection in ("keep-alive", "close"):
                    writer.write(f"GET /who HTTP/1.1\r\nHost: parent\r\nConnection: {connection}\r\n\r\n".encode())
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200")
                    assert await reader.readexactly(36) == guest.id.encode()
                writer.close()
                await writer.wait_closed()
                _, held = await hvsock.open_connection(("parent", service.id), partition=guest.folder)
                while not serving.connections:
                    await asyncio.sleep(0.005)
            assert events == ["up", "down"]
            held.close()
            with contextlib.suppress(ConnectionError):
                await held.wait_closed()

        asyncio.run(main())


def test_an_application_that_does_not_start_is_not_served() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise KeyError("no database")
        yield

    async def main() -> None:
        async with asgi_service(Starlette(lifespan=lifespan), "Web", port=2762):
            pass

    with pytest.raises(StateError, match="startup failed"):
        asyncio.run(main())
