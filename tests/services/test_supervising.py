"""The supervisor: an agent that is killed comes again at once, one that ends by itself is over; and signals."""

from __future__ import annotations

import importlib.resources
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

assert sys.platform == "linux"

from hvsock.services.supervising import END_SECONDS, PASSED_ON
from tests.vm.support import wait_until
from tests.waiting import is_alive

PROGRAM: Final = """
import os, signal, sys, time
from hvsock.services import supervising

def agent():
    {handlers}
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        if line.startswith("end "):
            return int(line[4:])
        eval(line)
    return 0

def keeper():
    print(os.getpid(), file=sys.stderr, flush=True)
    signal.pause()

supervising.RESTART_SECONDS = {pause}
supervising.END_SECONDS = {end}
kept = supervising.Child("the keeper", keeper)
sys.exit(supervising.supervise(supervising.Child("the agent", agent), kept))
"""
"""An agent that prints its number, and does as it is told; the number of its keeper comes first, as an error."""
QUIET: Final = "pass"
HEEDING: Final = "signal.signal(signal.SIGTERM, lambda number, frame: os._exit(7))"


@contextmanager
def supervised(
    handlers: str = QUIET,
    pause: float = 0.0,
    prepare: Callable[[], object] | None = None,
    end: float = END_SECONDS,
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A supervisor, and the number of its first agent."""
    program = PROGRAM.format(handlers=handlers, pause=pause, end=end)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    ) as process:
        try:
            yield process, number_of(process)
        finally:
            process.kill()


def number_of(process: subprocess.Popen[str]) -> int:
    """The number of the agent that begins now."""
    assert process.stdout is not None
    return int(process.stdout.readline())


def keeper_of(process: subprocess.Popen[str]) -> int:
    """The number of the keeper that begins next, or is first."""
    assert process.stderr is not None
    while not (line := process.stderr.readline()).strip().isdecimal():
        assert line, "there is no other keeper"
    return int(line)


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has come."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Have the agent do something."""
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def test_an_agent_that_is_killed_comes_again() -> None:
    with supervised() as (process, first):
        os.kill(first, signal.SIGKILL)
        second = number_of(process)
        tell(process, "os.abort()")
        third = number_of(process)
        assert len({process.pid, first, second, third}) == 4
        tell(process, "end 0")
        assert process.wait() == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert f"the agent (process {first}) was ended by signal 9; another is started" in said
    assert f"the agent (process {second}) was ended by signal 6; another is started" in said


@pytest.mark.parametrize("code", [0, 5])
def test_an_agent_that_ends_by_itself_is_over(code: int) -> None:
    with supervised() as (process, _):
        tell(process, f"end {code}")
        assert process.wait() == code


def test_an_agent_that_raises_is_over() -> None:
    with supervised() as (process, _):
        tell(process, "1 / 0")
        assert process.wait() == 1
        assert process.stderr is not None
        assert "ZeroDivisionError" in process.stderr.read()


@pytest.mark.parametrize("number", PASSED_ON)
def test_a_signal_ends_both(number: signal.Signals) -> None:
    with supervised("signal.signal(signal.SIGINT, signal.SIG_DFL)") as (process, agent):
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert not is_alive(agent)


def test_an_agent_ends_in_its_own_way() -> None:
    with supervised(HEEDING) as (process, agent):
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 7
        assert not is_alive(agent)


def test_what_was_ignored_is_not_passed_on() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with supervised("signal.signal(signal.SIGHUP, signal.SIG_DFL)", prepare=ignore) as (process, agent):
        process.send_signal(signal.SIGHUP)
        tell(process, "os.kill(os.getpid(), signal.SIGKILL)")
        number_of(process)
        assert not is_alive(agent)
        tell(process, "end 3")
        assert process.wait() == 3


def test_the_agent_ends_with_a_supervisor_that_is_killed() -> None:
    with supervised() as (process, agent):
        process.kill()
        process.wait()
        wait_until(lambda: not is_alive(agent))


def test_it_waits_before_another_start_and_ends_meanwhile() -> None:
    with supervised(pause=1000.0) as (process, agent):
        keeper_of(process)
        os.kill(agent, signal.SIGKILL)
        assert process.stderr is not None
        assert "another is started" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        assert process.stdout is not None
        assert process.stdout.read() == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_keeper_that_is_killed_comes_again(number: signal.Signals) -> None:
    """The agent goes on meanwhile; all end together."""
    with supervised() as (process, agent):
        first = keeper_of(process)
        os.kill(first, number)
        second = keeper_of(process)
        assert not is_alive(first)
        assert is_alive(agent)
        os.kill(agent, signal.SIGKILL)
        number_of(process)
        assert is_alive(second)
        tell(process, "end 0")
        assert process.wait() == 0
        assert not is_alive(second)
        assert process.stdout is not None
        assert process.stdout.read() == ""  # no other agent


def test_a_keeper_that_is_always_killed_takes_its_time() -> None:
    with supervised(pause=1000.0) as (process, _):
        os.kill(keeper_of(process), signal.SIGKILL)
        assert process.stderr is not None
        assert "another is started" in process.stderr.readline()
        tell(process, "end 5")
        assert process.wait() == 5
        assert process.stderr.read() == ""


def test_a_keeper_ends_with_a_supervisor_that_is_killed() -> None:
    """Also one that is stopped."""
    with supervised() as (process, _):
        keeper = keeper_of(process)
        os.kill(keeper, signal.SIGSTOP)
        process.kill()
        process.wait()
        wait_until(lambda: not is_alive(keeper))


def test_an_agent_that_hangs_is_killed() -> None:
    """And a keeper that hangs keeps nobody up."""
    with supervised(HEEDING, end=0.0) as (process, agent):
        keeper = keeper_of(process)
        for one in (agent, keeper):
            os.kill(one, signal.SIGSTOP)
        wait_until(lambda: is_stopped(agent) and is_stopped(keeper))
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGKILL
        assert not is_alive(agent)
        assert not is_alive(keeper)
        assert process.stderr is not None
        assert f"the agent (process {agent}) does not end within 0 s, and is killed" in process.stderr.read()


def test_the_unit_gives_it_the_time() -> None:
    text = importlib.resources.files("hvsock.services").joinpath("hvsock-agent.service").read_text()
    (given,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith("TimeoutStopSec=")]
    assert int(given) > END_SECONDS


def test_where_the_kernel_was_to_keep_no_exit_codes() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    with supervised(prepare=ignore) as (process, _):
        tell(process, "end 4")
        assert process.wait() == 4


def test_a_terminal_sends_to_the_agent_by_itself() -> None:
    """So the agent gets what is typed there once."""
    count = "signal.signal(signal.SIGINT, lambda number, frame: print('heard', flush=True))"
    near, far = os.openpty()
    program = PROGRAM.format(handlers=count, pause=0.0, end=END_SECONDS)
    command = ["setsid", "--ctty", "--wait", sys.executable, "-c", program]
    with (
        open(near, "rb+", buffering=0) as terminal,
        subprocess.Popen(command, stdin=far, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
    ):
        os.close(far)
        try:
            number_of(process)
            assert process.stdout is not None
            terminal.write(b"\x03")
            terminal.write(b"None\n")  # Python may be just about to read, and looks for signals after that alone
            assert process.stdout.readline() == "heard\n"
            terminal.write(b"print('next', flush=True)\n")
            assert process.stdout.readline() == "next\n"
            terminal.write(b"end 6\n")
            assert process.wait() == 6
        finally:
            process.kill()
