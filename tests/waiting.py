"""Waiting for what another thread or process is about to do."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING and sys.platform == "linux":
    from hvsock.fabric.reactor import Reactor

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""What nothing here takes on a busy machine; more of it is a failure."""


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "that did not happen"
        time.sleep(0.002)


def is_alive(pid: int) -> bool:
    """Whether there is a process, which is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


if sys.platform == "linux":

    def in_reactor(reactor: Reactor, act: Callable[[], T]) -> T:
        """What `act` returns, called in the thread that turns the reactor, to which belongs what it watches."""
        done = threading.Event()
        results: list[T] = []

        def call() -> None:
            try:
                results.append(act())
            finally:
                done.set()

        reactor.call_from_thread(call)
        assert done.wait(PATIENCE_SECONDS), "the reactor does not turn"
        return results[0]
