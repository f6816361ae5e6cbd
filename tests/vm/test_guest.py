"""The default guest's own program, here over the fabric; what is said of a real guest is in other tests."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import hvsock
from hvsock.testing.fabric import EmbeddedFabric, fabric

assert sys.platform == "linux"
from hvsock.vm import guest

WAIT_SECONDS = 20.0


@contextmanager
def echoing() -> Iterator[tuple[hvsock.socket, list[BaseException]]]:
    """A connection to an echo, and what went wrong there."""
    near, far = hvsock.socketpair()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with far:
                guest.echo(far)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    near.settimeout(WAIT_SECONDS)
    with near:
        yield near, failures
    thread.join()


@pytest.mark.parametrize("length", [0, 1, guest.CHUNK_BYTES, guest.DEMO_SEED + 1, 3 * guest.DEMO_SEED])
def test_the_demo_and_the_echo(length: int) -> None:
    with echoing() as (near, failures):
        result = guest.demo(near, length)
    assert not failures
    assert (result["bytes"], result["checksums_match"]) == (length, True)
    assert result["seconds"] >= 0


def test_the_demo_tells_of_bytes_that_came_back_otherwise() -> None:
    near, far = hvsock.socketpair()

    def lie() -> None:
        with far:
            far.settimeout(WAIT_SECONDS)
            while data := far.recv(100_000):
                far.sendall(bytes(len(data)))

    thread = threading.Thread(target=lie)
    thread.start()
    with near:
        result = guest.demo(near, 100_000)
    thread.join()
    assert (result["bytes"], result["checksums_match"]) == (100_000, False)


def test_the_demo_tells_of_a_peer_that_leaves() -> None:
    near, far = hvsock.socketpair()
    far.close()
    with near, pytest.raises(BrokenPipeError):
        guest.demo(near, 100_000)


def test_the_echo_keeps_the_other_direction_open() -> None:
    with echoing() as (near, failures):
        near.sendall(b"all of it")
        near.shutdown(hvsock.SHUT_WR)
        with near.makefile("rb") as file:
            assert file.read() == b"all of it"
    assert not failures


@pytest.fixture
def made() -> Iterator[EmbeddedFabric]:
    """A fabric with a service."""
    with fabric() as one:
        one.register("Echo")
        yield one


@contextmanager
def serving(made: EmbeddedFabric) -> Iterator[tuple[str, str]]:
    """The address of listeners that guest.serve has."""
    ended: list[BaseException] = []
    listener = hvsock.create_server(("children", "Echo"), partition=made.host.folder)

    def work() -> None:
        try:
            guest.serve(listener)
        except OSError as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield ("parent", "Echo")
    listener.shutdown(hvsock.SHUT_RDWR)
    thread.join(WAIT_SECONDS)
    assert not thread.is_alive()
    listener.close()
    assert ended
    for echo in threading.enumerate():
        if echo.name == guest.ECHO_THREAD:
            echo.join(WAIT_SECONDS)


def test_many_connections_at_once(made: EmbeddedFabric) -> None:
    web01 = made.create_partition("web01")
    with serving(made) as address:
        socks = [hvsock.create_connection(address, WAIT_SECONDS, partition=web01.folder) for _ in range(50)]
        for number, sock in enumerate(socks):
            sock.sendall(b"%d" % number)
            sock.shutdown(hvsock.SHUT_WR)
        for number, sock in enumerate(socks):
            with sock, sock.makefile("rb") as file:
                assert file.read() == b"%d" % number


def test_connections_over_the_limit_wait(made: EmbeddedFabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "MAX_AT_ONCE", 1)
    web02 = made.create_partition("web02")
    with serving(made) as address:
        first, second = (hvsock.create_connection(address, WAIT_SECONDS, partition=web02.folder) for _ in range(2))
        with first, second:
            second.sendall(b"second")
            first.sendall(b"first")
            assert first.recv(99) == b"first"
            second.settimeout(0.1)
            with pytest.raises(TimeoutError):
                second.recv(99)
            first.close()
            second.settimeout(WAIT_SECONDS)
            assert second.recv(99) == b"second"
