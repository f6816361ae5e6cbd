"""TLS by the standard library, with the certificates of trustme: on blocking sockets, and on event loops."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys

import pytest

import hvsock

assert sys.platform == "linux"

from tests.interop.support import (
    LOOPS,
    MIB,
    WAIT_SECONDS,
    Certificates,
    Wire,
    digest,
    in_background,
    payload,
    receive_all,
    receive_exactly,
    run_on,
)

SIZE = 4 * MIB
REQUEST, RESPONSE = payload(SIZE, 1), payload(SIZE, 2)


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_blocking(wire: Wire, certificates: Certificates, version: str) -> None:
    """4 MiB each way; TLS ends by unwrap, and the connection goes on in the clear until both half-closes."""
    if version == "TLSv1.2":
        certificates.server.maximum_version = ssl.TLSVersion.TLSv1_2
    near, far = wire.pair()
    far.settimeout(WAIT_SECONDS)

    def serve() -> tuple[str, bytes]:
        with certificates.server.wrap_socket(far, server_side=True) as tls:
            received = digest(receive_exactly(tls, SIZE))
            tls.sendall(RESPONSE)
            assert tls.recv(1) == b""  # the client's close_notify
            with tls.unwrap() as clear:
                last = receive_all(clear)
                clear.sendall(b"farewell")
        return received, last

    with near, far, in_background(serve) as served:
        with certificates.client.wrap_socket(near, server_hostname=certificates.name) as tls:
            assert tls.version() == version
            tls.sendall(REQUEST)
            assert digest(receive_exactly(tls, SIZE)) == digest(RESPONSE)
            with tls.unwrap() as clear:
                clear.sendall(b"in the clear")
                clear.shutdown(socket.SHUT_WR)
                assert receive_all(clear) == b"farewell"
        assert served.result(WAIT_SECONDS) == (digest(REQUEST), b"in the clear")


def test_certificate_of_a_stranger(wire: Wire, certificates: Certificates) -> None:
    """The handshake fails at both ends, as over TCP, and closes what it has to."""
    near, far = wire.pair()
    far.settimeout(WAIT_SECONDS)

    def serve() -> None:
        with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
            certificates.server.wrap_socket(far, server_side=True)

    with near, far, in_background(serve), pytest.raises(ssl.SSLCertVerificationError):
        certificates.stranger.wrap_socket(near, server_hostname=certificates.name)


def test_certificate_for_another_name(wire: Wire, certificates: Certificates) -> None:
    near, far = wire.pair()
    far.settimeout(WAIT_SECONDS)

    def serve() -> None:
        with pytest.raises(ssl.SSLError, match="ALERT"):
            certificates.server.wrap_socket(far, server_side=True).recv(1)

    with near, far, in_background(serve), pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        certificates.client.wrap_socket(near, server_hostname="another.hvsock.test")


@pytest.mark.parametrize("loop", LOOPS)
def test_event_loops(wire: Wire, certificates: Certificates, loop: str) -> None:
    """4 MiB each way through the streams of the loop, from and to the helpers' own connections."""
    digests = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        digests.append(digest(await reader.readexactly(SIZE)))
        writer.write(RESPONSE)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        server = await hvsock.start_server(
            handle, wire.serving, ssl=certificates.server, partition=wire.fabric.host.folder
        )
        async with server:
            reader, writer = await hvsock.open_connection(
                wire.target,
                ssl=certificates.client,
                server_hostname=certificates.name,
                partition=wire.guest.folder,
            )
            writer.write(REQUEST)
            await writer.drain()
            assert digest(await reader.readexactly(SIZE)) == digest(RESPONSE)
            writer.close()
            await writer.wait_closed()

    run_on(loop, main())
    assert digests == [digest(REQUEST)]
