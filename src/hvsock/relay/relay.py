"""All connections of the relay, in one thread: accepted, connected to their targets, joined, and counted."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket as _stdlib
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvsock.addresses import VmId, describe_vm_id
from hvsock.registry.forwards import Forward

from .complaints import Complaints
from .connection import Joined

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor, Timer
    from hvsock.sockets.socket import socket

MAX_CONNECTIONS: Final = 1_024
"""Most connections at once, those whose target is not connected yet among them; 128 MiB in hand at most."""
MAX_CONNECTIONS_PER_PARTITION: Final = 512
"""Most of them that come from one partition, so that one guest cannot lock the others out."""
DESCRIPTORS_PER_CONNECTION: Final = 3
"""The connection, the end mark of a VM's device, and the target."""
CONNECT_SECONDS: Final = 5.0
"""How long a target's queue of new connections may stay full."""
RETRY_SECONDS: Final = 0.02
"""Pause before another try with a Unix socket whose queue is full: the kernel does not tell when it has room."""
ACCEPTS_PER_TURN: Final = 16
"""Connections accepted before the others have their turn."""
REST_SECONDS: Final = 0.25
"""How long a listener rests when an accept fails, as without a free descriptor."""


class Listening:
    """One listening socket of the fabric and where its connections go; a :class:`Relay` has it.

    Attributes:
        name: what people call the service.
        sock: the listening socket, which it owns.
        forward: where new connections go; may be set anew at any time.
    """

    def __init__(self, name: str, sock: socket, forward: Forward) -> None:
        self.name = name
        self.sock = sock
        self.forward = forward
        self.resting: Timer | None = None


class Relay:
    """The connections of one process. All methods are for the reactor's thread.

    Args:
        reactor: watches everything.
        most: most connections at once; what the process's descriptors are enough for.
    """

    def __init__(self, reactor: Reactor, most: int = MAX_CONNECTIONS) -> None:
        self._reactor = reactor
        self._most = most
        self._listening: set[Listening] = set()
        self._joined: set[Joined] = set()
        self._connecting: set[_Connecting] = set()
        self._by_partition: Counter[VmId] = Counter()
        self._complaints = Complaints(reactor)

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._joined) + len(self._connecting)

    def add(self, listening: Listening) -> None:
        """Take the connections of a listener from now on; the relay owns it.

        Raises:
            OSError: the user watches too many descriptors; it is closed.
        """
        listening.sock.setblocking(False)
        try:
            self._watch(listening)
        except BaseException:
            listening.sock.close()
            raise
        self._listening.add(listening)

    def remove(self, listening: Listening) -> None:
        """Close a listener; what was accepted stays. One that was removed already is fine."""
        if listening in self._listening:
            self._listening.remove(listening)
            if listening.resting is not None:
                listening.resting.cancel()
            self._reactor.forget(listening.sock.fileno())
            listening.sock.close()

    def close(self) -> None:
        """Close everything; connections are reset where that can be shown."""
        for listening in list(self._listening):
            self.remove(listening)
        for connecting in list(self._connecting):
            connecting.give_up()
        for joined in self._joined:
            joined.close()
        self._joined.clear()
        self._by_partition.clear()

    def _watch(self, listening: Listening) -> None:
        self._reactor.watch(listening.sock.fileno(), select.EPOLLIN, lambda events: self._accept(listening))

    def _accept(self, listening: Listening) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, peer = listening.sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._complaints.say(listening.name, f"no connection can be taken: {error.strerror}")
                self._reactor.forget(listening.sock.fileno())
                listening.resting = self._reactor.after(REST_SECONDS, lambda: self._watch(listening))
                return
            self._begin(listening, sock, peer.vm_id)

    def _begin(self, listening: Listening, sock: socket, peer: VmId) -> None:
        who = describe_vm_id(peer)
        if len(self) >= self._most:
            self._complaints.say(
                listening.name, f"a connection of {who} is closed: there are {self._most}, the most"
            )
            sock.close()
        elif self._by_partition[peer] >= MAX_CONNECTIONS_PER_PARTITION:
            most = MAX_CONNECTIONS_PER_PARTITION
            self._complaints.say(
                listening.name, f"a connection of {who} is closed: it has {most}, the most of one partition"
            )
            sock.close()
        else:
            sock.setblocking(False)
            self._by_partition[peer] += 1
            forward = listening.forward

            def connected(connecting: _Connecting, target: _stdlib.socket) -> None:
                self._connecting.discard(connecting)
                self._join(listening.name, sock, target, peer)

            def failed(connecting: _Connecting, error: OSError) -> None:
                self._connecting.discard(connecting)
                self._forget(peer)
                why = error.strerror or str(error)
                self._complaints.say(
                    listening.name, f"a connection of {who} is closed: {forward} does not answer: {why}"
                )
                sock.close()

            connecting = _Connecting(self._reactor, forward, connected, failed)
            self._connecting.add(connecting)
            connecting.start()

    def _join(self, name: str, sock: socket, target: _stdlib.socket, peer: VmId) -> None:
        def ended(joined: Joined) -> None:
            self._joined.discard(joined)
            self._forget(peer)

        try:
            self._joined.add(Joined(self._reactor, sock, target, ended))
        except OSError as error:
            self._forget(peer)
            self._complaints.say(name, f"a connection is closed: {error.strerror}")

    def _forget(self, peer: VmId) -> None:
        self._by_partition[peer] -= 1
        if self._by_partition[peer] <= 0:
            del self._by_partition[peer]


