"""A terminal at a guest's serial console."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Final

from hvsock.errors import NotFoundError
from hvsock.fabric import paths

from .qemu import CONSOLE_SOCKET
from .runs import Run

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

LEAVE: Final = b"\x1d"
"""The key that leaves: Ctrl-], as with telnet."""
CHUNK_BYTES: Final = 65536
"""Most bytes that are taken at once; a serial line brings fewer."""
QUIET_SECONDS: Final = 2.0
"""Silence of the guest after which a console whose input has ended is left."""


def connect(run: Run) -> socket.socket:
    """A connection to the console of a VM.

    Raises:
        NotFoundError: the VM does not run.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        paths.at(run.folder, CONSOLE_SOCKET, link.connect)
    except (FileNotFoundError, ConnectionRefusedError):
        link.close()
        raise NotFoundError(f"the VM {run.name!r} does not run; see: hvsock vm list") from None
    except BaseException:
        link.close()
        raise
    return link


def attend(link: socket.socket, source: int, sink: int) -> bool:
    """Join `source` and `sink` to a console until the key LEAVE; returns whether the VM goes on.

    Where `source` is no terminal there is no such key; when it ends, the console is left once the guest has been
    quiet for a while.

    Args:
        link: the connection to the console.
        source: a descriptor to read from.
        sink: a descriptor to write to.
    """
    terminal = os.isatty(source)
    with _raw(source) if terminal else contextlib.nullcontext():
        watched = [link.fileno(), source]
        while True:
            ready, _, _ = select.select(watched, (), (), None if source in watched else QUIET_SECONDS)
            if not ready:
                return True
            if link.fileno() in ready:
                data = link.recv(CHUNK_BYTES)
                if not data:
                    return False
                _write(sink, data)
            if source in ready:
                typed = os.read(source, CHUNK_BYTES)
                before, key, _ = typed.partition(LEAVE) if terminal else (typed, b"", b"")
                link.sendall(before)
                if key:
                    return True
                if not typed:
                    watched.remove(source)


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """A terminal that passes every key on, as long as this lasts."""
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _write(sink: int, data: bytes) -> None:
    while data:
        data = data[os.write(sink, data) :]
