"""Waiting for what another thread or process is about to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

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


class Turning(Protocol):
    """A reactor that turns in a thread."""

    def call_from_thread(self, callback: Callable[[], None]) -> None: ...


def in_reactor(reactor: Turning, act: Callable[[], T]) -> T:
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
