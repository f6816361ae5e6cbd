"""Servers that are none, that lie, that are silent: each is an error of its own, and nothing is left behind."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from uuid import UUID, uuid4

import pytest

from hvsock.errors import HvsockError, LostError, NotReadyError, ProtocolError, RemoteError
from hvsock.services.powershell import pipelines, pools
from hvsock.services.powershell.framing import POOL, Decoder, Element, Kind, Role
from hvsock.services.powershell.pools import RunspacePool, opened
from hvsock.services.powershell.records import State
from hvsock.testing.psrp_server import Server
from tests.services.powershell.psrp import PATIENCE, Streams, Typist, connected

Liar = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
Lie = Callable[[Server, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def message(
    kind: int, payload: bytes, target: UUID = POOL, object_id: int = 1 << 40, destination: int = 1
) -> Element:
    """One message as one element."""
    data = struct.pack("<II", destination, kind) + uuid4().bytes_le + target.bytes_le + payload
    return Element(Kind.DATA, target, struct.pack(">QQBI", object_id, 0, 3, len(data)) + data)


async def refusal(liar: Liar, *, timeout: float = PATIENCE) -> HvsockError:
    """Why no session with `liar` is opened."""
    async with asyncio.timeout(PATIENCE), connected() as (here, there):
        lying = asyncio.create_task(liar(*there))
        try:
            with pytest.raises(HvsockError) as caught:
                async with opened(*here, timeout=timeout):
                    pass
        finally:
            lying.cancel()
            await asyncio.wait({lying})
    assert "\n" not in str(caught.value)
    return caught.value


def says(data: bytes, *, ends: bool = False) -> Liar:
    """A server that says one thing."""

    async def liar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if ends:
            writer.write_eof()
        await asyncio.sleep(PATIENCE)

    return liar


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"SSH-2.0-OpenSSH\r\n", ProtocolError, "none of PSRP's: SSH-2.0-OpenSSH"),
        (b"\x1b[31m<Data\n", ProtocolError, r"none of PSRP's: \?\[31m<Data"),
        (b"x" * 2_000_000, ProtocolError, "more than 1048576 bytes"),
        (b"<Command PSGuid='00000000-0000-0000-0000-000000000001' />\n", ProtocolError, "not for it to send"),
        (b"__HyperVSocketError__:pwsh is not there\n", NotReadyError, "the server says: pwsh is not there"),
        (Element(Kind.DATA, data=b"x" * 40).line(), ProtocolError, "is not due|more than 64 MiB"),
        (message(0x00010002, b"<S>no capability</S>").line(), ProtocolError, "not as it should be"),
        (message(0x00010002, b"<Obj>").line(), ProtocolError, "not as it should be"),
        (message(0x00021009, b"<Obj RefId='0'>" * 3000).line(), ProtocolError, "not as it should be"),
        (message(0x00021006, b"<S/>").line(), ProtocolError, "0x00021006, which is a client's"),
        (message(0x12345678, b"<S/>").line(), ProtocolError, "0x12345678, which is a client's or none"),
        (message(0x00021005, b"<S/>", destination=2).line(), ProtocolError, "destination 2"),
        (message(0x00021005, b"<!DOCTYPE x>").line(), ProtocolError, "XML declarations"),
        (message(0x00021005, b"").line(), ProtocolError, "not as it should be"),
        (
            message(0x00021005, b'<Obj RefId="1"><MS><I32 N="RunspaceState">5</I32></MS></Obj>').line(),
            RemoteError,
            "the server closed the session",
        ),
    ],
)
def test_what_is_no_server(data: bytes, kind: type[HvsockError], text: str) -> None:
    error = asyncio.run(refusal(says(data)))
    assert type(error) is kind, error
    with pytest.raises(kind, match=text):
        raise error


def test_a_deep_object_is_refused() -> None:
    depth = 5000
    payload = b"<Obj RefId='0'><LST>" * depth + b"</LST></Obj>" * depth
    error = asyncio.run(refusal(says(message(0x00021009, payload).line())))
    assert isinstance(error, ProtocolError)


def test_a_server_that_says_nothing_or_ends() -> None:
    error = asyncio.run(refusal(says(b""), timeout=0.05))
    assert isinstance(error, NotReadyError)
    assert "did not open a session within 0.05 s" in str(error)
    for said in (b"", Element(Kind.DATA_ACK).line()):
        assert isinstance(asyncio.run(refusal(says(said, ends=True))), LostError)
    error = asyncio.run(refusal(says(b"<DataAck", ends=True)))
    assert "in the midst of a line" in str(error)


@pytest.mark.parametrize("acknowledged", range(3))
def test_a_server_that_falls_silent_while_it_opens(acknowledged: int) -> None:
    async def liar(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder(Role.CLIENT)
        for _ in range(acknowledged):
            decoder.receive(await reader.read(1 << 16))
            for element in decoder.elements():
                writer.write(Element(element.kind.ack, element.target).line())
        await asyncio.sleep(PATIENCE)

    error = asyncio.run(refusal(liar, timeout=0.05))
    assert isinstance(error, NotReadyError)


# -- lies in the midst of a session


async def lied_to(lie: Lie, use: Callable[[RunspacePool], Awaitable[None]]) -> None:
    """Use a session whose server says something of its own once it is open."""
    async with asyncio.timeout(PATIENCE), connected() as (here, there):
        server = Server(*there)
        serving = asyncio.create_task(server.serve())
        try:
            async with opened(*here, host=Typist("a", "b", "c")) as pool:
                lying = asyncio.create_task(lie(server, there[1]))
                try:
                    await use(pool)
                finally:
                    lying.cancel()
                    await asyncio.wait({lying})
        finally:
            serving.cancel()
            await asyncio.wait({serving})


async def running(server: Server) -> UUID:
    """The pipeline that runs in a server."""
    while not server._pipelines:
        await asyncio.sleep(0.001)
    return next(iter(server._pipelines))


def broken_by(element: Callable[[UUID], Element | bytes], error: type[HvsockError], text: str) -> None:
    """A pipeline, and all that follows in its session, fails by what a server says."""

    async def lie(server: Server, writer: asyncio.StreamWriter) -> None:
        said = element(await running(server))
        writer.write(said if isinstance(said, bytes) else said.line())

    async def use(pool: RunspacePool) -> None:
        with pytest.raises(error, match=text):
            await pool.run("Start-Sleep 1000")
        with pytest.raises(error, match=text):
            await pool.run("1")

    asyncio.run(lied_to(lie, use))


OUTPUT, STATE, HOST_CALL = 0x00041004, 0x00041006, 0x00041100


def test_garbage_in_the_midst_ends_the_session() -> None:
    broken_by(lambda _: b"garbage\n", ProtocolError, "none of PSRP's: garbage")
    broken_by(lambda _: b"__HyperVSocketError__:out of memory\n", RemoteError, "out of memory")
    broken_by(
        lambda one: message(OUTPUT, b"<Obj><Ref RefId='7'/></Obj>", one), ProtocolError, "not as it should be"
    )
    broken_by(lambda one: message(OUTPUT, b"<I32>x</I32>", one), ProtocolError, "not as it should be")
    broken_by(lambda one: message(STATE, b"<S/>", one), ProtocolError, "not as it should be")
    broken_by(lambda one: message(HOST_CALL, b"<S/>", one), ProtocolError, "not as it should be")


def test_an_object_that_names_a_part_of_itself_again_and_again_is_bounded() -> None:
    levels = 20
    inner = b"<Obj RefId='0'><LST><S>x</S></LST></Obj>"
    for level in range(levels):
        inner = b"<Obj RefId='%d'><LST>%b%b</LST></Obj>" % (level + 1, inner, b"<Ref RefId='%d'/>" % level * 9)
    broken_by(lambda one: message(OUTPUT, inner, one), ProtocolError, "unfolds to more than 10000 values")


def test_an_object_that_holds_itself_is_cut() -> None:
    async def lie(server: Server, writer: asyncio.StreamWriter) -> None:
        one = await running(server)
        writer.write(message(OUTPUT, b"<Obj RefId='0'><LST><S>x</S><Ref RefId='0'/></LST></Obj>", one).line())

    async def use(pool: RunspacePool) -> None:
        async with pool.start("Start-Sleep 1000") as pipeline:
            value, depth = (await anext(pipeline)).value, 0
            while isinstance(value, list):
                assert value[0] == "x"
                value, depth = value[1], depth + 1
            assert depth > 10

    asyncio.run(lied_to(lie, use))


def test_what_comes_for_no_pipeline_is_nothing() -> None:
    async def lie(server: Server, writer: asyncio.StreamWriter) -> None:
        await running(server)
        stranger = uuid4()
        writer.write(message(OUTPUT, b"<S>x</S>", stranger).line())
        writer.write(Element(Kind.DATA_ACK, stranger).line() + Element(Kind.CLOSE_ACK, stranger).line())

    async def use(pool: RunspacePool) -> None:
        assert (await pool.run("Start-Sleep -Milliseconds 50; 1")).output == [1]
        assert (await pool.run("2")).output == [2]

    asyncio.run(lied_to(lie, use))


CALL = (
    b'<Obj RefId="0"><MS><I64 N="ci">%d</I64><Obj N="mi" RefId="1"><TN RefId="0">'
    b"<T>System.Management.Automation.Remoting.RemoteHostMethodId</T><T>System.Enum</T></TN>"
    b'<ToString>x</ToString><I32>%d</I32></Obj><Obj N="mp" RefId="2"><LST>%b</LST></Obj></MS></Obj>'
)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        (26, b"<S>a</S>"),
        (26, b"<S>a</S><S>b</S><Obj RefId='9'><LST/></Obj><I32>0</I32>"),
        (23, b"<S/><S/><S/>"),
        (46, b"<I32>1</I32>"),
        (15, b""),
    ],
    ids=["too-few", "no-choice", "no-fields", "read-key", "void"],
)
def test_host_calls_that_are_none_are_answered_with_an_error(method: int, arguments: bytes) -> None:
    answered = asyncio.Event()

    async def lie(server: Server, writer: asyncio.StreamWriter) -> None:
        one = await running(server)
        server._pipelines[one].answered = lambda ci, result, error: answered.set()  # type: ignore[method-assign]
        writer.write(message(HOST_CALL, CALL % (700, method, arguments), one).line())

    async def use(pool: RunspacePool) -> None:
        async with pool.start("Start-Sleep 1000") as pipeline:
            reading = asyncio.create_task(anext(pipeline))
            await answered.wait()
            reading.cancel()
            await asyncio.wait({reading})
        assert (await pool.run("1")).output == [1]

    asyncio.run(lied_to(lie, use))


def test_a_host_call_that_is_made_twice_is_a_lie() -> None:
    async def lie(server: Server, writer: asyncio.StreamWriter) -> None:
        one = await running(server)
        for object_id in (1 << 41, 1 << 42):
            writer.write(message(HOST_CALL, CALL % (700, 11, b""), one, object_id).line())

    async def use(pool: RunspacePool) -> None:
        with pytest.raises(ProtocolError, match="700 twice"):
            await pool.run("Start-Sleep 1000")

    asyncio.run(lied_to(lie, use))


# -- silence in the midst of a session


class Deaf(Server):
    """A server that does not do what some kinds of elements want.

    Args:
        streams: its connection.
        kinds: the kinds.
    """

    def __init__(self, streams: Streams, *kinds: Kind) -> None:
        super().__init__(*streams)
        self._kinds = kinds

    async def _element(self, element: Element) -> None:
        if element.kind not in self._kinds or (element.kind is Kind.CLOSE and element.target == POOL):
            await super()._element(element)


@pytest.mark.parametrize("kind", [Kind.SIGNAL, Kind.CLOSE], ids=lambda one: one.value)
def test_a_server_that_neither_stops_nor_closes_ends_the_session(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(pools, "CLOSE_SECONDS", 0.05)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected() as (here, there):
            serving = asyncio.create_task(Deaf(there, kind).serve())
            async with opened(*here) as pool:
                with pytest.raises(NotReadyError, match=r"within 0\.05 s"):
                    async with pool.start("1; Start-Sleep 1000") as pipeline:
                        await anext(pipeline)
                with pytest.raises(NotReadyError):
                    await pool.run("1")
            await serving

    asyncio.run(main())


def test_a_pipeline_whose_state_does_not_come_counts_as_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "STATE_SECONDS", 0.05)

    class Terse(Deaf):
        async def _element(self, element: Element) -> None:
            await super()._element(element)
            if element.kind is Kind.SIGNAL:
                self._writer.write(Element(Kind.SIGNAL_ACK, element.target).line())

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected() as (here, there):
            serving = asyncio.create_task(Terse(there, Kind.SIGNAL).serve())
            async with opened(*here) as pool:
                async with pool.start("1; Start-Sleep 1000") as pipeline:
                    await anext(pipeline)
                    await pipeline.stop()
                    assert pipeline.state is State.STOPPED
                assert (await pool.run("1")).output == [1]
            await serving

    asyncio.run(main())


def test_a_server_that_does_not_close_the_pool_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CLOSE_SECONDS", 0.05)

    class Clinging(Server):
        async def _element(self, element: Element) -> None:
            if element.kind is not Kind.CLOSE:
                await super()._element(element)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected() as (here, there):
            serving = asyncio.create_task(Clinging(*there).serve())
            async with opened(*here):
                pass
            await serving  # the connection has ended

    asyncio.run(main())


# -- clients that are none


def client_says(*lines: bytes) -> str:
    """Why the server ends a session; "" where the client ended it."""

    async def main() -> str:
        async with asyncio.timeout(PATIENCE), connected() as (here, there):
            here[1].write(b"".join(lines))
            here[1].write_eof()
            try:
                await Server(*there).serve()
            except ProtocolError as error:
                return str(error)
            finally:
                here[1].close()
            return ""

    return asyncio.run(main())


def test_the_server_of_the_tests_ends_what_is_no_client() -> None:
    pipeline = uuid4()
    command = Element(Kind.COMMAND, pipeline).line()
    assert client_says() == ""
    assert client_says(b"\n", b"garbage that nobody reads\n") == ""
    assert "none of PSRP's" in client_says(b"garbage\n")
    assert "not for it to send" in client_says(Element(Kind.DATA_ACK).line())
    assert "twice" in client_says(command, command)
    assert "not as it should be" in client_says(message(0x00010004, b"<S/>", destination=2).line())
    assert client_says(Element(Kind.SIGNAL, pipeline).line(), Element(Kind.CLOSE, pipeline).line()) == ""
