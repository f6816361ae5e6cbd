"""Peers that mean harm, on the level of HTTP/2 and of gRPC: one connection pays for it, bounded, and no other."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

assert sys.platform == "linux"

from grpclib.const import Status
from h2.errors import ErrorCodes
from h2.events import RemoteSettingsChanged

from hvsock.errors import HvsockError, LostError, NegotiationError, ProtocolError, RemoteError
from hvsock.services import serving, wire
from hvsock.services.caller import Caller
from hvsock.services.connecting import connect
from hvsock.services.negotiation import Accepted
from hvsock.services.service import codec_of
from hvsock.services.serving import raw_service, serve
from hvsock.services.session import Negotiation
from hvsock.services.wire import MAX_STREAMS
from hvsock.sockets.aio import connected
from hvsock.sockets.chosen import socket
from hvsock.testing.fabric import fabric
from tests.services.hostile import Peer, message
from tests.services.inventory import Inventory, Item, Query
from tests.services.test_framework import World, in_world

COUNT = f"/{Inventory.WIRE}/{Inventory.count.wire_name}"
PUT = f"/{Inventory.WIRE}/{Inventory.put.wire_name}"
WAIT = f"/{Inventory.WIRE}/{Inventory.wait.wire_name}"
QUESTION = message(codec_of(Inventory).encode(Query("hello")))
QUIET_SECONDS = 0.3
"""How long nothing has to come until nothing more is expected."""


@contextlib.asynccontextmanager
async def peer_of(world: World) -> AsyncIterator[Peer]:
    """A client of the world's service that speaks by hand."""
    peer = Peer(await connected(("web01", Inventory.ID), partition=world.fabric.host.folder))
    try:
        await peer.flush()
        yield peer
    finally:
        peer.close()


def contained(test: Callable[[World, Peer], Coroutine[Any, Any, None]]) -> None:
    """Run a test of one hostile client, beside one that goes on to be served all the time."""

    async def run(world: World) -> None:
        async with world.connect() as inventory:
            async with peer_of(world) as peer:
                await test(world, peer)
                assert (await inventory.count(Query("during"))).name == "during"
            assert (await inventory.count(Query("after"))).name == "after"
            while world.serving.connections > 1:
                await asyncio.sleep(0.005)

    in_world(run)


def test_the_peer_itself_is_understood() -> None:
    async def test(world: World, peer: Peer) -> None:
        stream = await peer.ask(COUNT, QUESTION)
        assert await peer.outcome(stream) == (Status.OK.value, "")
        assert peer.data_of(stream)[5:] == codec_of(Inventory).encode(Item("hello"))

    contained(test)


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        pytest.param(message(b"", length=2**32 - 1), Status.DATA_LOSS, "4294967295 bytes", id="4 GiB announced"),
        pytest.param(message(b"", compressed=1), Status.DATA_LOSS, "compressed", id="compressed"),
        pytest.param(message(b"xy", length=100), Status.DATA_LOSS, "ended early", id="cut within its data"),
        pytest.param(b"\0\0", Status.DATA_LOSS, "ended early", id="cut within its head"),
        pytest.param(b"", Status.DATA_LOSS, "without a question", id="no message"),
        pytest.param(message(b"\x0a\x02\xff\xfe"), Status.DATA_LOSS, "", id="text that is no UTF-8"),
        pytest.param(
            message(b"\x0a\xff\xff\xff\xff\x7f"), Status.DATA_LOSS, "", id="a field longer than the message"
        ),
        pytest.param(message(b"\xff" * 20), Status.DATA_LOSS, "", id="no field at all"),
    ],
)
def test_messages_that_are_none(sent: bytes, status: Status, text: str) -> None:
    async def test(world: World, peer: Peer) -> None:
        found, said = await peer.outcome(await peer.ask(COUNT, sent))
        assert (found, text in said) == (status.value, True), said
        assert not world.inventory.callers or not sent

    contained(test)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({":path": "/etc/passwd"}, Status.UNIMPLEMENTED),
        ({"content-type": "text/html"}, Status.UNKNOWN),
        ({"grpc-timeout": "soon"}, Status.UNKNOWN),
        ({"te": "gzip"}, Status.UNKNOWN),
    ],
    ids=["path", "content type", "deadline", "te"],
)
def test_headers_that_ask_for_nothing(headers: dict[str, str], status: Status) -> None:
    async def test(world: World, peer: Peer) -> None:
        found, _ = await peer.outcome(await peer.ask(COUNT, QUESTION, headers=list(headers.items())))
        assert found == status.value

    contained(test)


