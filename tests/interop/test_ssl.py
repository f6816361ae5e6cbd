"""TLS by the standard library, with the certificates of trustme: on blocking sockets, and on event loops."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from dataclasses import dataclass

import pytest
import trustme

import hvsock
from tests.interop.support import (
    LOOPS,
    MIB,
    WAIT_SECONDS,
    Wire,
    in_background,
    payload,
    receive_all,
    receive_exactly,
    run_on,
    sha256,
)

if sys.platform != "linux":
    pytest.skip("the fabric needs Linux", allow_module_level=True)

NAME = "host.hvsock.test"
SIZE = 4 * MIB
REQUEST, RESPONSE = payload(SIZE, 1), payload(SIZE, 2)


@dataclass(frozen=True, slots=True)
class Contexts:
    """What each end needs to speak TLS, and a client that trusts somebody else."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    stranger: ssl.SSLContext


def make_contexts() -> Contexts:
    """A server's certificate for NAME, and clients that do and do not trust who issued it."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(server)
    clients = []
    for trusted in (authority, trustme.CA()):
        client = ssl.create_default_context()
        trusted.configure_trust(client)
        clients.append(client)
    return Contexts(server, *clients)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_blocking(wire: Wire, version: str) -> None:
    """4 MiB each way; TLS ends by unwrap, and the connection goes on in the clear until both half-closes."""
    contexts = make_contexts()
    if version == "TLSv1.2":
        contexts.server.maximum_version = ssl.TLSVersion.TLSv1_2
    near, far = wire.pair()
    far.settimeout(WAIT_SECONDS)

    def serve() -> tuple[str, bytes]:
        with contexts.server.wrap_socket(far, server_side=True) as tls:
            digest = sha256(receive_exactly(tls, SIZE))
            tls.sendall(RESPONSE)
            assert tls.recv(1) == b""  # the client's close_notify
            with tls.unwrap() as clear:
                last = receive_all(clear)
                clear.sendall(b"farewell")
        return digest, last

    with near, far, in_background(serve) as served:
        with contexts.client.wrap_socket(near, server_hostname=NAME) as tls:
            assert tls.version() == version
            tls.sendall(REQUEST)
            assert sha256(receive_exactly(tls, SIZE)) == sha256(RESPONSE)
            with tls.unwrap() as clear:
                clear.sendall(b"in the clear")
                clear.shutdown(socket.SHUT_WR)
                assert receive_all(clear) == b"farewell"
        assert served.result(WAIT_SECONDS) == (sha256(REQUEST), b"in the clear")


def test_half_close_without_unwrap(wire: Wire) -> None:
    """The client's end of stream reaches the server below TLS, and the way back stays open."""
    contexts = make_contexts()
    near, far = wire.pair()
    far.settimeout(WAIT_SECONDS)

    def serve() -> None:
        with contexts.server.wrap_socket(far, server_side=True) as tls:
            tls.sendall(sha256(receive_all(tls)).encode())

    with near, far, in_background(serve):
        with contexts.client.wrap_socket(near, server_hostname=NAME) as tls:
            tls.sendall(REQUEST)
            socket.socket.shutdown(tls, socket.SHUT_WR)  # SSLSocket.shutdown would end TLS on both ways
            assert receive_all(tls).decode() == sha256(REQUEST)


def test_certificate_of_a_stranger(wire: Wire) -> None:
    """The handshake fails at both ends, as over TCP, and closes what it has to."""
    contexts = make_contexts()
    near, far = wire.pair()
    far.settimeout(WAIT_SECONDS)

    def serve() -> None:
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            contexts.server.wrap_socket(far, server_side=True)

    with near, far, in_background(serve), pytest.raises(ssl.SSLCertVerificationError):
        contexts.stranger.wrap_socket(near, server_hostname=NAME)


def test_certificate_for_another_name(wire: Wire) -> None:
    contexts = make_contexts()
    near, far = wire.pair()
    far.settimeout(WAIT_SECONDS)

    def serve() -> None:
        with pytest.raises(ssl.SSLError, match="ALERT"):
            contexts.server.wrap_socket(far, server_side=True).recv(1)

    with near, far, in_background(serve), pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        contexts.client.wrap_socket(near, server_hostname="another.hvsock.test")


@pytest.mark.parametrize("loop", LOOPS)
def test_event_loops(wire: Wire, loop: str) -> None:
    """4 MiB each way through the streams of the loop, from and to the helpers' own connections."""
    contexts = make_contexts()
    digests = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        digests.append(sha256(await reader.readexactly(SIZE)))
        writer.write(RESPONSE)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await hvsock.start_server(
            handle, wire.serving, ssl=contexts.server, partition=wire.fabric.host.folder
        )
        async with server:
            reader, writer = await hvsock.open_connection(
                wire.target, ssl=contexts.client, server_hostname=NAME, partition=wire.guest.folder
            )
            writer.write(REQUEST)
            await writer.drain()
            assert sha256(await reader.read(-1)) == sha256(RESPONSE)
            writer.close()
            await writer.wait_closed()

    run_on(loop, main())
    assert digests == [sha256(REQUEST)]
