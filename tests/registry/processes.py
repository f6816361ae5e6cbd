"""Runs a function in a forked process: as another user, or to be killed in the middle."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

if sys.platform != "win32":
    # before a child becomes another user, whom the interpreter's own folder may be closed to
    import grp
    import pwd

    NAMED_BY = (grp, pwd)

T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class User:
    """Who a child runs as."""

    uid: int
    gid: int
    groups: Sequence[int] = ()


def in_child(function: Callable[[], T], user: User | None = None) -> T:
    """What `function` returns or raises in a process of its own."""
    if sys.platform == "win32":
        raise NotImplementedError
    read, write = os.pipe()
    child = _fork()
    if child == 0:
        outcome: tuple[bool, object]
        try:
            os.close(read)
            _become(user)
            outcome = (True, function())
        except BaseException as error:
            traceback.print_exc()
            outcome = (False, error)
        with contextlib.suppress(BaseException), open(write, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        pickled = pipe.read()
    os.waitpid(child, 0)
    succeeded, value = pickle.loads(pickled)
    if not succeeded:
        raise value
    result: T = value
    return result


class Running:
    """A child that says lines until it ends or is killed."""

    def __init__(self, pid: int, lines: BinaryIO) -> None:
        self.pid = pid
        self._lines = lines
        self.status: int | None = None

    def next_line(self) -> str:
        """The next line the child says; empty when it has ended."""
        return self._lines.readline().decode().rstrip("\n")

    def kill(self) -> list[str]:
        """Kill it with -9; what it had said besides and nobody had taken."""
        if sys.platform == "win32":
            raise NotImplementedError
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait(self) -> list[str]:
        """Wait for its end; what it had said besides and nobody had taken."""
        lines = self._lines.read().decode().splitlines()
        _, self.status = os.waitpid(self.pid, 0)
        return lines


@contextlib.contextmanager
def running(function: Callable[[Say], None], user: User | None = None) -> Iterator[Running]:
    """A child that runs `function`; it is killed at the end if it has not ended."""
    read, write = os.pipe()
    pid = _fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            _become(user)
            function(lambda line: _say(write, line))
            status = 0
        except BaseException:  # a child must not return into the parent's code
            traceback.print_exc()
        os._exit(status)
    os.close(write)
    with open(read, "rb") as lines:
        child = Running(pid, lines)
        try:
            yield child
        finally:
            if child.status is None:
                child.kill()


def _say(pipe: int, line: str) -> None:
    os.write(pipe, f"{line}\n".encode())


def _fork() -> int:
    if sys.platform == "win32":
        raise NotImplementedError
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads that other tests started
        return os.fork()


def _become(user: User | None) -> None:
    if sys.platform == "win32":
        raise NotImplementedError
    if user is not None:
        os.setgroups(user.groups)
        os.setgid(user.gid)
        os.setuid(user.uid)