def test_unfinished_messages_are_not_gathered_without_end() -> None:
    async def test(world: World, peer: Peer) -> None:
        while sum(isinstance(one, RemoteSettingsChanged) for one in peer.heard) < 2:
            await peer.hear()
        assert peer.h2.remote_settings.max_concurrent_streams == MAX_STREAMS
        head = message(b"", length=1 << 20)
        streams = [await peer.ask(PUT, head, end=False) for _ in range(MAX_STREAMS)]
        sent = 0
        while True:
            before = sent
            for stream in streams:
                while size := min(peer.h2.local_flow_control_window(stream), 16384):
                    peer.h2.send_data(stream, bytes(size))
                    sent += size
            await peer.flush()
            await peer.settle(QUIET_SECONDS)
            if sent == before:
                break
        assert not peer.ended
        # the window, and one message: what is gathered of it lets so much more be sent
        assert wire.CONNECTION_WINDOW_BYTES - MAX_STREAMS * 5 <= sent <= wire.CONNECTION_WINDOW_BYTES + (1 << 20)

    contained(test)


def test_more_operations_than_allowed_end_the_connection() -> None:
    async def test(world: World, peer: Peer) -> None:
        # it never takes notice of the other side's settings, and so may open as many as it likes
        for _ in range(MAX_STREAMS + 1):
            await peer.ask(WAIT, QUESTION)
        await peer.until_ended()
        assert world.inventory.events.count("begun") <= MAX_STREAMS
        while world.inventory.events.count("over") < world.inventory.events.count("begun"):
            await asyncio.sleep(0.005)

    contained(test)


def test_operations_that_are_reset_at_once() -> None:
    async def test(world: World, peer: Peer) -> None:
        for _ in range(50):
            for _ in range(20):
                stream = peer.h2.get_next_available_stream_id()
                peer.h2.send_headers(stream, [(":method", "POST"), (":path", WAIT), ("te", "trailers")])
                peer.h2.reset_stream(stream, ErrorCodes.CANCEL)
            await peer.flush()
        await peer.settle(QUIET_SECONDS)
        if not peer.ended:
            assert await peer.outcome(await peer.ask(COUNT, QUESTION)) == (Status.OK.value, "")

    contained(test)


@pytest.mark.parametrize("kind", ["pings", pytest.param("settings", marks=pytest.mark.soak)])
def test_who_floods_and_reads_nothing_is_dropped(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_UNSENT_BYTES", 1 << 14)

    async def test(world: World, peer: Peer) -> None:
        await peer.settle(QUIET_SECONDS)
        flood = bytes.fromhex("000008060000000000") + bytes(8)
        if kind == "settings":
            flood = bytes.fromhex("000006040000000000") + struct.pack("!HI", 3, 100)
        for _ in range(1000):
            if peer.ended:
                break
            await peer.send(flood * 1000)
        assert peer.ended

    contained(test)


def test_headers_without_end() -> None:
    async def test(world: World, peer: Peer) -> None:
        large = [("x" * 1000, "y" * 1000)] * 200
        await peer.ask(COUNT, QUESTION, headers=large)
        await peer.until_ended()
        assert not world.inventory.callers

    contained(test)


def test_goodbye_and_on_with_it() -> None:
    async def test(world: World, peer: Peer) -> None:
        peer.h2.close_connection()
        await peer.flush()
        await peer.send(bytes(100))
        await peer.until_ended()

    contained(test)


def test_who_asks_for_nothing_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "NEGOTIATION_SECONDS", 0.2)

    async def test(world: World, peer: Peer) -> None:
        await peer.until_ended()

    contained(test)


# -- a server that means harm


