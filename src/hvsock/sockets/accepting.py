"""How an accepted connection is taken from the courier that brings it."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from hvsock.errors import ProtocolError
from hvsock.fabric import messages, passing
from hvsock.fabric.marks import EndMark
from hvsock.fabric.messages import Courier, Flag

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

COURIER_SECONDS: Final = 1.0
"""How long accept waits for a courier's bytes, which follow its arrival within microseconds."""
EXHAUSTED_SECONDS: Final = 0.005
"""Pause before another look for a free descriptor."""
YIELDS: Final = 50
"""How often accept yields the processor for a courier's bytes before it sleeps: some 50 µs in all."""

_LISTENER_NAME = re.compile(r"/([0-9a-f]{32})\Z")
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_MOST_DESCRIPTORS = 2  # the connection and its end mark


class Delivered(NamedTuple):
    """A connection and what came with it, an end mark where a VM's device connected; the caller owns both."""

    descriptor: int
    courier: Courier
    mark: EndMark | None = None

    def close(self) -> None:
        """Give the connection up."""
        os.close(self.descriptor)
        if self.mark is not None:
            self.mark.close()


def listener_id(name: object) -> bytes | None:
    """The id of the listener whose socket has that name, as getsockname tells it; None for other sockets."""
    match = _LISTENER_NAME.search(name) if isinstance(name, str) else None
    return None if match is None else bytes.fromhex(match[1])


def is_shut_down(descriptor: int, seconds: float = 0.0) -> bool:
    """Whether a listener was shut down: it is readable for good then, and a non-blocking accept finds nothing.

    Args:
        descriptor: the listener's; the answer for a closed one is no.
        seconds: how long to wait for a connection or for the end.
    """
    if descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP | (select.POLLIN if seconds else 0))
    return any(events & select.POLLRDHUP for _, events in poll.poll(seconds * 1000))


def take(link: socket.socket) -> Delivered | None:
    """The connection that the courier at the other end of `link`, a non-blocking socket, brings.

    None where it brings none: its broker died before it sent the descriptor, or it is stuck.
    """
    deadline = time.monotonic() + COURIER_SECONDS
    found = _receive(link, deadline)
    if found is None:
        return None
    ours = False
    try:
        ours = _is_ours(link, found, deadline)
    finally:
        if not ours:
            found.close()
    return found if ours else None


def _receive(link: socket.socket, deadline: float) -> Delivered | None:
    """The descriptors and the addresses.

    They are looked at first and removed after, so that a connection is not lost when this process has
    no descriptor left: then the spare one makes room.

    Raises:
        OSError: EMFILE: there is no room for an end mark, which needs a second one; the connection is lost.
    """
    while True:
        try:
            data, descriptors, cut = passing.receive(link, messages.COURIER_BYTES, _MOST_DESCRIPTORS, _PEEK)
            if cut:
                _close_all(descriptors)
                data, descriptors = spare.instead(link, deadline)
            break
        except BlockingIOError:
            if not _wait(link, deadline):
                return None
        except ConnectionResetError:
            return None
    try:
        courier = Courier.unpack(data)
    except ProtocolError:
        _close_all(descriptors)
        return None
    link.recv(messages.COURIER_BYTES, socket.MSG_DONTWAIT)
    if courier.flags is Flag.NONE or not courier.flags & Flag.END_MARK:  # the first is quicker, and the rule
        _close_all(descriptors[1:])
        return Delivered(descriptors[0], courier) if descriptors else None
    mark = EndMark.received(descriptors.pop()) if len(descriptors) == _MOST_DESCRIPTORS else None
    if mark is None:
        _close_all(descriptors)
        return None
    return Delivered(descriptors[0], courier, mark)


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _is_ours(link: socket.socket, found: Delivered, deadline: float) -> bool:
    """Wait until the broker has drained the request; drain it here if the broker died before it could."""
    while True:
        try:
            done = link.recv(len(messages.DONE), socket.MSG_DONTWAIT)
        except BlockingIOError:
            if not _wait(link, deadline):
                return False  # a broker that is stuck might drain payload later: the connection is lost
            continue
        except ConnectionResetError:
            done = b""
        break
    if done == messages.DONE:
        return True
    _drain(found)
    return True


def _drain(found: Delivered) -> None:
    """Take the request off the connection, if it is still there."""
    connection = socket.socket(fileno=found.descriptor)
    try:
        connection.settimeout(None)
        block = connection.recv(messages.REQUEST_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        if messages.carries(block, found.courier.token):
            connection.recv(messages.REQUEST_BYTES, socket.MSG_DONTWAIT)
    except OSError:
        pass  # nothing there: the request is drained; a reset: the accepter will see it
    finally:
        connection.detach()


def _wait(link: socket.socket, deadline: float) -> bool:
    """Wait for the next bytes of a courier.

    They follow within microseconds, so the processor is yielded a few times before this process sleeps:
    being woken for each of them costs the broker more than all the rest of a connect.
    """
    poll = select.poll()
    poll.register(link, select.POLLIN)
    for _ in range(YIELDS):
        if poll.poll(0):
            return True
        os.sched_yield()
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


class _Spare:
    """One descriptor that is kept to be given up when this process has no other left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self.keep()

    def keep(self) -> None:
        """Make sure that there is one.

        Raises:
            OSError: EMFILE, ENFILE.
        """
        if self._identity is None:
            with self._lock:
                if self._identity is None:
                    self._descriptor = os.memfd_create("hvsock-spare", os.MFD_CLOEXEC)
                    found = os.fstat(self._descriptor)
                    self._identity = (found.st_dev, found.st_ino)

    def instead(self, link: socket.socket, deadline: float) -> tuple[bytes, list[int]]:
        """Look at the courier's message again, with the spare descriptor's place free.

        Raises:
            OSError: EMFILE: other threads took that place, or there is need for two, and there was no other
                until `deadline`; the courier is lost.
        """
        with self._lock:
            self._give_up()
            while True:
                data, descriptors, cut = passing.receive(link, messages.COURIER_BYTES, _MOST_DESCRIPTORS, _PEEK)
                if not cut:
                    return data, descriptors
                _close_all(descriptors)
                if time.monotonic() >= deadline:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                time.sleep(EXHAUSTED_SECONDS)

    def _give_up(self) -> None:
        identity, self._identity = self._identity, None
        if identity is None:
            return
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return  # the program closed all descriptors once
        if (found.st_dev, found.st_ino) == identity:
            os.close(self._descriptor)

    def forked(self) -> None:
        """In a child process: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()


spare = _Spare()
"""Kept for the whole process from the import on."""
os.register_at_fork(after_in_child=spare.forked)
