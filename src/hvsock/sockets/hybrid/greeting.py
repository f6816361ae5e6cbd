"""A VMM's handshake behind a descriptor that is not ready until it is done.

The kernel calls a connection to a VMM writable before the VMM has said anything. So what the program has for
the time is one end of a pair whose buffer is full, as a connect of the fabric has, and a thread does the
handshake. At the end, however it comes out, it empties the pair, which makes the program's end writable. The
connection takes the place of the program's end then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import threading
import time
from typing import Final

from hvsock.hybrid.connecting import RETRY_SECONDS, Attempt, Wait

from . import failures

if sys.platform != "linux":
    raise ImportError("hybrid sockets need Linux, as the VMMs do")

MINIMAL_BUFFER: Final = 0
"""SO_SNDBUF that the kernel raises to its minimum."""
_CHUNK: Final = bytes(4096)


class Greeting:
    """One handshake; it owns `attempt`, and ends with the program's end of the pair.

    Args:
        attempt: the connect.
        seconds: how long it may take.

    Attributes:
        near: the program's end; whoever puts it under another descriptor closes this one.

    Raises:
        OSError: EMFILE; nothing is left open.
    """

    def __init__(self, attempt: Attempt, seconds: float) -> None:
        self._attempt = attempt
        self._seconds = seconds
        self._lock = threading.Lock()
        self._is_given_up = False
        self._outcome: socket.socket | OSError | None = None
        try:
            self.near, self._far = socket.socketpair(socket.AF_UNIX)
        except BaseException:
            attempt.sock.close()
            raise
        self.near.setblocking(False)
        self._far.setblocking(False)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MINIMAL_BUFFER)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.near.send(_CHUNK)
        self._thread = threading.Thread(target=self._run, name="hvsock-greeting", daemon=True)

    def start(self) -> None:
        """Begin.

        Raises:
            OSError: EAGAIN: there can be no more threads; nothing is left open.
        """
        try:
            self._thread.start()
        except RuntimeError:
            for sock in (self._attempt.sock, self.near, self._far):
                sock.close()
            raise OSError(errno.EAGAIN, "there can be no more threads, and a connect takes one") from None

    def take(self) -> socket.socket | OSError | None:
        """The connection, which is the caller's from now on, or why there is none; None while it is under way.

        In a process that was forked meanwhile it stays under way.
        """
        with self._lock:
            outcome, self._outcome = self._outcome, None
        return outcome

    def give_up(self) -> None:
        """Close the connection, now or when it is there."""
        with self._lock:
            self._is_given_up = True
            outcome, self._outcome = self._outcome, None
        if isinstance(outcome, socket.socket):
            outcome.close()

    def _run(self) -> None:
        with self._far:
            try:
                self._greet()
            except BaseException as error:
                self._attempt.sock.close()
                if not failures.is_own(error):
                    raise
                self._outcome = failures.of_connect(error)
                self._tell()
                return
            with self._lock:
                if self._is_given_up:
                    self._attempt.sock.close()
                    return
                self._outcome = self._attempt.sock
            self._tell()

    def _tell(self) -> None:
        """Have the program's end be ready; a process that was forked meanwhile has the other one still open."""
        with contextlib.suppress(OSError):
            while self._far.recv(len(_CHUNK)):
                pass

    def _greet(self) -> None:
        """Wait until the attempt is through.

        Raises:
            OSError, ProtocolError: as :meth:`Attempt.advance`; ETIMEDOUT; ECONNABORTED: nobody waits any more.
        """
        deadline = time.monotonic() + self._seconds
        while (wait := self._attempt.advance()) is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._attempt.too_late(self._seconds)
            poll = select.poll()
            poll.register(self._far, 0)  # the end of the other one is told unasked
            if wait is Wait.TO_READ:
                poll.register(self._attempt.sock, select.POLLIN)
            else:
                left = min(left, RETRY_SECONDS)
            if any(descriptor == self._far.fileno() for descriptor, _ in poll.poll(left * 1000)):
                raise OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
