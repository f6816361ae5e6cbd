"""A peer of the framework that says what it likes: HTTP/2 by hand over one connection, from either side."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from collections.abc import Sequence
from typing import Any

assert sys.platform == "linux"

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, TrailersReceived
from h2.exceptions import ProtocolError as H2ProtocolError

from hvsock.sockets.chosen import socket

READ_BYTES = 1 << 16


def message(data: bytes, *, length: int | None = None, compressed: int = 0) -> bytes:
    """A message of gRPC: its head, which may lie about its length or compression, and `data`."""
    return struct.pack("!BI", compressed, len(data) if length is None else length) + data


class Peer:
    """One end of HTTP/2 over a connected, non-blocking socket, which it owns.

    Attributes:
        h2: what speaks; tests say with it what they like, and then call :meth:`flush`.
        heard: what the other side said so far.
        ended: whether it closed the connection.
    """

    def __init__(self, sock: socket, *, client_side: bool = True) -> None:
        self._sock = sock
        self.h2 = H2Connection(
            H2Configuration(
                client_side=client_side,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.heard: list[Event] = []
        self.ended = False
        self.h2.initiate_connection()

    async def flush(self) -> None:
        """Send what is to be sent."""
        data = self.h2.data_to_send()
        if data:
            await self.send(data)

    async def send(self, data: bytes) -> None:
        """Send bytes; that the connection has ended is noted."""
        try:
            await asyncio.get_running_loop().sock_sendall(self._sock, data)
        except (ConnectionError, BrokenPipeError):
            self.ended = True

    async def hear(self) -> bool:
        """Take what comes next, and answer what HTTP/2 itself answers; returns whether there was something."""
        try:
            data = await asyncio.get_running_loop().sock_recv(self._sock, READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self.ended = True
            return False
        self.heard += self.h2.receive_data(data)
        await self.flush()
        return True

    async def until_ended(self) -> None:
        """Take what comes until the other side has closed the connection, whatever it says."""
        while not self.ended:
            with contextlib.suppress(H2ProtocolError):
                await self.hear()

    async def settle(self, seconds: float) -> None:
        """Take what comes until nothing has come for so long."""
        while not self.ended:
            try:
                async with asyncio.timeout(seconds):
                    await self.hear()
            except TimeoutError:
                return

    def of(self, kind: type[Any], stream_id: int) -> list[Any]:
        """What was heard of one kind on one stream."""
        return [one for one in self.heard if isinstance(one, kind) and one.stream_id == stream_id]

    # -- as a client

    async def ask(
        self, path: str, data: bytes, *, end: bool = True, headers: Sequence[tuple[str, str]] = ()
    ) -> int:
        """Ask for an operation, with `data` for its first message or messages; returns the stream's number."""
        usual = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "hvsock"}
        usual |= {"te": "trailers", "content-type": "application/grpc+proto"}
        stream_id = self.h2.get_next_available_stream_id()
        all_headers = [(key, value) for key, value in usual.items() if key not in dict(headers)] + list(headers)
        self.h2.send_headers(stream_id, all_headers, end_stream=end and not data)
        if data:
            self.h2.send_data(stream_id, data, end_stream=end)
        await self.flush()
        return stream_id

    async def outcome(self, stream_id: int) -> tuple[int, str]:
        """The status and text that an operation ended with."""
        while True:
            for one in self.of(TrailersReceived, stream_id):
                trailers = dict(one.headers)
                return int(trailers["grpc-status"]), trailers.get("grpc-message", "")
            for one in self.heard:
                headers = dict(getattr(one, "headers", None) or [])
                if getattr(one, "stream_id", None) == stream_id and "grpc-status" in headers:
                    return int(headers["grpc-status"]), headers.get("grpc-message", "")
            assert await self.hear(), f"the connection ended; heard {self.heard}"

    # -- as a server

    async def asked(self) -> RequestReceived:
        """The next operation that is asked for and was not taken yet, once its question is whole."""
        while True:
            for one in self.heard:
                if isinstance(one, RequestReceived) and self.of(StreamEnded, one.stream_id or 0):
                    self.heard.remove(one)
                    return one
            assert await self.hear(), "nothing is asked any more"

    async def answer(self, stream_id: int, *data: bytes, status: str | None = "0", end: bool = True) -> None:
        """Answer an operation with messages, and with trailers where `end` is set."""
        self.h2.send_headers(stream_id, [(":status", "200"), ("content-type", "application/grpc+proto")])
        for one in data:
            self.h2.send_data(stream_id, one)
        if end:
            trailers = [] if status is None else [("grpc-status", status)]
            if trailers:
                self.h2.send_headers(stream_id, trailers, end_stream=True)
            else:
                self.h2.end_stream(stream_id)
        await self.flush()

    def data_of(self, stream_id: int) -> bytes:
        """The bytes that came on a stream."""
        return b"".join(one.data for one in self.of(DataReceived, stream_id))

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
