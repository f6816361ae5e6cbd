"""Checks of listeners and connections: errors and their numbers, options, time-outs, select, asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket as _stdlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_WILDCARD,
    SERVICE_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.constants import (
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HVSOCKET_CONNECTED_SUSPEND,
    HVSOCKET_CONTAINER_PASSTHRU,
    HVSOCKET_HIGH_VTL,
    HvsocketOption,
)
from hvsock.errors import NoFabricError
from hvsock.testing._harness import require

from .check import Check, NotApplicable, words_of
from .ground import Ground, connected, listening
from .identity import registered, registry_of

A_MOMENT_SECONDS: Final = 0.02
"""How long is waited for what does not come."""
ASYNCIO_SECONDS: Final = 20.0
"""Longest that a check of asyncio may take, which has several steps."""
BOTH_ENDS_OF_ASYNCIO: Final = "asyncio: a server and its clients"
BIND_UNREGISTERED: Final = "error: bind of a service that is not registered"
BIG_BYTES: Final = 300_000
"""More than one read of asyncio's gives."""


def _both_ways(near: Any, far: Any) -> None:
    for one, other in ((near, far), (far, near)):
        one.sendall(b"to the other end")
        got = b""
        while len(got) < 16 and (piece := other.recv(16 - len(got))):
            got += piece
        require(got == b"to the other end", f"{got!r} came")


def _fails(call: Callable[..., object], *arguments: Any, name: str) -> str:
    """Require that a call fails with that errno, of which there may be several, joined by "or"."""
    caught: OSError | None = None
    try:
        call(*arguments)
    except OSError as error:
        caught = error
    if caught is None:
        raise AssertionError(f"no error came; {name} had to")
    found = errno.errorcode.get(caught.errno or 0)
    require(found in name.split(" or "), f"{words_of(caught)}; {name} had to come")
    number = getattr(caught, "winerror", None)
    return f"{found} (winerror {number})" if number else str(found)


def _connection(ground: Ground) -> str:
    way, service = ground.calling, ground.fresh_service()
    with connected(way, service) as (near, far):
        _both_ways(near, far)
        require(near.getpeername() == (way.to, service), f"the peer is {near.getpeername()}")
        require(far.getsockname()[1] == service, f"the accepted end is {far.getsockname()}")
        return f"the ends are {near.getsockname()[0]} and {far.getsockname()[0]}"


def _wildcard(ground: Ground) -> None:
    with ExitStack() as stack:
        if ground.registry is None:
            service = ground.fresh_service()
        else:
            service = stack.enter_context(registered(ground.registry))
        way = replace(ground.serving, bind=HV_GUID_WILDCARD)
        _both_ways(*stack.enter_context(connected(way, service)))


def _between(ground: Ground) -> str:
    if not ground.ways:
        raise NotApplicable(
            "the other end is in another machine; try a service of yours between a VM and its host"
        )
    for way in ground.ways.values():
        with connected(way, ground.fresh_service()) as (near, far):
            _both_ways(near, far)
    return "; ".join(ground.ways)


def _fresh_binds(ground: Ground) -> None:
    way = ground.serving
    with way.serving() as one, way.serving() as other:
        names = []
        for sock in (one, other):
            sock.bind((way.bind, SERVICE_WILDCARD))
            names.append(sock.getsockname()[1])
        require(SERVICE_WILDCARD not in names, "a bind to zero kept the service zero")
        require(names[0] != names[1], "two binds gave one service")


def _nobody_listens(ground: Ground) -> str:
    service = ground.fresh_service()
    with ground.make() as near:
        near.settimeout(ground.calling.seconds)
        return _fails(near.connect, (ground.calling.to, service), name="ECONNREFUSED")


def _wildcard_destinations(ground: Ground) -> str:
    service = ground.fresh_service()
    with ground.make() as near:
        near.settimeout(ground.calling.seconds)
        found = [
            _fails(near.connect, (vm_id, service), name="EADDRNOTAVAIL")
            for vm_id in (HV_GUID_WILDCARD, HV_GUID_CHILDREN)
        ]
        return found[0]


def _unknown_vm(ground: Ground) -> str:
    service = ground.fresh_service()
    with ground.make() as near:
        near.settimeout(ground.calling.seconds)
        return _fails(near.connect, (VmId.new(), service), name="ENETUNREACH or EHOSTUNREACH")


