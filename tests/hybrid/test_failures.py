"""Every handshake failure of every profile is a specific error within its time-out, and leaves no descriptor."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvsock.errors import HvsockError
from hvsock.hybrid import aio, serving
from hvsock.hybrid.connecting import connect
from hvsock.hybrid.profiles import PROFILES, Profile
from tests.support import sample

assert sys.platform == "linux"

from tests.hybrid.failures import ANSWERS, REQUESTS, Failure, failures
from tests.hybrid.peers import until_end
from tests.hybrid.test_limits import program, server
from tests.waiting import wait_until

PATIENCE = 30.0
A_MOMENT = 0.01
"""Seconds for what does not answer at all."""
ROUNDS = sample(1, 100)
"""How often all of the table is played in each way: 100 times are 10,000 connects and more."""
SERVED = [one for one in PROFILES.values() if one.has_handshake]
SERVED_ROUNDS = sample(1, 140)
"""The same for what programs say to a server: 140 times are more than 10,000 programs."""


def descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


def timeouts_of(failure: Failure) -> Iterator[float]:
    """Short where nothing but the time-out ends it, and longer until the peer had its turn; else no part of it."""
    moment = A_MOMENT if failure.kind is TimeoutError else PATIENCE
    while moment <= PATIENCE:
        yield moment
        moment *= 5


def check(failure: Failure, error: BaseException | None) -> None:
    """It is the error that had to come, in one line that says who it comes from."""
    where = f"{failure.profile.name}, {failure.name}"
    assert type(error) is failure.kind, f"{where}: {error!r}"
    assert failure.text in str(error), f"{where}: {error}"
    assert "\n" not in str(error), where
    if failure.name in ANSWERS:
        assert f"{failure.profile.name} at {failure.path}" in str(error), where


def by_waiting(table: list[Failure]) -> None:
    """Each failure, by a connect that blocks."""
    for failure in table:
        for timeout in timeouts_of(failure):
            with pytest.raises((OSError, HvsockError)) as caught:
                connect(failure.path, failure.service, profile=failure.profile, timeout=timeout)
            if failure.text in str(caught.value):
                break
        check(failure, caught.value)


def by_a_loop(table: list[Failure]) -> None:
    """Each failure, by asyncio, all of them at once."""

    async def one(failure: Failure) -> BaseException | None:
        found: BaseException | None = None
        for timeout in timeouts_of(failure):
            try:
                sock = await aio.connected(failure.path, failure.service, profile=failure.profile, timeout=timeout)
            except (OSError, HvsockError) as error:
                found = error
                if failure.text in str(error):
                    break
            else:
                sock.close()
                return None
        return found

    async def every() -> list[BaseException | None]:
        return await asyncio.gather(*(one(failure) for failure in table))

    for failure, error in zip(table, asyncio.run(every()), strict=True):
        check(failure, error)


def test_the_table_has_every_profile(tmp_path: Path) -> None:
    with failures(tmp_path) as table:
        for profile in PROFILES.values():
            names = {failure.name for failure in table if failure.profile is profile}
            assert len(names) == (5 if not profile.has_handshake else 5 + len(ANSWERS) + 2), profile.name
        assert ROUNDS == 1 or ROUNDS * len(table) >= 10_000


@pytest.mark.timeout(sample(60, 1200))
@pytest.mark.parametrize("play", [by_waiting, by_a_loop], ids=["blocking", "asyncio"])
def test_each_is_a_specific_error_and_leaves_no_descriptor(
    play: Callable[[list[Failure]], None], tmp_path: Path
) -> None:
    asyncio.run(asyncio.sleep(0))  # what a first loop opens for good
    before = descriptors()
    with failures(tmp_path) as table:
        for _ in range(ROUNDS):
            play(table)
    assert descriptors() == before


@pytest.mark.timeout(sample(60, 1200))
@pytest.mark.parametrize("profile", SERVED, ids=lambda one: one.name)
def test_what_a_server_refuses_leaves_no_descriptor(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that asks in a wrong way, or for what is not there, is closed without a word."""
    monkeypatch.setattr(serving, "REQUEST_SECONDS", A_MOMENT)
    monkeypatch.setattr(serving, "CONNECT_SECONDS", A_MOMENT)
    before = descriptors()
    with server(tmp_path, len(REQUESTS), profile) as (reactor, served):
        for _ in range(SERVED_ROUNDS):
            programs = [program(reactor, served, request) for request in REQUESTS.values()]
            for sock, request in zip(programs, REQUESTS.values(), strict=True):
                with sock:
                    assert until_end(sock) == b"", request
            wait_until(lambda: len(served) == 0)
    assert descriptors() == before


@pytest.mark.parametrize("hurry", [socket.SHUT_WR, socket.SHUT_RDWR])
def test_programs_that_leave_in_the_midst(hurry: int, tmp_path: Path) -> None:
    before = descriptors()
    with server(tmp_path, len(REQUESTS)) as (reactor, served):
        for request in itertools.chain.from_iterable([REQUESTS.values()] * sample(1, 20)):
            with program(reactor, served, request) as sock:
                sock.shutdown(hurry)
                assert until_end(sock) == b""
        wait_until(lambda: len(served) == 0)
    assert descriptors() == before
