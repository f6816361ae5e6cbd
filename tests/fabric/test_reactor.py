"""Readiness and timers: in order, on time, and whatever handlers do."""

from __future__ import annotations

import functools
import logging
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

import socket

from hvsock.fabric import reactor as module
from hvsock.fabric.reactor import Reactor
from hvsock.testing.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def reactor(clock: FakeClock) -> Iterator[Reactor]:
    made = Reactor(clock)
    yield made
    made.close()
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def fails() -> None:
    raise RuntimeError("a defect")


def nothing() -> None:
    pass


def turn(reactor: Reactor) -> None:
    """One turn that waits for nothing."""
    reactor.call_from_thread(nothing)
    reactor.run_once()


def test_timers_run_in_order_and_not_early(reactor: Reactor, clock: FakeClock) -> None:
    ran: list[str] = []
    reactor.after(2, lambda: ran.append("two"))
    reactor.after(1, lambda: ran.append("one"))
    reactor.after(1, lambda: ran.append("one again"))
    reactor.after(3, lambda: ran.append("three"))
    turn(reactor)
    assert ran == []
    clock.advance(2)
    reactor.run_once()
    assert ran == ["one", "one again", "two"]
    clock.advance(1)
    reactor.run_once()
    assert ran == ["one", "one again", "two", "three"]


def test_a_cancelled_timer_never_runs(reactor: Reactor, clock: FakeClock) -> None:
    ran: list[str] = []
    first = reactor.after(1, lambda: second.cancel())
    second = reactor.after(1, lambda: ran.append("cancelled by the one before it"))
    third = reactor.after(1, lambda: ran.append("third"))
    fourth = reactor.after(0.5, lambda: ran.append("fourth"))
    fourth.cancel()
    fourth.cancel()
    clock.advance(1)
    reactor.run_once()
    assert ran == ["third"]
    for timer in (first, second, third, fourth):
        timer.cancel()
    reactor.after(0, lambda: ran.append("last"))
    reactor.run_once()
    assert ran == ["third", "last"]


def test_cancelled_timers_do_not_pile_up(reactor: Reactor) -> None:
    kept = [reactor.after(300, lambda: None) for _ in range(10)]
    for _ in range(10_000):
        reactor.after(300, lambda: None).cancel()
    assert len(reactor._timers) < 3 * module.CANCELLED_KEPT
    for timer in kept:
        timer.cancel()
    turn(reactor)
    assert reactor._timers == []
    assert reactor._cancelled == 0


def test_a_timer_that_sets_itself_again_waits_for_the_next_turn(reactor: Reactor) -> None:
    ran = []

    def again() -> None:
        ran.append(1)
        reactor.after(0, again)

    reactor.after(0, again)
    for count in range(1, 4):
        reactor.run_once()
        assert len(ran) == count


def test_a_failing_timer_or_call_harms_no_other(reactor: Reactor, caplog: pytest.LogCaptureFixture) -> None:
    ran = []
    reactor.after(0, fails)
    reactor.after(0, lambda: ran.append("timer"))
    reactor.call_from_thread(fails)
    reactor.call_from_thread(lambda: ran.append("call"))
    with caplog.at_level(logging.CRITICAL, logger=module.__name__):
        reactor.run_once()
    assert ran == ["call", "timer"]
    reactor.call_from_thread(lambda: ran.append("still awake"))
    reactor.run_once()
    assert ran == ["call", "timer", "still awake"]


