"""A disk from its handshake to its end: the connection, the kernel's device, and the relay between them."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from hvsock.errors import LostError, ProtocolError, StateError
from hvsock.fabric.reactor import Reactor, ending_by_signals
from hvsock.relay.connection import Joined

from .disk import Disk, is_taken, prepare_process
from .handshake import Export, Send, handshake

if sys.platform != "linux":
    raise ImportError("NBD devices are Linux's")

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS: Final = 10.0
"""How long a server may take to describe its export: a few round trips, and it may have to open a file."""
LOOK_SECONDS: Final = 0.02
"""Pause between two looks whether the kernel has the disk, which it tells nobody."""
ANSWER_SECONDS: Final = 30
"""How long a server may take for a block by default. A disk that spins up takes ten."""


def serve(
    connection: socket.socket,
    device: str,
    on_ready: Callable[[Export], None],
    *,
    export: str = "",
    read_only: bool = False,
    seconds: int = ANSWER_SECONDS,
) -> None:
    """Be the disk `device` until SIGTERM or SIGINT.

    Args:
        connection: a stream to an NBD server, nothing of which was read; it is closed at the end.
        device: a device of the kernel's NBD client that is not in use.
        on_ready: called when the disk is there, with what it is.
        export: which of the server's exports; the empty name is its default.
        read_only: whether the disk can be read alone, whatever the server says.
        seconds: how long the server may take for a block.

    Raises:
        LostError: the server is gone, or took too long; what was asked of the disk failed, with EIO.
        ProtocolError, NotFoundError, RefusedError, UsageError, BusyError, StateError: the server, or the device.
        OSError: the connection was reset in the handshake; or what the disk had could not be written.
    """
    with connection, Disk(device) as disk:
        found = negotiate(connection, export)
        kernels, ours = socket.socketpair()
        with ours:
            with kernels:
                disk.attach(kernels, found, read_only=read_only, seconds=seconds)
            prepare_process()
            _Serving(connection, ours, disk).run(lambda: on_ready(found))


def negotiate(connection: socket.socket, name: str = "", seconds: float = HANDSHAKE_SECONDS) -> Export:
    """What the server at the other end of `connection` serves; afterwards blocks can be asked for.

    Raises:
        TimeoutError: it took longer than `seconds`.
        ProtocolError, NotFoundError, RefusedError, UsageError: as :func:`.handshake.handshake` says.
        OSError: the connection was reset.
    """
    deadline = time.monotonic() + seconds
    steps = handshake(name)
    try:
        step = next(steps)
        while True:
            if isinstance(step, Send):
                connection.settimeout(_left(deadline))
                connection.sendall(step.data)
                step = next(steps)
            else:
                step = steps.send(_receive(connection, step.length, deadline))
    except StopIteration as end:
        found: Export = end.value
        return found
    except TimeoutError:
        text = f"the NBD server was silent or slow: no handshake in {seconds:g} s; has it another client?"
        raise TimeoutError(text) from None


def _left(deadline: float) -> float:
    """Seconds until `deadline`.

    Raises:
        TimeoutError: there are none; whoever sends a byte now and then must not go on for ever.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _receive(connection: socket.socket, length: int, deadline: float) -> bytes:
    data = b""
    while len(data) < length:
        connection.settimeout(_left(deadline))
        piece = connection.recv(length - len(data))
        if not piece:
            raise ProtocolError("the connection ended in the handshake: is what answers an NBD server?")
        data += piece
    return data


class _Serving:
    """A disk in use: the kernel's client in a thread, and the relay in this one."""

    def __init__(self, connection: socket.socket, ours: socket.socket, disk: Disk) -> None:
        self._disk = disk
        self._sockets = connection, ours
        self._reactor = Reactor()
        self._asked = False
        self._failure: OSError | None = None
        self._unwritten: OSError | None = None
        self._kernels = threading.Thread(target=self._serve, name="hvsock-nbd", daemon=True)
        self._ending = threading.Thread(target=self._disconnect, name="hvsock-nbd-end", daemon=True)

    def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until it is over.

        Raises:
            LostError, StateError: as :func:`serve` says.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._reactor.close)
            for sock in self._sockets:
                sock.setblocking(False)
            joined = Joined(self._reactor, *self._sockets, lambda _: None)  # the kernel tells the end
            stack.callback(joined.close)
            stack.enter_context(ending_by_signals(self._reactor, self._ask))
            self._kernels.start()
            self._look(on_ready)
            self._reactor.run()
        self._kernels.join()
        if self._asked:
            self._ending.join()
        path = self._disk.path
        if self._unwritten is not None:
            raise StateError(f"{path} is ended, and not all of it was written: {self._unwritten.strerror}")
        if self._asked:
            return
        if self._failure is not None:
            raise LostError(f"{path} is lost: {self._failure.strerror} ({self._failure.errno}) says the kernel")
        raise LostError(f"{path} is lost: its server ended, or the way to it; what was not written is not there")

    def _look(self, on_ready: Callable[[], None]) -> None:
        if self._disk.is_there():
            on_ready()
        else:
            self._reactor.after(LOOK_SECONDS, lambda: self._look(on_ready))

    def _serve(self) -> None:
        try:
            self._disk.serve()
        except OSError as error:
            self._failure = error
        self._reactor.call_from_thread(self._reactor.stop)

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._ending.start()  # it may have to write much, which goes through this thread

    def _disconnect(self) -> None:
        if is_taken(self._disk.path):
            log.warning("%s is in use still; what its file system has not written is lost", self._disk.path)
        try:
            self._disk.disconnect()
        except OSError as error:
            self._unwritten = error
