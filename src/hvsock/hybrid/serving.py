"""The VMM's side: programs say which service of a VM they mean, and are joined to a connection of the fabric.

One thread, one reactor. A program's request is taken off its connection to the last byte and no further, so what
it sends ahead of the answer stays in the kernel until it is passed on.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket as _stdlib
import sys
from typing import TYPE_CHECKING, Final

from hvsock.addresses import Address, VmId
from hvsock.errors import ProtocolError
from hvsock.fabric.client import RETRY_SECONDS
from hvsock.relay.complaints import Complaints
from hvsock.relay.connection import Joined
from hvsock.sockets.socket import socket

from .handshake import FIRST_NUMBER, Asked, Line, answer_line, next_number, parse_request
from .profiles import Profile

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor, Timer

REQUEST_SECONDS: Final = 10.0
"""How long a program may take for its request, after which it loses its place."""
CONNECT_SECONDS: Final = 5.0
"""How long a connect of the fabric may take. Its broker and devices keep a time-out of their own, of 2 s; by then
one of them is stuck, or the broker's queue is full."""


class Server:
    """The programs of one VM's socket. All methods are for the reactor's thread.

    Args:
        reactor: watches everything.
        vm_id: the VM.
        partition: the folder of the partition that connects to it.
        profile: the VMM whose ways it has; one with a handshake.
        most: most connections at once, those that have said nothing yet among them.
    """

    def __init__(self, reactor: Reactor, vm_id: VmId, partition: str, profile: Profile, most: int) -> None:
        self.reactor = reactor
        self.vm_id = vm_id
        self.partition = partition
        self.profile = profile
        self._most = most
        self._number = FIRST_NUMBER
        self._programs: set[_Program] = set()
        self._joined: set[Joined] = set()
        self._complaints = Complaints(reactor)

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._programs) + len(self._joined)

    def admit(self, sock: _stdlib.socket) -> None:
        """Serve a program by its connection, non-blocking, which the server owns now."""
        if len(self) >= self._most:
            self.complain(f"a program is refused: there are {self._most} connections, the most")
            sock.close()
            return
        program = _Program(self, sock)
        self._programs.add(program)
        program.start()

    def close(self) -> None:
        """Close everything."""
        for program in list(self._programs):
            program.drop()
        for joined in self._joined:
            joined.close()
        self._joined.clear()

    def complain(self, what: str) -> None:
        """Say in the log what went wrong, not too often."""
        self._complaints.say(self.profile.name, what)

    def forget(self, program: _Program) -> None:
        """It is over, or joined."""
        self._programs.discard(program)

    def join(self, sock: _stdlib.socket, connection: socket, asked: Asked) -> None:
        """Answer a program, and join it to its connection; the server owns both."""
        line = answer_line(asked, self._number, self.profile)
        self._number = next_number(self._number)
        try:
            sock.send(line)  # nothing was sent before, so it fits
            self._joined.add(Joined(self.reactor, connection, sock, self._joined.discard))
        except OSError as error:  # it is gone; or too much is watched, and then both are closed already
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                self.complain(f"a connection is closed: {error.strerror}")
            sock.close()
            connection.close()


class _Program:
    """A program's connection until it is joined or dropped."""

    def __init__(self, server: Server, sock: _stdlib.socket) -> None:
        self._server = server
        self._reactor = server.reactor
        self._sock = sock
        self._line = Line(server.profile.longest_request)
        self._asked: Asked | None = None
        self._connection: socket | None = None
        self._timer: Timer | None = None
        self._again: Timer | None = None

    def start(self) -> None:
        """Wait for its request."""
        self._timer = self._reactor.after(REQUEST_SECONDS, self._is_silent)
        try:
            self._reactor.watch(self._sock.fileno(), select.EPOLLIN, lambda events: self._read())
        except OSError as error:
            self._server.complain(f"a program is refused: {error.strerror}")
            self.drop()

    def drop(self) -> None:
        """Close it, which is how each VMM refuses."""
        self._let_go()
        self._sock.close()
        if self._connection is not None:
            self._connection.close()

    def _let_go(self) -> None:
        for timer in (self._timer, self._again):
            if timer is not None:
                timer.cancel()
        self._reactor.forget(self._sock.fileno())
        if self._connection is not None:
            self._reactor.forget(self._connection.fileno())
        self._server.forget(self)

    def _refuse(self, why: str) -> None:
        what = "a program" if self._asked is None else f"service {self._asked.service}"
        self._server.complain(f"{what} is refused: {why}")
        self.drop()

    def _is_silent(self) -> None:
        self._refuse(f"no request came for {REQUEST_SECONDS:g} s")

    def _read(self) -> None:
        try:
            data = self._sock.recv(self._server.profile.longest_request, _stdlib.MSG_PEEK)
            if not data:
                self.drop()
                return
            self._sock.recv(self._line.feed(data))
            if not self._line.is_whole:
                return
            self._asked = parse_request(self._line.text, self._server.profile)
        except BlockingIOError:
            return
        except ConnectionError:
            self.drop()
            return
        except ProtocolError as error:
            self._refuse(str(error))
            return
        self._reactor.forget(self._sock.fileno())
        assert self._timer is not None
        self._timer.cancel()
        self._timer = self._reactor.after(CONNECT_SECONDS, self._is_stuck)
        self._connect()

    def _is_stuck(self) -> None:
        self._refuse(f"the broker or the VM's device did not answer in {CONNECT_SECONDS:g} s")

    def _connect(self) -> None:
        assert self._asked is not None
        try:
            if self._connection is None:
                self._connection = socket(partition=self._server.partition)
                self._connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                self._connection.connect(Address(self._server.vm_id, self._asked.service))
            self._reactor.watch(self._connection.fileno(), select.EPOLLOUT, lambda events: self._settled())
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._again = self._reactor.after(RETRY_SECONDS, self._connect)
            else:
                self._refuse(error.strerror or str(error))

    def _settled(self) -> None:
        assert self._asked is not None
        assert self._connection is not None
        try:
            self._connection.connect(Address(self._server.vm_id, self._asked.service))
        except BlockingIOError:
            return
        except OSError as error:
            self._refuse(error.strerror or str(error))
            return
        self._let_go()
        self._server.join(self._sock, self._connection, self._asked)
