"""What :mod:`.pump` does, where descriptors can be neither waited for nor moved by the kernel: on Windows.

Each direction has a thread of blocking calls. The caller's own thread only waits, in short pieces, since Windows
does not interrupt a blocking call for Ctrl-C.

Nothing tells there whether a peer has closed, or has only ended its own direction. So where the source is a
terminal, which would not end by itself, the end of what comes in ends both; elsewhere, the source goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from socket import socket

CHUNK_BYTES: Final = 256 * 1024
"""Bytes that one call moves at most."""
INTERRUPT_SECONDS: Final = 0.2
"""How long Ctrl-C may have to wait."""
END_SECONDS: Final = 2.0
"""How long what feeds a command may take to notice that it has ended; then its thread is left behind."""

_SHUT_WR: Final = 1
_SHUT_RDWR: Final = 2


class Pump:
    """One connection, and what stands at its near end: as :class:`hvsock.cli.pump.Pump`.

    Args:
        sock: the connection; the caller closes it.
        source: the descriptor whose data are sent; None for nothing, an end of stream at once.
        sink: the descriptor that gets what is received.

    Attributes:
        sent: bytes that went into the connection.
        received: bytes that the sink has taken.
    """

    def __init__(self, sock: socket, source: int | None, sink: int) -> None:
        self.sent = 0
        self.received = 0
        self._sock = sock
        self._source = source
        self._sink = sink
        self._failure: BaseException | None = None
        self._over = False  # nothing more is to be moved, in either direction
        self._settled = threading.Semaphore(0)  # as often as a direction is done

    def run(self) -> None:
        """Move data until both directions are at their end, or the peer is gone.

        Where the peer is gone first, a thread may stay behind, which waits for the source.

        Raises:
            ConnectionError: the connection was reset, or the peer left before it took everything.
            BrokenPipeError: nobody reads the sink any more.
            OSError: the source cannot be read, or the sink not be written.
        """
        self._sock.settimeout(None)
        for work in (self._send, self._receive):
            threading.Thread(target=self._guarded, args=(work,), name="hvsock-pump", daemon=True).start()
        try:
            self._wait()
            if not self._over:
                self._wait()
        finally:
            _end(self._sock, _SHUT_RDWR)
        if self._failure is not None:
            raise self._failure

    def _wait(self) -> None:
        """Wait until a direction is done."""
        while not self._settled.acquire(timeout=INTERRUPT_SECONDS):
            pass

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure, self._over = self._failure or error, True
        finally:
            self._settled.release()

    def _send(self) -> None:
        if self._source is not None:
            try:
                with open(self._source, "rb", buffering=0, closefd=False) as source:
                    for count in _sending(source, self._sock):
                        self.sent += count
            except (BrokenPipeError, ConnectionError):  # what it said before is still to come
                self._failure = ConnectionError(errno.ECONNRESET, "the peer closed before it took everything")
        _end(self._sock, _SHUT_WR)

    def _receive(self) -> None:
        with open(self._sink, "wb", buffering=0, closefd=False) as sink:
            for count in _receiving(self._sock, sink):
                self.received += count
        self._over = self._source is not None and os.isatty(self._source)


def execute_over_pipes(sock: socket, command: str, environ: Mapping[str, str]) -> int:
    """Run `command` by the shell, with pipes to `sock` as its standard input and output; returns its exit code.

    `sock` is closed when the command has ended and what it wrote is sent.
    """
    with (
        sock,
        subprocess.Popen(
            command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, bufsize=0
        ) as process,
    ):
        sock.settimeout(None)
        threads = [threading.Thread(target=work, args=(sock, process), daemon=True) for work in (_answer, _feed)]
        for thread in threads:
            thread.start()
        while threads[0].is_alive():
            threads[0].join(INTERRUPT_SECONDS)
        code = process.wait()
        _end(sock, _SHUT_RDWR)
        threads[1].join(END_SECONDS)
    return code


def _answer(sock: socket, process: subprocess.Popen[bytes]) -> None:
    """What the command writes, to the peer; where that is gone, the command gets a broken pipe."""
    assert process.stdout is not None
    with process.stdout as source, contextlib.suppress(OSError):
        for _ in _sending(source, sock):
            pass
    _end(sock, _SHUT_WR)


def _feed(sock: socket, process: subprocess.Popen[bytes]) -> None:
    """What the peer sends, to the command, as far as that reads it."""
    assert process.stdin is not None
    with process.stdin as sink, contextlib.suppress(OSError):
        for _ in _receiving(sock, sink):
            pass


def _sending(source: IO[bytes] | FileIO, sock: socket) -> Iterator[int]:
    """Send everything of a file without a buffer, and tell the numbers of bytes."""
    while data := source.read(CHUNK_BYTES):
        sock.sendall(data)
        yield len(data)


def _receiving(sock: socket, sink: IO[bytes] | FileIO) -> Iterator[int]:
    """Write everything that comes into a file without a buffer, and tell the numbers of bytes."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while count := sock.recv_into(buffer):
        left = buffer[:count]
        while left:
            left = left[sink.write(left) :]
        yield count


def _end(sock: socket, how: int) -> None:
    with contextlib.suppress(OSError):  # the peer is gone
        sock.shutdown(how)