class _Connecting:
    """A connect to a target under way; it ends by one of the two calls, or by :meth:`give_up`."""

    def __init__(
        self,
        reactor: Reactor,
        forward: Forward,
        connected: Callable[[_Connecting, _stdlib.socket], None],
        failed: Callable[[_Connecting, OSError], None],
    ) -> None:
        self._reactor = reactor
        self._forward = forward
        self._connected = connected
        self._failed = failed
        self._address = forward.address if forward.port is None else (forward.address, forward.port)
        self._sock: _stdlib.socket | None = None
        self._deadline: Timer | None = None
        self._again: Timer | None = None

    def start(self) -> None:
        """Begin; either call may come at once."""
        family = _family(self._forward)
        try:
            self._sock = _stdlib.socket(family, _stdlib.SOCK_STREAM | _stdlib.SOCK_NONBLOCK)
            if family != _stdlib.AF_UNIX:
                self._sock.setsockopt(_stdlib.IPPROTO_TCP, _stdlib.TCP_NODELAY, 1)
        except OSError as error:
            self._fail(error)
            return
        self._deadline = self._reactor.after(CONNECT_SECONDS, self._too_late)
        self._try()

    def give_up(self) -> None:
        """End it as failed."""
        self._fail(OSError(errno.ECONNABORTED, "the relay ends"))

    def _try(self) -> None:
        assert self._sock is not None
        code = self._sock.connect_ex(self._address)
        if code == errno.EINPROGRESS:
            try:
                self._reactor.watch(self._sock.fileno(), select.EPOLLOUT, self._answered)
            except OSError as error:
                self._fail(error)
        elif code == errno.EAGAIN:
            self._again = self._reactor.after(RETRY_SECONDS, self._try)
        elif code:
            self._fail(OSError(code, os.strerror(code)))
        else:
            self._succeed()

    def _answered(self, events: int) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_ERROR)
        if code:
            self._fail(OSError(code, os.strerror(code)))
        elif _is_itself(self._sock):
            self._fail(OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))
        else:
            self._succeed()

    def _too_late(self) -> None:
        self._fail(OSError(errno.ETIMEDOUT, f"its queue was full for {CONNECT_SECONDS:g} s"))

    def _settle(self) -> None:
        for timer in (self._deadline, self._again):
            if timer is not None:
                timer.cancel()
        if self._sock is not None:
            self._reactor.forget(self._sock.fileno())

    def _succeed(self) -> None:
        self._settle()
        sock, self._sock = self._sock, None
        assert sock is not None
        self._connected(self, sock)

    def _fail(self, error: OSError) -> None:
        self._settle()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._failed(self, error)


def _family(forward: Forward) -> int:
    if forward.port is None:
        return _stdlib.AF_UNIX
    return _stdlib.AF_INET6 if ":" in forward.address else _stdlib.AF_INET


def _is_itself(sock: _stdlib.socket) -> bool:
    """Whether TCP connected a socket to itself, as it may where nobody listens on an ephemeral port."""
    with contextlib.suppress(OSError):
        return bool(sock.getsockname() == sock.getpeername())
    return False
