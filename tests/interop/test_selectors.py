"""Servers written for TCP: one thread with a selector and many clients, and those of socketserver."""

from __future__ import annotations

import contextlib
import selectors
import socket
import socketserver
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

assert sys.platform == "linux"

from tests.interop.support import (
    CHUNK_BYTES,
    MIB,
    WAIT_SECONDS,
    Wire,
    digest,
    in_background,
    payload,
    receive_all,
    receive_exactly,
)

if TYPE_CHECKING:
    from hvsock.sockets.socket import socket as hv_socket

CLIENTS = 50
CLIENT_BYTES = 96 * 1024

Selector = type[selectors.BaseSelector]
SELECTORS: list[Selector] = [selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector]


def echo(listener: socket.socket, selector: selectors.BaseSelector) -> int:
    """Echo for CLIENTS clients until each has closed its half, as the standard library's own example does.

    Returns the number of bytes that were echoed.
    """
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    waiting: dict[socket.socket, bytearray] = {}
    echoed = ended = 0
    with contextlib.ExitStack() as connections:
        while ended < CLIENTS:
            events = selector.select(WAIT_SECONDS)
            assert events, "nobody sends or receives any more"
            for key, mask in events:
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    connections.enter_context(connection)
                    connection.setblocking(False)
                    waiting[connection] = bytearray()
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                assert isinstance(key.fileobj, socket.socket)
                connection, buffer = key.fileobj, waiting[key.fileobj]
                events_now = key.events
                if mask & selectors.EVENT_READ:
                    part = connection.recv(CHUNK_BYTES)
                    buffer += part
                    if not part:
                        events_now &= ~selectors.EVENT_READ
                if mask & selectors.EVENT_WRITE:
                    sent = connection.send(buffer)
                    del buffer[:sent]
                    echoed += sent
                wanted = events_now & selectors.EVENT_READ | (selectors.EVENT_WRITE if buffer else 0)
                if wanted:
                    selector.modify(connection, wanted)
                else:
                    selector.unregister(connection)
                    connection.close()
                    ended += 1
    return echoed


@pytest.mark.parametrize("kind", SELECTORS, ids=lambda kind: kind.__name__)
def test_selector_serves_many(wire: Wire, kind: Selector) -> None:
    """50 clients of one thread, each of which sends all it has before it reads."""

    def client(seed: int) -> None:
        data = payload(CLIENT_BYTES, seed)
        with wire.dial() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert digest(receive_all(sock)) == digest(data)

    with (
        wire.listener() as listener,
        kind() as selector,
        in_background(lambda: echo(listener, selector)) as echoed,
        ThreadPoolExecutor(10) as pool,
    ):
        list(pool.map(client, range(CLIENTS)))
        assert echoed.result(WAIT_SECONDS) == CLIENTS * CLIENT_BYTES


class HyperVMixIn(socketserver.TCPServer):
    """Gives a server of socketserver a listener that is there already."""

    def __init__(self, listener: hv_socket, handler: type[socketserver.BaseRequestHandler]) -> None:
        socketserver.BaseServer.__init__(self, listener.getsockname(), handler)
        self.socket = listener


class Server(HyperVMixIn):
    """One connection after the other."""


class ThreadingServer(socketserver.ThreadingMixIn, HyperVMixIn):
    """A thread for each connection; server_close waits for them."""


class Echo(socketserver.StreamRequestHandler):
    """A line with a length, that many bytes, and they come back after their digest."""

    timeout = WAIT_SECONDS

    def handle(self) -> None:
        while line := self.rfile.readline():
            data = self.rfile.read(int(line))
            self.wfile.write(f"{digest(data)}\n".encode() + data)


@pytest.mark.parametrize("server_class", [Server, ThreadingServer])
def test_socketserver(wire: Wire, server_class: type[HyperVMixIn]) -> None:
    """Its loop, its threads and its buffered files work on what the listener accepts."""
    data = payload(MIB)

    def client(_: int) -> None:
        with wire.dial() as sock:
            for _ in range(2):
                sock.sendall(f"{len(data)}\n".encode() + data)
                answer = receive_exactly(sock, 64 + 1 + len(data))
                assert answer[:64].decode() == digest(data) == digest(answer[65:])

    with server_class(wire.listener(), Echo) as server, in_background(lambda: server.serve_forever(0.01)):
        try:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(client, range(8)))
        finally:
            server.shutdown()


def test_socketserver_says_who_calls(wire: Wire) -> None:
    """client_address is the pair that accept gives."""
    callers = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            callers.append(self.client_address)
            self.request.sendall(b"done")

    with Server(wire.listener(), Handler) as server:
        server.timeout = WAIT_SECONDS
        with wire.dial() as sock:
            server.handle_request()
            assert receive_all(sock) == b"done"
            assert callers == [(wire.guest.id, sock.getsockname()[1])]
