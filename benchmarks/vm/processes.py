"""Processes of the benchmark: started and ended, asked in lines of JSON, and their time on a processor."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from hvsock.errors import StateError

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

START_SECONDS: Final = 60.0
"""How long a process may take until it is there; a guest under software emulation takes some seconds."""
ANSWER_SECONDS: Final = 60.0
"""How long an answer may take; a measurement is made to take a second at most."""
_POLL_SECONDS: Final = 0.02
_ACCEPTS_CONNECTIONS: Final = 0x10000
"""Flag of a listening socket in /proc/net/unix (__SO_ACCEPTCON)."""


@contextlib.contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process until the end of the block."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


class Agent:
    """Whoever takes orders, a line each, and answers each by a line of JSON.

    Args:
        sock: how to reach it; closed by close().
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(ANSWER_SECONDS)
        self._sock = sock
        self._lines = sock.makefile("rb")

    def tell(self, order: str) -> None:
        """Send an order; answer() follows."""
        self._sock.sendall(f"{order}\n".encode())

    def answer(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            StateError: it failed, or ended.
            TimeoutError: it says nothing.
        """
        line = self._lines.readline()
        if not line:
            raise StateError("a program of the benchmark ended early; see what it said above")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise StateError(str(found["error"]))
        return found

    def ask(self, order: str) -> dict[str, Any]:
        """Send an order and wait for its answer; raises what answer() does."""
        self.tell(order)
        return self.answer()

    def close(self) -> None:
        """Let go; the program ends when it sees that."""
        self._lines.close()
        self._sock.close()


@contextlib.contextmanager
def agent(command: Sequence[str], **options: Any) -> Iterator[tuple[Agent, int, dict[str, Any]]]:
    """A program that takes orders on its standard input: itself, its process, and its first answer."""
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as stack:
        found = Agent(ours)
        stack.callback(found.close)
        with theirs:
            process = stack.enter_context(running(command, stdin=theirs, stdout=theirs, **options))
        yield found, process.pid, found.answer()


class Usage(NamedTuple):
    """What threads made of their time; in the rest of it they slept.

    Attributes:
        ran: seconds on a processor.
        waited: seconds in which they would have run, had a processor been free.
    """

    ran: float
    waited: float


@dataclass(frozen=True)
class Party:
    """Some of the threads of some processes.

    Attributes:
        name: what the table calls it.
        pids: the processes.
        threads: which threads of them, by id; None for all.
    """

    name: str
    pids: tuple[int, ...]
    threads: Callable[[int], bool] | None = None

    def usage(self) -> Usage:
        """What its threads have used until now."""
        ran = waited = 0
        for pid in self.pids:
            folder = f"/proc/{pid}/task"
            for thread in os.listdir(folder):
                if self.threads is None or self.threads(int(thread)):
                    with open(f"{folder}/{thread}/schedstat", encoding="ascii") as file:
                        now_ran, now_waited, _ = map(int, file.read().split())
                        ran += now_ran
                        waited += now_waited
        return Usage(ran * 1e-9, waited * 1e-9)


class Meter:
    """What parties use from now on.

    Args:
        parties: whose usage is metered.
    """

    def __init__(self, parties: Sequence[Party]) -> None:
        self._parties = parties
        self._before = {party.name: party.usage() for party in parties}
        self._began = time.perf_counter()

    def read(self) -> tuple[float, dict[str, Usage]]:
        """Seconds that have passed, and what each party has used, by name."""
        seconds = time.perf_counter() - self._began
        used = {}
        for party in self._parties:
            before, now = self._before[party.name], party.usage()
            used[party.name] = Usage(now.ran - before.ran, now.waited - before.waited)
        return seconds, used


def wait_until(reached: Callable[[], bool], what: str, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait for something that a process brings about.

    Raises:
        StateError: it did not come in :data:`START_SECONDS`, or the process ended.
    """
    deadline = time.monotonic() + START_SECONDS
    while not reached():
        if process is not None and process.poll() is not None:
            raise StateError(f"no {what}: its process ended with code {process.returncode}")
        if time.monotonic() > deadline:
            raise StateError(f"no {what} in {START_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)


def listens(path: str) -> bool:
    """Whether a socket listens at `path`; seen without a connection, which a device would take for QEMU."""
    with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
        rows = (line.split(maxsplit=7) for line in file)
        return any(
            len(row) == 8 and row[7].strip() == path and int(row[3], 16) & _ACCEPTS_CONNECTIONS for row in rows
        )
