"""trio: this library's helpers for it, and trio's own streams over a connection's descriptor."""

from __future__ import annotations

import errno
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

import hvsock
from hvsock import ServiceId

assert sys.platform == "linux"

from hvsock.sockets import trio as hvsock_trio
from tests.interop.support import LARGE, WAIT_SECONDS, Certificates, Wire, digest, payload
from tests.sockets.support import FakeBroker

ANSWER = LARGE[::-1]
CLIENTS = 60


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` under trio; it has WAIT_SECONDS."""

    async def bounded() -> None:
        with trio.fail_after(WAIT_SECONDS):
            await main()

    trio.run(bounded)


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything up to the end of the stream."""
    received = bytearray()
    while part := await stream.receive_some():
        received += part
    return bytes(received)


async def reverse(stream: trio.SocketStream) -> None:
    """Answer with all that came, last byte first."""
    data = await receive_all(stream)
    await stream.send_all(data[::-1])


def test_helpers(wire: Wire) -> None:
    """4 MiB each way with a half-close between, through open_stream and serve."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(
                lambda task_status: hvsock_trio.serve(
                    reverse, wire.serving, partition=wire.fabric.host.folder, task_status=task_status
                )
            )
            async with await hvsock_trio.open_stream(wire.target, partition=wire.guest.folder) as stream:
                await stream.send_all(LARGE)
                await stream.send_eof()
                assert digest(await receive_all(stream)) == digest(ANSWER)
            nursery.cancel_scope.cancel()

    run(main)


def test_many_clients(wire: Wire) -> None:
    """All of them at once, by the service's name."""

    async def client(seed: int) -> None:
        data = payload(CLIENTS * 1024, seed)
        address = "hvsocket://parent/HV%20Socket%20Demo"
        async with await hvsock_trio.open_stream(address, partition=wire.guest.folder) as stream:
            await stream.send_all(data)
            await stream.send_eof()
            assert digest(await receive_all(stream)) == digest(data[::-1])

    async def main() -> None:
        listener = await hvsock_trio.open_listener(wire.serving, partition=wire.fabric.host.folder)
        async with trio.open_nursery() as serving:
            serving.start_soon(trio.serve_listeners, reverse, [listener])
            async with trio.open_nursery() as clients:
                for seed in range(CLIENTS):
                    clients.start_soon(client, seed)
            serving.cancel_scope.cancel()

    run(main)


def test_plain_sockets(wire: Wire) -> None:
    """Connections made without trio: to_plain gives sockets that trio takes."""

    async def main() -> None:
        near, far = (
            trio.SocketStream(trio.socket.from_stdlib_socket(hvsock.to_plain(sock))) for sock in wire.pair()
        )
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(reverse, far)
            await near.send_all(LARGE)
            await near.send_eof()
            received = bytearray()
            while len(received) < len(ANSWER):
                received += await near.receive_some()
            assert digest(received) == digest(ANSWER)

    run(main)


def test_descriptors_alone(wire: Wire) -> None:
    """trio.socket.fromfd, which makes a duplicate, tells the kind of socket by itself."""

    async def main() -> None:
        near, far = wire.pair()
        with near, far:
            sockets = [trio.socket.fromfd(sock.fileno(), sock.family, sock.type) for sock in (near, far)]
        with sockets[0], sockets[1]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.SocketStream(sockets[0]).send_all, LARGE)
                received = bytearray()
                while len(received) < len(LARGE):
                    received += await sockets[1].recv(1 << 16)
        assert digest(received) == digest(LARGE)

    run(main)


def test_tls(wire: Wire, certificates: Certificates) -> None:
    """trio's SSLStream between the helpers' streams, up to its close_notify."""

    async def main() -> None:
        near, far = (
            trio.SocketStream(trio.socket.from_stdlib_socket(hvsock.to_plain(sock))) for sock in wire.pair()
        )
        received = bytearray()

        async def answer() -> None:
            async with trio.SSLStream(far, certificates.server, server_side=True) as tls:
                async for part in tls:
                    received.extend(part)
                    if len(received) == len(LARGE):
                        await tls.send_all(ANSWER)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            async with trio.SSLStream(near, certificates.client, server_hostname=certificates.name) as tls:
                await tls.send_all(LARGE)
                got = bytearray()
                while len(got) < len(ANSWER):
                    got += await tls.receive_some()
        assert (digest(received), digest(got)) == (digest(LARGE), digest(ANSWER))

    run(main)


def test_refusals(wire: Wire) -> None:
    """open_stream raises what connect does, with the broker's words."""

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError, match="nothing listens"):
            await hvsock_trio.open_stream(wire.target, partition=wire.guest.folder)
        with pytest.raises(OSError, check=lambda error: error.errno == errno.EADDRNOTAVAIL):
            await hvsock_trio.open_stream(("any", wire.service), partition=wire.guest.folder)
        with pytest.raises(hvsock.NotFoundError):
            await hvsock_trio.open_stream(("parent", "No Such Service"), partition=wire.guest.folder)
        with pytest.raises(PermissionError):
            await hvsock_trio.open_listener(("any", ServiceId.new()), partition=wire.fabric.host.folder)

    run(main)


def test_cancelled_while_connecting(wire: Wire) -> None:
    """A connect that waits for room in the backlog is given up without a trace."""

    async def main() -> None:
        with wire.listener(backlog=0), wire.dial():
            with trio.move_on_after(0.02) as scope:
                await hvsock_trio.open_stream(wire.target, partition=wire.guest.folder)
            assert scope.cancelled_caught

    run(main)


def test_a_full_queue_of_the_broker_is_waited_for(tmp_path: Path) -> None:
    fake = FakeBroker(tmp_path, backlog=0)

    async def main() -> None:
        with fake.connector() as first:
            first.connect_ex(("e0e16197-dd56-4a10-9195-5ee7a155a838", ServiceId.new()))
            streams = []

            async def connect() -> None:
                streams.append(await hvsock_trio.open_stream(("loopback", "1"), partition=fake.folder))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(connect)
                await trio.sleep(0.02)
                assert streams == []
                fake.take()[0].close()
                connection = await trio.to_thread.run_sync(fake.establish)
        async with streams[0] as stream:
            with connection:
                await stream.send_all(b"data")
                assert connection.recv(10) == b"data"

    run(main)
    fake.close()


def test_a_listener_that_is_closed(wire: Wire) -> None:
    """Who waits in accept learns of it."""

    async def main() -> None:
        listener = await hvsock_trio.open_listener(wire.serving, partition=wire.fabric.host.folder)
        ended = []

        async def accept() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await listener.accept()
            ended.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            await listener.aclose()
        await listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
        assert ended == [True]

    run(main)
