"""anyio on each of its backends: streams from a connection's descriptor, and a listener that is waited for."""

from __future__ import annotations

import errno
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from anyio.abc import ByteReceiveStream, ByteStream, SocketStream, UNIXSocketStream
from anyio.streams.tls import TLSStream

import hvsock

assert sys.platform == "linux"

from tests.interop.support import LARGE, WAIT_SECONDS, Certificates, Wire, digest, payload

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
KINDS = [SocketStream, UNIXSocketStream]
CLIENTS = 40

Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=list(BACKENDS))
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function on one backend; it has WAIT_SECONDS."""
    backend, options = BACKENDS[request.param]

    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            with anyio.fail_after(WAIT_SECONDS):
                await main()

        anyio.run(bounded, backend=backend, backend_options=options)

    return run


async def receive_all(stream: ByteReceiveStream) -> bytes:
    """Everything up to the end of the stream."""
    received = bytearray()
    async for part in stream:
        received += part
    return bytes(received)


async def reverse(stream: ByteStream) -> None:
    """Answer with all that came, last byte first."""
    async with stream:
        await stream.send((await receive_all(stream))[::-1])


async def check_reversed(stream: ByteStream, data: bytes) -> None:
    """Send `data` to a peer that answers in reverse."""
    async with stream:
        await stream.send(data)
        await stream.send_eof()
        assert digest(await receive_all(stream)) == digest(data[::-1])


@pytest.mark.parametrize("kind", KINDS)
def test_descriptors(wire: Wire, run: Run, kind: type[SocketStream]) -> None:
    """4 MiB each way with a half-close between; the stream owns the descriptor that detach gives away."""

    async def main() -> None:
        near, far = wire.pair()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reverse, await kind.from_socket(far.detach()))
            await check_reversed(await kind.from_socket(near.detach()), LARGE)

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_sockets(wire: Wire, run: Run, kind: type[SocketStream]) -> None:
    """The same by way of to_plain, which every backend takes as the socket that it is."""

    async def main() -> None:
        near, far = (hvsock.to_plain(sock) for sock in wire.pair())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reverse, await kind.from_socket(far))
            await check_reversed(await kind.from_socket(near), LARGE)

    run(main)


def test_listener(wire: Wire, run: Run) -> None:
    """Many clients: anyio waits for the listener's descriptor, and the listener itself accepts."""

    async def serve(listener: hvsock.socket, tasks: anyio.abc.TaskGroup) -> None:
        for _ in range(CLIENTS):
            while True:
                try:
                    sock, _ = listener.accept()
                    break
                except BlockingIOError:
                    await anyio.wait_readable(listener)
            tasks.start_soon(reverse, await UNIXSocketStream.from_socket(sock.detach()))

    async def client(seed: int) -> None:
        with hvsock.socket(partition=wire.guest.folder) as sock:
            sock.setblocking(False)
            assert sock.connect_ex((hvsock.HV_GUID_PARENT, wire.service)) in (0, errno.EINPROGRESS)
            await anyio.wait_writable(sock)
            assert sock.getsockopt(hvsock.SOL_SOCKET, hvsock.SO_ERROR) == 0
            stream = await UNIXSocketStream.from_socket(sock.detach())
        await check_reversed(stream, payload(CLIENTS * 1024, seed))

    async def main() -> None:
        with wire.listener() as listener:
            listener.setblocking(False)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve, listener, tasks)
                for seed in range(CLIENTS):
                    tasks.start_soon(client, seed)

    run(main)


def test_tls(wire: Wire, run: Run, certificates: Certificates) -> None:
    """anyio's TLS over the stream of a descriptor, each way, and its orderly end."""

    async def serve(descriptor: int) -> None:
        inner = await UNIXSocketStream.from_socket(descriptor)
        async with await TLSStream.wrap(inner, server_side=True, ssl_context=certificates.server) as stream:
            received = bytearray()
            while len(received) < len(LARGE):
                received += await stream.receive()
            await stream.send(bytes(received[::-1]))
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

    async def main() -> None:
        near, far = wire.pair()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, far.detach())
            inner = await UNIXSocketStream.from_socket(near.detach())
            async with await TLSStream.wrap(
                inner, hostname=certificates.name, ssl_context=certificates.client
            ) as stream:
                await stream.send(LARGE)
                received = bytearray()
                while len(received) < len(LARGE):
                    received += await stream.receive()
        assert digest(received) == digest(LARGE[::-1])

    run(main)
