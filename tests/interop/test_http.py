"""HTTP: uvicorn serves what a Hyper-V listener accepts, and httpcore asks through a backend of a few lines."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpcore
import pytest
import uvicorn
from uvicorn.server import ServerState

import hvsock

assert sys.platform == "linux"

from hvsock.sockets.aio import Server
from tests.interop.support import CHUNK_BYTES, PORT, WAIT_SECONDS, Wire, digest, payload, run_on

BODY = payload(10_000_000, 1)
ANSWER = payload(10_000_000, 2)
URL = f"http://parent:{PORT}"
LIMITS = {"timeout": {"connect": WAIT_SECONDS, "read": WAIT_SECONDS, "write": WAIT_SECONDS, "pool": WAIT_SECONDS}}

Message = MutableMapping[str, Any]


class App:
    """An ASGI application: it answers every request with ANSWER, and the digest of what was sent.

    Attributes:
        clients: who asked, as the server says it.
    """

    def __init__(self) -> None:
        self.clients: list[tuple[str, int] | None] = []

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.clients.append(scope["client"])
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        headers = [(b"content-length", b"%d" % len(ANSWER)), (b"x-digest", digest(body).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in chunks(ANSWER):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def chunks(data: bytes) -> Iterator[bytes]:
    """`data` in pieces, as programs send large bodies."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


class Stream(httpcore.NetworkStream):
    """A connected socket as httpcore wants it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._sock.settimeout(timeout)
        return self._sock.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._sock.settimeout(timeout)
        self._sock.sendall(buffer)

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        raise NotImplementedError

    def get_extra_info(self, info: str) -> Any:
        return {"socket": self._sock, "server_addr": self._sock.getpeername()}.get(info)


class Backend(httpcore.NetworkBackend):
    """Connects by Hyper-V socket: the host of a URL is the partition, and its port the service.

    Attributes:
        connections: how many were made.
    """

    def __init__(self, partition: str) -> None:
        self._partition = partition
        self.connections = 0

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        self.connections += 1
        return Stream(hvsock.create_connection((host, str(port)), timeout, partition=self._partition))


def ask(pool: httpcore.ConnectionPool) -> None:
    """One request with both bodies large."""
    headers = [("Content-Length", str(len(BODY)))]
    response = pool.request("POST", URL, headers=headers, content=chunks(BODY), extensions=LIMITS)
    assert response.status == 200
    assert dict(response.headers)[b"x-digest"].decode() == digest(BODY)
    assert digest(response.content) == digest(ANSWER)


def config(app: App) -> uvicorn.Config:
    """uvicorn with its parser in Python, and nothing that changes this process."""
    return uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)


def test_uvicorn_serves_a_listener(wire: Wire) -> None:
    """The server as it is: it takes the listener for a socket that is bound already, as gunicorn gives it.

    Two requests share a connection, and the application sees who asked: the guest's VmId, and a number for
    its ServiceId.
    """
    app, backend = App(), Backend(wire.guest.folder)

    def client() -> None:
        with httpcore.ConnectionPool(network_backend=backend) as pool:
            ask(pool)
            ask(pool)

    async def main() -> None:
        server = uvicorn.Server(config(app))
        serving = asyncio.create_task(server.serve(sockets=[wire.listener()]))
        try:
            await asyncio.to_thread(client)
        finally:
            server.should_exit = True
            await serving

    run_on("asyncio", main())
    assert backend.connections == 1
    assert len(set(app.clients)) == 1
    asked = app.clients[0]
    assert asked is not None
    assert asked[0] == wire.guest.id


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_uvicorn_protocol_behind_a_server_of_hvsock(wire: Wire, loop: str) -> None:
    """For loops that accept by themselves: hvsock's server accepts, and uvicorn's protocol does the rest."""
    app, backend = App(), Backend(wire.guest.folder)
    requests = 4

    def client() -> None:
        with httpcore.ConnectionPool(network_backend=backend) as pool, ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(ask, pool) for _ in range(requests)]:
                done.result(WAIT_SECONDS)

    async def main() -> None:
        settings, state = config(app), ServerState()
        settings.load()
        protocol: Any = settings.http_protocol_class
        async with Server(wire.listener(), lambda _: protocol(config=settings, server_state=state, app_state={})):
            await asyncio.to_thread(client)
            while state.connections or state.tasks:
                await asyncio.sleep(0.005)

    run_on(loop, main())
    assert len(app.clients) == requests
    assert 1 <= backend.connections <= 2