def lied_to(lie: Callable[[Peer], Coroutine[Any, Any, None]], ask: Callable[[Inventory], Any]) -> None:
    """Have a client negotiate with, and then ask, a server that does as `lie` says."""

    async def run() -> None:
        async def speak(caller: Caller, connection: socket) -> None:
            peer = Peer(connection, client_side=False)
            await peer.flush()
            with contextlib.suppress(AssertionError):
                await lie(peer)
                await peer.until_ended()

        liar = raw_service("Inventory", id=Inventory.ID)(speak)
        with fabric() as made:
            made.register("Inventory", Inventory.ID)
            guest = made.create_partition("web01")
            async with (
                asyncio.timeout(20),
                serve(liar, bind="parent", partition=guest.folder),
                connect(Inventory, "web01", partition=made.host.folder, timeout=5) as inventory,
            ):
                await ask(inventory)

    asyncio.run(run())


async def negotiated(peer: Peer, *answers: Accepted) -> None:
    """Take the negotiation, and answer it."""
    event = await peer.asked()
    encode = codec_of(Negotiation).encode
    await peer.answer(event.stream_id or 0, *[message(encode(one)) for one in answers])


FINE = Accepted(2, ["find"], ready=True)


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((Accepted(7, ready=True),), NegotiationError),
        ((Accepted(2, ["invented"], ready=True),), NegotiationError),
        ((Accepted(2), Accepted(1, ready=True)), ProtocolError),
        ((Accepted(2), Accepted(2)), ProtocolError),
        ((FINE, FINE), ProtocolError),
        ((), LostError),
    ],
    ids=["version", "feature", "another version later", "ready without being so", "no end", "nothing"],
)
def test_a_negotiation_that_lies(answers: tuple[Accepted, ...], error: type[HvsockError]) -> None:
    async def lie(peer: Peer) -> None:
        await negotiated(peer, *answers)

    async def ask(inventory: Inventory) -> None:
        raise AssertionError("it took the lie")

    with pytest.raises(error):
        lied_to(lie, ask)


@pytest.mark.parametrize(
    ("data", "status", "error"),
    [
        (message(b"", length=2**32 - 1), "0", ProtocolError),
        (message(b"", compressed=1), "0", ProtocolError),
        (message(b"\xff" * 20), "0", ProtocolError),
        (message(b"x", length=9), "0", ProtocolError),
        (b"", "0", ProtocolError),
        (b"", "no number", (ProtocolError, RemoteError)),
        (b"", "13", RemoteError),
        (b"", None, TimeoutError),
    ],
    ids=["4 GiB", "compressed", "no field", "cut", "no answer", "status", "failed", "no status"],
)
def test_answers_that_are_none(data: bytes, status: str | None, error: Any) -> None:
    async def lie(peer: Peer) -> None:
        await negotiated(peer, FINE)
        event = await peer.asked()
        await peer.answer(event.stream_id or 0, *([data] if data else []), status=status)

    async def ask(inventory: Inventory) -> None:
        await inventory.count(Query("x"), timeout=0.5 if error is TimeoutError else 20)

    with pytest.raises(error):
        lied_to(lie, ask)


def test_a_download_that_never_ends_is_read_as_it_is_asked_for() -> None:
    sent = 0

    async def lie(peer: Peer) -> None:
        nonlocal sent
        await negotiated(peer, FINE)
        stream = (await peer.asked()).stream_id or 0
        peer.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc+proto")])
        one = message(codec_of(Inventory).encode(Item("again")))
        while not peer.ended:
            while peer.h2.local_flow_control_window(stream) >= len(one):
                peer.h2.send_data(stream, one)
                sent += len(one)
            await peer.flush()
            await peer.hear()

    async def ask(inventory: Inventory) -> None:
        answers = inventory.find(Query("", 1))
        assert (await anext(answers)).name == "again"
        await asyncio.sleep(QUIET_SECONDS)
        await answers.aclose()

    lied_to(lie, ask)
    assert 0 < sent <= 2 * wire.STREAM_WINDOW_BYTES


def test_a_server_that_opens_operations_is_dropped() -> None:
    async def lie(peer: Peer) -> None:
        await negotiated(peer, FINE)
        await peer.asked()
        await peer.send(
            bytes.fromhex("000005010400000002") + b"\x82\x86\x84\x41\x00"
        )  # HEADERS of a stream of ours

    async def ask(inventory: Inventory) -> None:
        await inventory.wait(Query("x"), timeout=5)

    with pytest.raises((LostError, ProtocolError)):
        lied_to(lie, ask)
