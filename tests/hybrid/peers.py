"""VMMs played by threads: one for each profile, and others that do one thing wrong."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from hvsock.errors import ProtocolError
from hvsock.hybrid.handshake import FIRST_NUMBER, Line, answer_line, parse_request
from hvsock.hybrid.profiles import Profile

assert sys.platform == "linux"

Act = Callable[[socket.socket], None]


def until_end(sock: socket.socket) -> bytes:
    """All that comes, up to the end of stream or a reset."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 16):
            found += data
    return found


@contextlib.contextmanager
def vmm(path: Path, act: Act) -> Iterator[str]:
    """A listener at `path`; each connection is given to `act` in a thread, and closed after that."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(128)
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            act(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(thread := threading.Thread(target=serve, args=(connection,)))
            thread.start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield str(path)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()
        path.unlink()
        for thread in threads:
            thread.join()


def guest_of(profile: Profile, services: set[str]) -> Act:
    """What a VMM does whose guest echoes on `services`, each a port or a GUID, with all the VMM's ways."""

    def act(sock: socket.socket) -> None:
        early = b""
        if profile.has_handshake:
            line = Line(profile.longest_request)
            while not line.is_whole:
                data = sock.recv(4096)
                if not data:
                    return
                try:
                    early = data[line.feed(data) :]
                except ProtocolError:
                    return
                if not (line.is_whole or profile.takes_pieces):
                    return
            try:
                asked = parse_request(line.text, profile)
            except ProtocolError:
                return
            if str(asked.service) not in services and str(asked.service.port) not in services:
                return
            sock.sendall(answer_line(asked, FIRST_NUMBER, profile))
        if profile.keeps_early_data:
            sock.sendall(early)
        while data := sock.recv(1 << 16):
            sock.sendall(data)
        if profile.keeps_half_close:
            sock.sendall(b", over")

    return act


def one_at_a_time(act: Act) -> Act:
    """`act`, and whoever comes meanwhile waits for its end; OpenVMM does so with handshakes."""
    turn = threading.Lock()

    def acts(sock: socket.socket) -> None:
        with turn:
            act(sock)

    return acts


def says(*pieces: bytes) -> Act:
    """Reads the request, says something in pieces, and ends."""

    def act(sock: socket.socket) -> None:
        sock.recv(4096)
        for piece in pieces:
            sock.sendall(piece)

    return act


def says_first(*pieces: bytes) -> Act:
    """Says something without waiting for a request, and ends."""

    def act(sock: socket.socket) -> None:
        for piece in pieces:
            sock.sendall(piece)

    return act


def hangs_up(sock: socket.socket) -> None:
    """Closes at once, with the request unread if it is there."""


def is_silent_after(*pieces: bytes) -> Act:
    """Reads the request, says something, and waits until the client leaves."""

    def act(sock: socket.socket) -> None:
        says(*pieces)(sock)
        until_end(sock)

    return act
