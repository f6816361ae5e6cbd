"""Connecting to a service of a VMM's guest, by the VMM's Unix socket.

:class:`Attempt` goes on as far as its socket lets it and waits for nothing; :func:`connect` waits by poll, and
:mod:`.aio` by an event loop. What comes back is an ordinary connected socket: of the bytes that the VMM sends, the
answer's line is taken and nothing more, however early the payload came.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
import time
from enum import Enum
from typing import Final

from hvsock import names
from hvsock.addresses import ServiceId, parse_service_id
from hvsock.errors import ProtocolError, UsageError
from hvsock.fabric import paths

from .handshake import MAX_ANSWER_BYTES, Line, Refused, parse_answer, quoted, request_line
from .profiles import HVSOCK, Profile

if sys.platform != "linux":
    raise ImportError("hybrid sockets need Linux, as the VMMs do")

HANDSHAKE_SECONDS: Final = 5.0
"""How long all of it may take by default. VMMs give a guest 2 s to answer."""
RETRY_SECONDS: Final = 0.01
"""Pause before another try where the VMM's queue is full: the kernel does not tell when it has room."""

ServiceLike = int | str
"""A port, or a port, GUID or registered name as text."""


class Wait(Enum):
    """What an attempt waits for."""

    TO_READ = 1
    """Its socket to be readable."""
    A_WHILE = 2
    """:data:`RETRY_SECONDS`."""


class Attempt:
    """One connect with its handshake; it owns :attr:`sock` until that is taken.

    Args:
        path: the VMM's socket, of any length.
        service: what is to be connected to.
        profile: the VMM's.

    Raises:
        UsageError: this VMM has no such service.
        OSError: EMFILE.
    """

    def __init__(self, path: str, service: ServiceId, profile: Profile) -> None:
        self._path = os.path.abspath(path)
        self._service = str(service if service.port is None else service.port)
        self._request = request_line(service, profile) if profile.has_handshake else b""
        self._who = f"{profile.name} at {path}"
        self._line = Line(MAX_ANSWER_BYTES)
        self._is_connected = False
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def advance(self) -> Wait | None:
        """Do what can be done now; None when it is connected.

        Raises:
            ConnectionRefusedError: nobody is there, or the VMM refused, by closing or in words.
            ConnectionResetError: the VMM ended in the midst of its answer.
            ProtocolError: what came is no answer.
            OSError: the path cannot be connected to; the errno is the kernel's.
        """
        if not self._is_connected:
            try:
                paths.at(*os.path.split(self._path), self.sock.connect)
            except BlockingIOError:
                return Wait.A_WHILE
            except OSError as error:
                raise self._unreachable(error) from None
            self._is_connected = True
            if self._request:
                self._send()
        return self._read() if self._request else None

    def too_late(self, seconds: float) -> TimeoutError:
        """The error after `seconds`."""
        if not self._is_connected:
            why = "its queue of new connections stayed full"
        elif self._line.text:
            why = f"its answer stopped after {quoted(self._line.text)}"
        else:
            why = "it took the request and did not answer (is the guest paused, or starting?)"
        return TimeoutError(errno.ETIMEDOUT, f"{self._who}: {why} for {seconds:g} s")

    def _send(self) -> None:
        """The whole request at once: several VMMs take it in one piece only, and it fits into a fresh socket.

        One that has closed already may have said why, which is read next.
        """
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.send(self._request)

    def _read(self) -> Wait | None:
        while not self._line.is_whole:
            try:
                data = self.sock.recv(MAX_ANSWER_BYTES, socket.MSG_PEEK)
            except BlockingIOError:
                return Wait.TO_READ
            except ConnectionResetError:  # it closed with the request unread
                data = b""
            if not data:
                raise self._ended()
            try:
                self.sock.recv(self._line.feed(data))
            except ProtocolError as error:
                raise self._nonsense(error) from None
        try:
            answer = parse_answer(self._line.text)
        except ProtocolError as error:
            raise self._nonsense(error) from None
        if isinstance(answer, Refused):
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, f"{self._who} refused {self._service}: it answered {answer.words}"
            )
        return None

    def _unreachable(self, error: OSError) -> OSError:
        code = error.errno or errno.EIO
        if code == errno.ENOENT:
            return OSError(code, f"there is no socket {self._path}: is the VM running?")
        if code == errno.ECONNREFUSED and not paths.is_socket(self._path):
            return OSError(code, f"{self._path} is there, and no socket: is it the VMM's path?")
        if code == errno.ECONNREFUSED:
            return OSError(code, f"nobody listens at {self._path}: the VMM that did has ended")
        if code == errno.EACCES:
            return OSError(code, f"this user may not connect to {self._path}")
        return OSError(code, f"{self._path}: {os.strerror(code)}")

    def _ended(self) -> OSError:
        if not self._line.text:
            return self._refused()
        return ConnectionResetError(
            errno.ECONNRESET, f"{self._who} ended in the midst of its answer, {quoted(self._line.text)}"
        )

    def _refused(self) -> ConnectionRefusedError:
        return ConnectionRefusedError(
            errno.ECONNREFUSED,
            f"{self._who} closed without an answer: nothing listens on {self._service}, or the guest is not up",
        )

    def _nonsense(self, error: ProtocolError) -> ProtocolError:
        return ProtocolError(f"{self._who} does not speak as a hybrid socket does: {error}")


def connect(
    path: str, service: ServiceLike, *, profile: Profile = HVSOCK, timeout: float | None = HANDSHAKE_SECONDS
) -> socket.socket:
    """Connect to a service of a VMM's guest.

    Args:
        path: the VMM's socket; for libkrun, that of the service.
        service: a port, a GUID where the VMM takes them, or a registered name.
        profile: the VMM's; the default suits all that have a handshake.
        timeout: seconds for all of it; None for no limit. It is not the time-out of the socket.

    Returns:
        A connected stream socket, which is the caller's; its time-out is the default one.

    Raises:
        TimeoutError: the VMM was silent.
        OSError, ProtocolError: as :meth:`Attempt.advance` says; nothing is left open.
        UsageError, NotFoundError, NoFabricError: no such service.
    """
    attempt = Attempt(path, service_id_of(service), profile)
    try:
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(attempt.sock, select.POLLIN)
        while (wait := attempt.advance()) is not None:
            left = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and left is not None and left <= 0:
                raise attempt.too_late(timeout)
            if wait is Wait.A_WHILE:
                time.sleep(RETRY_SECONDS)
            else:
                poll.poll(None if left is None else left * 1000)
        attempt.sock.settimeout(socket.getdefaulttimeout())
    except BaseException:
        attempt.sock.close()
        raise
    return attempt.sock


def service_id_of(service: ServiceLike) -> ServiceId:
    """The service that is meant; a name is looked up.

    Raises:
        UsageError: the port is out of range.
        NotFoundError: no service has that name.
        NoFabricError: it is a name, and no broker answers.
    """
    if isinstance(service, int):
        try:
            return ServiceId.from_port(service)
        except ValueError as error:
            raise UsageError(str(error)) from None
    found = parse_service_id(service)
    return found if found is not None else names.resolve(("loopback", service)).service_id
