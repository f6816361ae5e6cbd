"""asyncio over the hyperv transport: on a loop that can as little as the Proactor's, and on the selector loop."""

from __future__ import annotations

import asyncio
import errno
import gc
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from hvsock import (
    HV_GUID_LOOPBACK,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONTAINER_PASSTHRU,
    Address,
    NotFoundError,
    ServiceId,
    VmId,
)
from hvsock.sockets import streams

assert sys.platform == "linux"

from tests.windows.proactor import ProactorLoop
from tests.windows.winsock import Machine, Windows

Run = Callable[[Coroutine[Any, Any, Any]], Any]
BIG = 1_000_000
"""Bytes; more than any buffer on the way."""


@pytest.fixture(params=[ProactorLoop, asyncio.SelectorEventLoop])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on such a loop."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main)

    return run


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, until its end."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def ask(host: Windows, address: tuple[str, str], data: bytes) -> bytes:
    """What an echo makes of it."""
    reader, writer = await host.aio.open_connection(address)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    answer: bytes = await reader.read()
    await sending
    writer.close()
    await writer.wait_closed()
    return answer


def test_the_loop_can_do_none_of_it_by_itself(host: Windows) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with host.helpers.create_server((HV_GUID_LOOPBACK, "1")) as listener, host.socket.socket() as sock:
            with pytest.raises(NotImplementedError):
                loop.add_reader(listener.fileno(), print)
            with pytest.raises(ValueError, match="Only AF_INET and AF_INET6"):
                await loop.sock_connect(sock, listener.getsockname())
            with pytest.raises(OSError, match="10041"):
                await loop.sock_accept(listener)

    with asyncio.Runner(loop_factory=ProactorLoop) as runner:
        runner.run(main())


def test_streams(host: Windows, run: Run) -> None:
    address = (HV_GUID_LOOPBACK, ServiceId.new())

    async def main() -> None:
        async with await host.aio.start_server(echo, address) as server:
            assert server.is_serving()
            assert server.sockets[0].getsockname() == address
            texts = [b"%d" % number * BIG if not number else b"%d" % number for number in range(20)]
            assert await asyncio.gather(*(ask(host, address, text) for text in texts)) == texts
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError) as caught:
            await host.aio.open_connection(address)
        assert caught.value.errno == errno.ECONNREFUSED

    run(main())


def test_more_than_are_handed_over_at_once(host: Windows, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread waits for the loop, and loses none."""
    monkeypatch.setattr(host.aio, "ACCEPTS_PER_WAKE_UP", 2)
    address = (HV_GUID_LOOPBACK, ServiceId.new())

    async def main() -> None:
        async with await host.aio.start_server(echo, address):
            with_sockets = [host.helpers.create_connection(address, 20) for _ in range(10)]  # the loop is busy
            for sock in with_sockets:
                sock.shutdown(host.stdlib.SHUT_WR)
            for sock in with_sockets:
                assert await asyncio.to_thread(sock.recv, 1) == b""
                sock.close()

    run(main())


def test_serve_forever_until_cancelled(host: Windows, run: Run) -> None:
    address = (HV_GUID_LOOPBACK, ServiceId.new())

    async def main() -> None:
        server = await host.aio.start_server(echo, address)
        serving = asyncio.create_task(server.serve_forever())
        assert await ask(host, address, b"hello") == b"hello"
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await server.wait_closed()
        server.close()

    run(main())


def test_accept_fails_for_good(host: Windows, run: Run) -> None:
    async def main() -> None:
        listener = host.socket.socket()
        listener.bind((HV_GUID_LOOPBACK, ServiceId.new()))  # and does not listen

        async def handle(*_: Any) -> None:
            raise AssertionError

        acceptor = host.aio.ThreadAcceptor(listener, handle)
        with pytest.raises(OSError, match="Windows says of 10022") as caught:
            await acceptor.wait_stopped()
        assert caught.value.errno == errno.EINVAL
        assert listener.fileno() < 0

    run(main())


def test_short_of_handles(host: Windows, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, rests, and then takes what waits."""
    monkeypatch.setattr(streams, "EXHAUSTED_SECONDS", 0.01)
    address = (HV_GUID_LOOPBACK, ServiceId.new())
    failures = [OSError(errno.EMFILE, "no more handles")]
    accept = host.socket.socket.accept

    def failing(sock: Any) -> Any:
        if failures:
            raise failures.pop()
        return accept(sock)

    async def main() -> list[str]:
        said: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context["message"]))
        monkeypatch.setattr(host.socket.socket, "accept", failing)
        async with await host.aio.start_server(echo, address):
            assert await ask(host, address, b"late") == b"late"
        return said

    assert run(main()) == ["accept failed"]


def test_a_cancelled_connect_closes_its_socket(machine: Machine, host: Windows, vm: VmId, run: Run) -> None:
    """And so ends its thread, which would have waited for five minutes."""
    machine.silent.add(str(vm))
    made: list[Any] = []

    class Socket(host.socket.socket):  # type: ignore[misc, name-defined]
        def __init__(self, **keywords: Any) -> None:
            super().__init__(**keywords)
            self.setsockopt(1, HVSOCKET_CONNECT_TIMEOUT, 300_000)
            made.append(self)

    host.aio.socket = Socket

    async def main() -> None:
        connecting = asyncio.create_task(host.aio.connected((vm, machine.add_service()), passthru=True))
        while not made:
            await asyncio.sleep(0.001)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connecting, 0.05)

    run(main())
    assert [sock.fileno() for sock in made] == [-1]
    assert made[0].getsockopt(1, HVSOCKET_CONTAINER_PASSTHRU) == 1
    gc.collect()  # whatever was forgotten warns now


def test_names_are_looked_up_in_a_thread(host: Windows, run: Run) -> None:
    """Once, also where there is none; PowerShell takes seconds."""
    threads: list[str] = []

    def resolve(address: object) -> Address:
        threads.append(threading.current_thread().name)
        raise NotFoundError(f"no VM {address}")

    host.aio.resolve = resolve

    async def main() -> None:
        with pytest.raises(NotFoundError, match="no VM"):
            await host.aio.open_connection(("web01", "1"))

    run(main())
    assert len(threads) == 1
    assert threads[0] != threading.main_thread().name


def test_tls_needs_a_name(host: Windows, run: Run) -> None:
    import ssl

    async def main() -> None:
        with pytest.raises(ValueError, match="TLS needs server_hostname"):
            await host.aio.open_connection((HV_GUID_LOOPBACK, "1"), ssl=ssl.create_default_context())

    run(main())