def test_readiness_is_told_to_the_handler(reactor: Reactor, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    seen: list[int] = []
    reactor.watch(one.fileno(), select.EPOLLIN, seen.append)
    turn(reactor)
    assert seen == []
    other.send(b"x")
    reactor.run_once()
    assert seen == [select.EPOLLIN]
    reactor.watch(one.fileno(), select.EPOLLOUT, lambda events: seen.append(-events))
    reactor.run_once()
    assert seen == [select.EPOLLIN, -select.EPOLLOUT]
    reactor.forget(one.fileno())
    reactor.forget(one.fileno())
    turn(reactor)
    assert seen == [select.EPOLLIN, -select.EPOLLOUT]


def test_a_failing_handler_is_asked_no_more(
    reactor: Reactor, pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = pair
    seen: list[int] = []

    def fails(events: int) -> None:
        seen.append(events)
        raise RuntimeError("a defect")

    reactor.watch(one.fileno(), select.EPOLLIN, fails)
    reactor.watch(other.fileno(), select.EPOLLIN, seen.append)
    other.send(b"x")
    reactor.run_once()
    turn(reactor)
    assert len(seen) == 1
    one.send(b"y")
    reactor.run_once()
    assert len(seen) == 2
    assert "a defect" in caplog.text


def test_a_handler_that_closed_its_descriptor_and_failed_does_no_harm(reactor: Reactor) -> None:
    one, other = socket.socketpair()

    def fails(events: int) -> None:
        one.close()
        raise RuntimeError("a defect")

    with other:
        reactor.watch(one.fileno(), select.EPOLLIN, fails)
        other.send(b"x")
        reactor.run_once()
        turn(reactor)


def test_an_event_of_a_closed_descriptor_is_not_told_to_the_next_with_its_number(reactor: Reactor) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    told: list[str] = []
    replaced: list[socket.socket] = []

    def first(mine: int) -> None:
        """Closes the other descriptor, which has an event in this batch, too, and opens a new one in its place."""
        victim = pairs[1 - mine][0]
        number = victim.fileno()
        reactor.forget(number)
        victim.close()
        fresh = socket.socketpair()
        replaced.extend(fresh)
        assert number in (fresh[0].fileno(), fresh[1].fileno())
        reactor.watch(number, select.EPOLLIN, lambda events: told.append("a stranger's event"))
        reactor.forget(pairs[mine][0].fileno())

    for index, (one, other) in enumerate(pairs):
        reactor.watch(one.fileno(), select.EPOLLIN, functools.partial(lambda mine, events: first(mine), index))
        other.send(b"x")
    reactor.run_once()
    turn(reactor)
    assert told == []
    for sock in [*pairs[0], *pairs[1], *replaced]:
        sock.close()


def test_it_stops_from_another_thread_and_before_it_runs(clock: FakeClock) -> None:
    reactor = Reactor(clock)
    stopper = threading.Timer(0.01, reactor.stop)
    stopper.start()
    reactor.run()
    stopper.join()
    reactor.run()
    reactor.close()
    reactor.stop()
    reactor.call_from_thread(nothing)


def test_calls_from_threads_all_arrive(reactor: Reactor) -> None:
    ran: list[int] = []

    def call() -> None:
        for _ in range(100):
            reactor.call_from_thread(lambda: ran.append(1))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(ran) < 400:
        reactor.run_once()
    for thread in threads:
        thread.join()
    assert len(ran) == 400


def test_what_cannot_be_watched_is_an_os_error(reactor: Reactor, tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        with pytest.raises(PermissionError):
            reactor.watch(file.fileno(), select.EPOLLIN, lambda events: None)
        reactor.forget(file.fileno())
    reactor.forget(999_999)


def test_a_signal_that_interrupts_nothing_ends_it() -> None:
    """As one does that comes just before the wait: here another thread gets it, and the wait goes on."""
    code = """if True:
        import os, signal, threading, time
        from hvsock.fabric.reactor import Reactor, ending_by_signals
        reactor = Reactor()
        over = threading.Event()
        other = threading.Thread(target=over.wait)
        other.start()

        def send():
            while reactor.turn.locked():
                pass
            time.sleep(0.2)  # by then the reactor waits
            signal.pthread_kill(other.ident, signal.SIGTERM)

        with ending_by_signals(reactor, reactor.stop):
            threading.Thread(target=send).start()
            reactor.run()
        os.kill(os.getpid(), signal.SIGTERM)  # ignored from here on
        reactor.close()
        over.set()
        print("ended")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "ended\n"
