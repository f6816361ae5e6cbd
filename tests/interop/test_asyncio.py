"""asyncio: the loop's own calls, its transports and servers, and this library's streams, also on uvloop."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

import hvsock
from hvsock import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, HV_GUID_PARENT, ServiceId
from hvsock.sockets import streams

assert sys.platform == "linux"

from tests.interop.support import LARGE, Certificates, digest, listen
from tests.sockets.support import WAIT_SECONDS, FakeBroker, World, fails, pending

Run = Callable[[Coroutine[Any, Any, None]], None]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a coroutine on one of the two loops, with a limit, and fails when something went wrong beside it."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
    complaints: list[dict[str, Any]] = []

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            await asyncio.wait_for(coroutine, WAIT_SECONDS)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(bounded())

    yield run
    gc.collect()  # transports of uvloop close their socket objects when they are collected
    assert complaints == []


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends everything back when the peer has ended, in capitals."""
    data = await reader.read()
    writer.write(data.upper())
    writer.write_eof()
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def closing(streams: Streams) -> AsyncIterator[Streams]:
    try:
        yield streams
    except BaseException:
        streams[1].transport.abort()
        raise
    streams[1].close()
    await streams[1].wait_closed()


class TestStreams:
    def test_large_data_and_half_close(self, world: World, run: Run) -> None:
        async def main() -> None:
            service_id = world.service()
            async with await hvsock.start_server(
                shout, ("children", service_id), partition=world.host.folder
            ) as server:
                assert [sock.getsockname() for sock in server.sockets] == [(HV_GUID_CHILDREN, service_id)]
                streams = await hvsock.open_connection(("parent", service_id), partition=world.vm.folder)
                async with closing(streams) as (reader, writer):
                    peer = writer.get_extra_info("peername")  # uvloop asks the kernel: a name of AF_UNIX
                    assert peer == (HV_GUID_PARENT, service_id) or isinstance(peer, str)
                    writer.write(LARGE)
                    writer.write_eof()
                    answer = await reader.read()
                    assert digest(answer) == digest(LARGE.upper())

        run(main())

    def test_many_at_once(self, world: World, run: Run) -> None:
        async def one(service_id: str, number: int) -> bytes:
            streams = await hvsock.open_connection(f"hvsocket://parent/{service_id}", partition=world.vm.folder)
            async with closing(streams) as (reader, writer):
                writer.write(b"number %d" % number)
                writer.write_eof()
                return await reader.read()

        async def main() -> None:
            service_id = world.service()
            async with await hvsock.start_server(
                shout, ("children", service_id), backlog=4, partition=world.host.folder
            ):
                answers = await asyncio.gather(*(one(service_id, number) for number in range(100)))
            assert answers == [b"NUMBER %d" % number for number in range(100)]

        run(main())

    def test_by_name(self, world: World, run: Run) -> None:
        async def main() -> None:
            service_id = world.service()
            name = f"service {service_id}"
            async with await hvsock.start_server(shout, ("children", name), partition=world.host.folder):
                streams = await hvsock.open_connection(("parent", name), partition=world.vm.folder)
                async with closing(streams) as (reader, writer):
                    writer.write(b"by name")
                    writer.write_eof()
                    assert await reader.read() == b"BY NAME"

        run(main())

    def test_tls(self, world: World, run: Run, certificates: Certificates) -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            data = await reader.readexactly(len(LARGE))
            writer.write(data[::-1])
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        async def main() -> None:
            service_id = world.service()
            async with await hvsock.start_server(
                handle, ("children", service_id), ssl=certificates.server, partition=world.host.folder
            ):
                streams = await hvsock.open_connection(
                    ("parent", service_id),
                    ssl=certificates.client,
                    server_hostname=certificates.name,
                    partition=world.vm.folder,
                )
                async with closing(streams) as (reader, writer):
                    writer.write(LARGE)
                    assert digest(await reader.readexactly(len(LARGE))) == digest(LARGE[::-1])

        run(main())

    def test_tls_without_a_name(self, world: World, run: Run, certificates: Certificates) -> None:
        async def main() -> None:
            listener, service_id = listen(world)
            with listener, pytest.raises(ValueError, match="server_hostname"):
                await hvsock.open_connection(
                    ("parent", service_id), ssl=certificates.client, partition=world.vm.folder
                )

        run(main())

    def test_a_peer_that_does_not_speak_tls(self, world: World, run: Run, certificates: Certificates) -> None:
        async def main() -> None:
            service_id = world.service()
            async with await hvsock.start_server(
                shout, ("children", service_id), ssl=certificates.server, partition=world.host.folder
            ):
                streams = await hvsock.open_connection(("parent", service_id), partition=world.vm.folder)
                async with closing(streams) as (reader, writer):
                    writer.write(b"hello?\n" * 10)
                    try:
                        await reader.read()
                    except ConnectionResetError:
                        return

        run(main())

    def test_errors(self, world: World, run: Run) -> None:
        async def main() -> None:
            with pytest.raises(ConnectionRefusedError, match="nothing listens"):
                await hvsock.open_connection((str(world.vm.id), world.service()), partition=world.host.folder)
            with fails(errno.EADDRNOTAVAIL):
                await hvsock.open_connection(("any", world.service()), partition=world.vm.folder)
            with pytest.raises(hvsock.UsageError):
                await hvsock.open_connection("nonsense", partition=world.vm.folder)
            with pytest.raises(hvsock.NotFoundError):
                await hvsock.open_connection(("parent", "No Such Service"), partition=world.vm.folder)
            with fails(errno.EACCES):
                await hvsock.start_server(shout, ("any", ServiceId.new()), partition=world.host.folder)

        run(main())

    def test_cancelled_while_connecting(self, world: World, run: Run) -> None:
        async def main() -> None:
            with pending(world) as (_, _, first), pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await hvsock.open_connection(first.getpeername(), partition=world.host.folder)

        run(main())

    def test_a_full_queue_of_the_broker_is_waited_for(self, tmp_path: Any, run: Run) -> None:
        async def main() -> None:
            fake = FakeBroker(tmp_path, backlog=0)
            with fake.connector() as first:
                first.connect_ex((HV_GUID_LOOPBACK, ServiceId.new()))
                task = asyncio.create_task(hvsock.open_connection(("loopback", "1"), partition=fake.folder))
                done, _ = await asyncio.wait([task], timeout=0.03)
                assert not done
                fake.take()[0].close()
                connection = await asyncio.to_thread(fake.establish)
                with connection:
                    async with closing(await task) as (_, writer):
                        writer.write(b"data")
                        await writer.drain()
                        assert connection.recv(10) == b"data"
            fake.close()

        run(main())


