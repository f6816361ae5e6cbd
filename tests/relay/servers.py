"""Existing servers, which know nothing of hvsock: what forwards lead to."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

assert sys.platform == "linux"


class Server:
    """A server in a thread: each connection gets its greeting, then all that it sends back.

    Args:
        listener: what it accepts from; closed at the end.
        greeting: the first bytes of each connection.
    """

    def __init__(self, listener: socket.socket, greeting: bytes) -> None:
        self._listener = listener
        self._greeting = greeting
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(self._greeting)
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    def close(self) -> None:
        """End it, and its connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def tcp_server(greeting: bytes = b"") -> Iterator[str]:
    """A server at a free port of TCP; gives the forward that leads to it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    server = Server(listener, greeting)
    try:
        yield f"tcp:127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.close()


@contextlib.contextmanager
def unix_server(path: Path, greeting: bytes = b"") -> Iterator[str]:
    """A server at a Unix socket; gives the forward that leads to it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(256)
    server = Server(listener, greeting)
    try:
        yield f"unix:{path}"
    finally:
        server.close()
        path.unlink()
