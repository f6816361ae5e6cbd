"""A terminal at a console, which is one end of a pair of sockets here."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.errors import NotFoundError

assert sys.platform == "linux"

from hvsock.vm import console
from hvsock.vm.runs import Run


class Attendance:
    """Somebody at a console, in a thread.

    Attributes:
        guest: the guest's end of the console.
        results: gets what :func:`console.attend` returned.
    """

    def __init__(self, stack: contextlib.ExitStack, source: int, sink: int) -> None:
        self.guest, link = socket.socketpair()
        self.results: list[bool] = []
        stack.enter_context(self.guest)
        stack.enter_context(link)
        self._thread = threading.Thread(target=lambda: self.results.append(console.attend(link, source, sink)))
        self._thread.start()
        stack.callback(self._thread.join)

    def result(self) -> bool:
        """Wait until the console is left: whether the VM went on."""
        self._thread.join(20)
        return self.results[0]


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as made:
        yield made


def pipe(stack: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    stack.callback(os.close, read)
    stack.callback(os.close, write)
    return read, write


def test_a_pipe_is_typed_in_and_the_console_left_when_the_guest_is_quiet(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.1)
    source, write = os.pipe()
    stack.callback(os.close, source)
    shown, sink = pipe(stack)
    at = Attendance(stack, source, sink)
    os.write(write, b"uname\x1d\n")  # no terminal, so no key leaves
    assert at.guest.recv(100) == b"uname\x1d\n"
    at.guest.sendall(b"Linux\n")
    assert os.read(shown, 100) == b"Linux\n"
    os.close(write)
    assert at.result()


def test_the_guest_ends(stack: contextlib.ExitStack) -> None:
    source, _ = pipe(stack)
    shown, sink = pipe(stack)
    at = Attendance(stack, source, sink)
    at.guest.sendall(b"Power down")
    at.guest.shutdown(socket.SHUT_RDWR)
    assert not at.result()
    assert os.read(shown, 100) == b"Power down"


def test_a_terminal_is_raw_until_the_key_that_leaves(stack: contextlib.ExitStack) -> None:
    user, terminal = pty.openpty()
    stack.callback(os.close, user)
    stack.callback(os.close, terminal)
    before = termios.tcgetattr(terminal)
    shown, sink = pipe(stack)
    at = Attendance(stack, terminal, sink)
    at.guest.sendall(b"login:")
    assert os.read(shown, 100) == b"login:"
    os.write(user, b"\x03")  # ctrl-C is the guest's
    assert at.guest.recv(1) == b"\x03"
    os.write(user, b"x\x1dy")
    assert at.guest.recv(100) == b"x"
    assert at.result()
    assert termios.tcgetattr(terminal) == before


def test_a_vm_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not run"):
        console.connect(Run(str(tmp_path), "web01"))