class TestServer:
    def test_its_life(self, world: World, run: Run) -> None:
        async def main() -> None:
            service_id = world.service()
            server = await hvsock.start_server(shout, ("children", service_id), partition=world.host.folder)
            assert server.is_serving()
            assert server.get_loop() is asyncio.get_running_loop()
            streams = await hvsock.open_connection(("parent", service_id), partition=world.vm.folder)
            async with closing(streams) as (reader, writer):
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0)
                while not server._acceptor.tasks:
                    await asyncio.sleep(0.001)
                server.close()
                server.close()
                assert not server.is_serving()
                assert server.sockets == ()
                with fails(errno.ECONNREFUSED):
                    await hvsock.open_connection(("parent", service_id), partition=world.vm.folder)
                closed = asyncio.create_task(server.wait_closed())
                done, _ = await asyncio.wait([closed], timeout=0.02)
                assert not done, "a connection is still served"
                writer.write_eof()
                assert await reader.read() == b"A"
            await closed

        run(main())

    def test_serve_forever(self, world: World, run: Run) -> None:
        async def main() -> None:
            server = await hvsock.start_server(shout, ("children", world.service()), partition=world.host.folder)
            task = asyncio.create_task(server.serve_forever())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not server.is_serving()
            await server.wait_closed()

        run(main())

    def test_a_listener_that_is_shut_down_ends_it(self, world: World, run: Run) -> None:
        async def main() -> None:
            server = await hvsock.start_server(shout, ("children", world.service()), partition=world.host.folder)
            task = asyncio.create_task(server.serve_forever())
            server.sockets[0].shutdown(socket.SHUT_RD)
            with fails(errno.EINVAL):
                await task
            assert not server.is_serving()

        run(main())

    def test_a_plain_function_as_handler(self, world: World, run: Run) -> None:
        async def main() -> None:
            seen: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

            def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.close()
                seen.set_result(True)

            service_id = world.service()
            async with await hvsock.start_server(connected, ("children", service_id), partition=world.host.folder):
                streams = await hvsock.open_connection(("parent", service_id), partition=world.vm.folder)
                async with closing(streams) as (reader, _):
                    assert await reader.read() == b""
                assert await seen

        run(main())

    def test_a_handler_that_fails_is_reported(self, world: World) -> None:
        complaints: list[dict[str, Any]] = []

        async def fail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()
            raise ZeroDivisionError

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            service_id = world.service()
            async with await hvsock.start_server(fail, ("children", service_id), partition=world.host.folder):
                streams = await hvsock.open_connection(("parent", service_id), partition=world.vm.folder)
                async with closing(streams) as (reader, _):
                    assert await reader.read() == b""

        asyncio.run(main())
        assert [type(one["exception"]) for one in complaints] == [ZeroDivisionError]

    def test_short_of_descriptors(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """It says so, rests, and then takes what waits."""
        monkeypatch.setattr(streams, "EXHAUSTED_SECONDS", 0.05)
        complaints: list[dict[str, Any]] = []
        accept = hvsock.socket.accept
        failures = [OSError(errno.EMFILE, "Too many open files")]

        def short(self: Any) -> Any:
            if failures:
                raise failures.pop()
            return accept(self)

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            service_id = world.service()
            async with await hvsock.start_server(shout, ("children", service_id), partition=world.host.folder):
                monkeypatch.setattr(hvsock.socket, "accept", short)
                streams = await hvsock.open_connection(("parent", service_id), partition=world.vm.folder)
                async with closing(streams) as (reader, writer):
                    writer.write(b"late")
                    writer.write_eof()
                    assert await reader.read() == b"LATE"

        asyncio.run(main())
        assert [one["exception"].errno for one in complaints] == [errno.EMFILE]


class TestLoopCalls:
    """loop.sock_connect and so on, which know nothing of this library."""

    def test_transfer(self, world: World, run: Run) -> None:
        async def serve(listener: hvsock.socket) -> str:
            loop = asyncio.get_running_loop()
            sock, peer = await loop.sock_accept(listener)
            with sock:
                assert peer == sock.getpeername()
                received = bytearray()
                buffer = bytearray(1 << 16)
                while count := await loop.sock_recv_into(sock, buffer):
                    received += buffer[:count]
                await loop.sock_sendall(sock, received[::-1])
                return digest(received)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            listener, service_id = listen(world)
            listener.setblocking(False)
            with listener, world.fresh(world.vm, blocking=False) as sock:
                serving = asyncio.create_task(serve(listener))
                await loop.sock_connect(sock, (HV_GUID_PARENT, service_id))
                await loop.sock_sendall(sock, LARGE)
                sock.shutdown(socket.SHUT_WR)
                answer = bytearray()
                while part := await loop.sock_recv(sock, 1 << 16):
                    answer += part
                assert digest(answer) == digest(LARGE[::-1])
                assert await serving == digest(LARGE)

        run(main())

    def test_the_reason_of_a_refusal(self, world: World, run: Run) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            with world.fresh(blocking=False) as sock:
                for service_id, code in ((world.service(), errno.ECONNREFUSED), (ServiceId.new(), errno.EACCES)):
                    with fails(code):
                        await loop.sock_connect(sock, (world.vm.id, service_id))
                listener, service_id = world.loopback()
                with listener:
                    await loop.sock_connect(sock, (HV_GUID_LOOPBACK, service_id))
                    assert sock.getpeername() == (HV_GUID_LOOPBACK, service_id)

        run(main())

    def test_a_connect_that_has_to_wait(self, world: World, run: Run) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            with pending(world) as (_, listener, first), world.fresh(blocking=False) as sock:
                task = asyncio.ensure_future(loop.sock_connect(sock, first.getpeername()))
                done, _ = await asyncio.wait([task], timeout=0.02)
                assert not done
                for _ in range(2):
                    listener.accept()[0].close()
                await task
                await loop.sock_sendall(sock, b"data")

        run(main())

    def test_sendfile(self, world: World, tmp_path: Any) -> None:
        """By the kernel where the loop can (asyncio's own)."""
        path = tmp_path / "file"
        path.write_bytes(LARGE)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            near, far = world.pair()
            with near, far, path.open("rb") as file:
                for sock in (near, far):
                    sock.setblocking(False)

                async def receive() -> bytes:
                    received = bytearray()
                    while len(received) < len(LARGE):
                        received += await loop.sock_recv(far, 1 << 16)
                    return bytes(received)

                receiving = asyncio.create_task(receive())
                assert await loop.sock_sendfile(near, file, fallback=False) == len(LARGE)
                assert digest(await receiving) == digest(LARGE)

        asyncio.run(main())


class TestTransports:
    def test_a_server_of_asyncio_itself(self, world: World) -> None:
        """asyncio's loops accept by the socket's own method, so a listener serves as it is."""

        async def main() -> None:
            listener, service_id = listen(world)
            async with await asyncio.start_server(shout, sock=listener):
                streams = await asyncio.open_connection(
                    sock=await asyncio.to_thread(self.connect, world, service_id)
                )
                async with closing(streams) as (reader, writer):
                    assert writer.get_extra_info("peername") == (HV_GUID_PARENT, service_id)
                    writer.write(LARGE)
                    writer.write_eof()
                    assert digest(await reader.read()) == digest(LARGE.upper())

        asyncio.run(main(), debug=True)

    def test_open_connection_of_the_library(self, world: World, run: Run) -> None:
        """A connected socket is all that a transport needs, on every loop."""

        async def main() -> None:
            near, far = world.pair()
            near_streams = await asyncio.open_connection(sock=near)
            far_streams = await asyncio.open_connection(sock=far)
            async with closing(near_streams) as (reader, writer), closing(far_streams) as (other, back):
                writer.write(LARGE)
                writer.write_eof()
                assert digest(await other.read()) == digest(LARGE)
                back.write(b"thanks")
                back.write_eof()
                assert await reader.read() == b"thanks"

        run(main())

    def connect(self, world: World, service_id: str) -> hvsock.socket:
        return hvsock.create_connection(("parent", service_id), partition=world.vm.folder)