def _bound_twice(ground: Ground) -> str:
    way, service = ground.serving, ground.fresh_service()
    with listening(way, service), way.serving() as other:

        def bind_and_listen() -> None:  # hybrid sockets know no sooner
            other.bind((way.bind, service))
            other.listen()

        return _fails(bind_and_listen, name="EADDRINUSE")


def _unregistered(ground: Ground) -> str:
    """Refused by bind, or by listen; a guest has no registry, and may bind whatever it likes."""
    try:
        registry_of(ground).entries()
    except NoFabricError as error:
        raise NotApplicable(f"{error}; a guest has none") from None
    with ground.make() as sock:

        def bind_and_listen() -> None:
            sock.bind((HV_GUID_CHILDREN, ServiceId.new()))
            sock.listen()

        return _fails(bind_and_listen, name="EACCES")


def _fresh_socket(ground: Ground) -> None:
    with ground.make() as sock:
        _fails(sock.getsockname, name="EINVAL")
        _fails(sock.getpeername, name="ENOTCONN")
        _fails(sock.listen, name="EINVAL")


def _connected_already(ground: Ground) -> str:
    service = ground.fresh_service()
    with connected(ground.calling, service) as (near, _):
        return _fails(near.connect, (ground.calling.to, service), name="EISCONN")


def _connect_timeout(ground: Ground) -> str:
    with ground.make() as sock:
        for value in (1, HVSOCKET_CONNECT_TIMEOUT_MAX):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, value)
            require(
                sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT) == value, "another value is read back"
            )
        for much in (-1, HVSOCKET_CONNECT_TIMEOUT_MAX + 1):
            found = _fails(sock.setsockopt, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, much, name="EINVAL")
        kept = sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT)
        require(kept == HVSOCKET_CONNECT_TIMEOUT_MAX, "what was refused was set")
        return found


def _switch(option: HvsocketOption) -> Check:
    def function(ground: Ground) -> None:
        with ground.make() as sock:
            for value in (1, 0):
                try:
                    sock.setsockopt(HV_PROTOCOL_RAW, option, value)
                except OSError as error:
                    if error.errno == errno.ENOPROTOOPT:
                        raise NotApplicable(f"this system has no such option: {words_of(error)}") from None
                    raise
                require(sock.getsockopt(HV_PROTOCOL_RAW, option) == value, "another value is read back")

    return Check(f"option {option.name}", function)


def _time_outs(ground: Ground) -> None:
    service = ground.fresh_service()
    with listening(ground.serving, service) as listener:
        listener.settimeout(A_MOMENT_SECONDS)
        _times_out(listener.accept)
        listener.setblocking(False)
        _fails(listener.accept, name="EAGAIN or EWOULDBLOCK")
    with connected(ground.calling, ground.fresh_service()) as (near, far):
        near.settimeout(A_MOMENT_SECONDS)
        _times_out(near.recv, 1)
        near.settimeout(ground.calling.seconds)
        _both_ways(near, far)


def _times_out(call: Callable[..., object], *arguments: Any) -> None:
    try:
        call(*arguments)
    except TimeoutError:
        return
    raise AssertionError("what had to time out did not")


def _select_listener(ground: Ground) -> None:
    way, service = ground.serving, ground.fresh_service()
    with listening(way, service) as listener, way.calling() as near:
        require(not select.select([listener], [], [], 0)[0], "a listener is readable, and nobody came")
        near.settimeout(ground.calling.seconds)
        near.connect((way.to, service))
        readable, _, _ = select.select([listener], [], [], way.seconds)
        require(bool(readable), "a connection came, and select did not tell")
        listener.accept()[0].close()


def _select_connect(ground: Ground) -> str:
    codes = []
    for there in (True, False):
        service = ground.fresh_service()
        with _listening_if(there, ground, service) as listener, ground.make() as near:
            near.setblocking(False)
            code = near.connect_ex((ground.calling.to, service))
            codes.append(errno.errorcode.get(code, str(code)))
            if code == errno.EINPROGRESS:
                _, writable, odd = select.select(
                    [], [near], [near], ground.calling.seconds
                )  # Windows tells failures as odd
                require(bool(writable or odd), "a connect was settled, and select did not tell")
                code = near.getsockopt(ground.stdlib.SOL_SOCKET, ground.stdlib.SO_ERROR)
            refused = {errno.ECONNREFUSED, getattr(errno, "WSAECONNREFUSED", errno.ECONNREFUSED)}
            require(code in ({0} if there else refused), f"{errno.errorcode.get(code, code)} came")
            if listener is not None:
                listener.accept()[0].close()
    return f"connect_ex gave {' and '.join(codes)}"


