"""Between a connection and a pair of descriptors, both ways at once, at the speed of the kernel.

One thread sends what the source gives, the caller's receives. Where a descriptor is a pipe, the kernel
moves the data (splice(2)); else one large buffer is used again and again. The socket is non-blocking and
everything waits in poll: a splice that waits holds the lock of its pipe, and the process at the pipe's
other end would hang with it, unable to take what is there already.

An end of stream in one direction is passed on and leaves the other direction alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import sys
import threading
from typing import TYPE_CHECKING, Final

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

if TYPE_CHECKING:
    from socket import socket

CHUNK_BYTES: Final = 1 << 20
"""Bytes that one call moves at most, and the size that pipes are given: the most that a user may ask for by
default (/proc/sys/fs/pipe-max-size)."""

_SHUT_WR: Final = 1
_SHUT_RDWR: Final = 2
_GONE: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL


class Pump:
    """One connection, and what stands at its near end.

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
        self._ended = os.eventfd(0)  # the sender is done
        self._stop = os.eventfd(0)  # the sender is to end where it has nothing in hand

    def run(self) -> None:
        """Move data until both directions are at their end, or the peer is gone.

        Raises:
            ConnectionError: the connection was reset, or the peer left before it took everything.
            BrokenPipeError: nobody reads the sink any more.
            OSError: the source cannot be read, or the sink not be written.
        """
        self._sock.setblocking(False)
        sender = threading.Thread(target=self._send, name="hvsock-send", daemon=True)
        sender.start()
        try:
            self._receive()
            _wait(self._sock.fileno(), 0, self._ended)
        except BaseException:
            with contextlib.suppress(OSError):
                self._sock.shutdown(_SHUT_RDWR)
            raise
        finally:
            os.eventfd_write(self._stop, 1)
            sender.join()
            os.close(self._stop)
            os.close(self._ended)
        if self._failure is not None:
            raise self._failure

    # -- source to connection

    def _send(self) -> None:
        try:
            if self._source is not None:
                self._send_all(self._source)
            with contextlib.suppress(OSError):  # the peer is gone
                self._sock.shutdown(_SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            self._failure = ConnectionError(errno.ECONNRESET, "the peer closed before it took everything")
        except BaseException as error:
            self._failure = error
            with contextlib.suppress(OSError):
                self._sock.shutdown(_SHUT_RDWR)
        finally:
            os.eventfd_write(self._ended, 1)

    def _send_all(self, source: int) -> None:
        splices = _widen(source)
        buffer = memoryview(b"") if splices else memoryview(bytearray(CHUNK_BYTES))
        while _wait(source, select.POLLIN, self._stop):
            try:
                if splices:
                    count = os.splice(source, self._sock.fileno(), CHUNK_BYTES, flags=os.SPLICE_F_NONBLOCK)
                    self.sent += count
                else:
                    count = os.readv(source, [buffer])
                    self._send_buffer(buffer[:count])
                if not count:
                    return
            except BlockingIOError:  # the connection is full, or somebody else took what was there
                _wait(self._sock.fileno(), select.POLLOUT)
            except OSError as error:
                if not splices or error.errno != errno.EINVAL:
                    raise
                splices, buffer = False, memoryview(bytearray(CHUNK_BYTES))

    def _send_buffer(self, data: memoryview) -> None:
        while data:
            try:
                count = self._sock.send(data)
                self.sent += count
                data = data[count:]
            except BlockingIOError:
                _wait(self._sock.fileno(), select.POLLOUT)

    # -- connection to sink

    def _receive(self) -> None:
        splices = _widen(self._sink)
        buffer = memoryview(b"" if splices else bytearray(CHUNK_BYTES))
        while True:
            self._wait_for_data()
            try:
                if splices:
                    count = os.splice(self._sock.fileno(), self._sink, CHUNK_BYTES, flags=os.SPLICE_F_NONBLOCK)
                    if not count:  # the socket's own receive tells an end of stream from a reset
                        count = self._sock.recv_into(bytearray(1))
                else:
                    count = self._sock.recv_into(buffer)
                    _write_all(self._sink, buffer[:count])
            except BlockingIOError:  # the sink is full
                _wait(self._sink, select.POLLOUT)
                continue
            except OSError as error:
                if not splices or error.errno != errno.EINVAL:
                    raise
                splices, buffer = False, memoryview(bytearray(CHUNK_BYTES))
                continue
            if not count:
                return
            self.received += count

    def _wait_for_data(self) -> None:
        """Wait for something to receive; an end of stream is something.

        Raises:
            BrokenPipeError: nobody reads the sink any more.
        """
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        poll.register(self._sink, 0)
        ready = dict(poll.poll())
        if self._sock.fileno() not in ready and ready.get(self._sink, 0) & _GONE:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _wait(descriptor: int, events: int, stop: int | None = None) -> bool:
    """Wait until `descriptor` has one of `events`, or its other end is gone; False when `stop` came before."""
    poll = select.poll()
    poll.register(descriptor, events)
    if stop is not None:
        poll.register(stop, select.POLLIN)
    return any(number == descriptor for number, _ in poll.poll())


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            _wait(descriptor, select.POLLOUT)


def _widen(descriptor: int) -> bool:
    """Whether `descriptor` is a pipe; it is made wide then, as far as this user may."""
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return False
    with contextlib.suppress(OSError):
        if fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) < CHUNK_BYTES:
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, CHUNK_BYTES)
    return True
