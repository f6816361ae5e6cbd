"""The keeper: a process that loads asyncssh once it is needed, and has a process of its own for each connection.

The agent has one from its beginning (:mod:`.keeping`), a fork of its supervisor: that shares its memory, so
it costs an idle agent next to nothing; loading goes on beside the agent's other work, on another processor where
there is one; and nothing that SSH or SFTP does can hold the agent's event loop up.

A connection's process begins as the agent's user. Where the host comes in as another, the process becomes that
user for good, as sshd's do, before it does anything for it: so commands and files are touched with that
user's rights alone.

A message of the agent is an :class:`.order.Order`, with two descriptors: the connection, and a socket by which
each of agent and process sees the other's end. A keeper that is killed leaves its processes alone, and its socket
with what was sent to the next one (:mod:`hvsock.services.supervising`).
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import logging
import os
import select
import signal
import socket
import sys
from typing import Any, Final, NoReturn

from hvsock.fabric import passing
from hvsock.services import loading

from .order import MAX_ORDER_BYTES, Order

if sys.platform != "linux":
    raise ImportError("the agent runs in Linux guests")

log = logging.getLogger(__name__)

MAX_SESSIONS: Final = 64
"""Commands, shells and SFTP sessions at once, over all connections: each is a process, or some 100 KiB."""
_DOOR: Final = "hvsock.services.predefined.direct.door"


class Slots:
    """A number of sessions that all processes of a keeper share; a process that is killed leaves its slots.

    They are locks on the bytes of a file in memory, which the kernel takes from processes that end.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._file = os.memfd_create("hvsock-sessions")
        self._mine: set[int] = set()

    def take(self) -> int | None:
        """The number of a slot that nobody had; None where there is none."""
        for number in range(self.count):
            if number in self._mine:
                continue
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError:
                continue
            self._mine.add(number)
            return number
        return None

    def give(self, number: int) -> None:
        """Give a slot back."""
        self._mine.discard(number)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def close(self) -> None:
        """Close the file, which gives back all that this process has."""
        os.close(self._file)


def run(control: socket.socket, slots: Slots, *, load: bool = False) -> None:
    """Keep until `control`, which is the caller's, ends.

    Args:
        control: a blocking socket of messages to the agent.
        slots: for the sessions of all connections.
        load: load asyncssh at once.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        # they are the agent's, whose end ends this; not ignored, which commands would inherit
        signal.signal(number, lambda number, frame: None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or the kernel keeps no exit codes, of the commands either
    children: dict[int, int] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    if load:
        _load()
    while True:
        for descriptor, _ in poll.poll():
            if descriptor != control.fileno():
                poll.unregister(descriptor)
                os.close(descriptor)
                os.waitpid(children.pop(descriptor), 0)
                continue
            if not control.recv(1, socket.MSG_PEEK):
                return
            door = _load()  # before it is received: if this is killed meanwhile, the next one finds it there
            message, passed, _ = passing.receive(control, MAX_ORDER_BYTES, 2)
            try:
                if door is None:
                    continue
                child = os.fork()
                if child == 0:
                    for one in (control.fileno(), *children):
                        os.close(one)
                    _attend(door, passed, message, slots)
                ended = os.pidfd_open(child)
                children[ended] = child
                poll.register(ended, select.POLLIN)
            except Exception:  # this connection has ended then, and others come
                log.exception("direct: a connection cannot be served")
            finally:
                for one in passed:
                    os.close(one)


def _load() -> Any:
    """What serves connections, with asyncssh, or None; the first time takes seconds in an emulated guest."""
    try:
        if _DOOR not in sys.modules:
            with loading.for_good():
                importlib.import_module(_DOOR)
        return sys.modules[_DOOR]
    except Exception:
        log.exception("direct: SSH cannot be loaded")
        return None


def _attend(door: Any, passed: list[int], message: bytes, slots: Slots) -> NoReturn:
    """Serve one connection to its end, as a process of its own."""
    try:
        connection, tie = (socket.socket(fileno=one) for one in passed)
        asyncio.run(door.attend(connection, tie, Order.read(message), slots))
    except BaseException:
        log.exception("direct: a connection failed")
    finally:
        os._exit(0)  # nothing of what the agent, or a test, has begun is finished here


def main() -> None:
    """The keeper as a program: its socket's descriptor and the number of sessions are its arguments."""
    logging.basicConfig(stream=sys.stderr, format="hvsock agent: %(message)s")
    with socket.socket(fileno=int(sys.argv[1])) as control:
        control.set_inheritable(False)
        run(control, Slots(int(sys.argv[2])))


if __name__ == "__main__":
    main()