@contextlib.contextmanager
def _listening_if(there: bool, ground: Ground, service: ServiceId) -> Iterator[Any]:
    if not there:
        yield None
        return
    with listening(ground.calling, service) as listener:
        yield listener


def _half_close(ground: Ground) -> None:
    with connected(ground.calling, ground.fresh_service()) as (near, far):
        near.sendall(b"a question")
        near.shutdown(_stdlib.SHUT_WR)
        with far.makefile("rb") as file:
            require(file.read() == b"a question", "the question did not arrive whole")
        far.sendall(b"an answer")
        far.shutdown(_stdlib.SHUT_WR)
        with near.makefile("rb") as file:
            require(file.read() == b"an answer", "the answer did not arrive whole")


async def _stopped(ground: Ground) -> None:
    server = await ground.aio.start_server(
        _echo, (ground.serving.bind, ground.fresh_service()), partition=ground.partition
    )
    server.close()
    await server.wait_closed()


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


def _in_loop(ground: Ground, main: Any) -> None:
    with asyncio.Runner(loop_factory=ground.loop_factory) as runner:
        runner.run(asyncio.wait_for(main, ASYNCIO_SECONDS))


def _asyncio(ground: Ground) -> str:
    address = (HV_GUID_LOOPBACK, ground.fresh_service())
    loops = []

    async def ask(text: bytes) -> bytes:
        reader, writer = await ground.aio.open_connection(address, partition=ground.partition)

        async def send() -> None:
            writer.write(text)
            await writer.drain()
            writer.write_eof()

        _, answer = await asyncio.gather(send(), reader.read())
        writer.close()
        await writer.wait_closed()
        return bytes(answer)

    async def main() -> None:
        loops.append(type(asyncio.get_running_loop()).__name__)
        async with await ground.aio.start_server(_echo, address, partition=ground.partition):
            texts = [bytes([number]) * BIG_BYTES for number in range(3)]
            for text, answer in zip(texts, await asyncio.gather(*map(ask, texts)), strict=True):
                require(answer == text, f"{len(answer)} of {len(text)} bytes came back, or others")

    _in_loop(ground, main())
    return loops[0]


async def _refused(ground: Ground) -> None:
    address = (ground.calling.to, ground.fresh_service())
    try:
        await ground.aio.open_connection(address, partition=ground.partition)
    except ConnectionRefusedError:
        return
    raise AssertionError("a connection came about that nobody listens for")


def _asyncio_refused(ground: Ground) -> None:
    _in_loop(ground, _refused(ground))


def _asyncio_stopped(ground: Ground) -> None:
    """Closing its listener ends what waits to accept: the loop, or a thread where the loop cannot."""
    _in_loop(ground, _stopped(ground))


CHECKS: Final = (
    Check("bind, listen, connect, accept", _connection),
    Check("wildcard bind", _wildcard),
    Check("between a VM and its host", _between),
    Check("bind to a fresh service", _fresh_binds),
    Check("error: nobody listens", _nobody_listens),
    Check("error: connect to a wildcard", _wildcard_destinations),
    Check("error: unknown VM", _unknown_vm),
    Check("error: bound twice", _bound_twice),
    Check(BIND_UNREGISTERED, _unregistered),
    Check("error: a fresh socket has no names", _fresh_socket),
    Check("error: connected already", _connected_already),
    Check("option HVSOCKET_CONNECT_TIMEOUT", _connect_timeout),
    *map(_switch, (HVSOCKET_CONNECTED_SUSPEND, HVSOCKET_CONTAINER_PASSTHRU, HVSOCKET_HIGH_VTL)),
    Check("time-outs", _time_outs),
    Check("select: a listener", _select_listener),
    Check("select: a connect", _select_connect),
    Check("half-close", _half_close),
    Check(BOTH_ENDS_OF_ASYNCIO, _asyncio),
    Check("asyncio: nobody listens", _asyncio_refused),
    Check("asyncio: a server that is closed at once", _asyncio_stopped),
)
