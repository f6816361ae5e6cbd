"""What the server bounds: silence, a broker that is stuck or full, and how many there are."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.addresses import VmId
from hvsock.fabric.reactor import Reactor
from hvsock.hybrid import serving
from hvsock.hybrid.profiles import HVSOCK, Profile
from hvsock.hybrid.serving import Server

assert sys.platform == "linux"

from tests.device.devices import running
from tests.hybrid.peers import until_end
from tests.waiting import in_reactor, wait_until

PATIENCE = 30.0


@contextlib.contextmanager
def server(partition: Path, most: int = 9, profile: Profile = HVSOCK) -> Iterator[tuple[Reactor, Server]]:
    with running() as reactor:
        made = in_reactor(reactor, lambda: Server(reactor, VmId.new(), str(partition), profile, most))
        try:
            yield reactor, made
        finally:
            in_reactor(reactor, made.close)


def program(reactor: Reactor, served: Server, data: bytes = b"") -> socket.socket:
    """A program that is admitted, and has sent `data`."""
    near, far = socket.socketpair()
    near.settimeout(PATIENCE)
    far.setblocking(False)
    near.sendall(data)
    reactor.call_from_thread(lambda: served.admit(far))
    return near


@pytest.fixture
def a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(serving, "CONNECT_SECONDS", 0.05)


@pytest.mark.parametrize("data", [b"", b"CONNECT 5"])
@pytest.mark.usefixtures("a_moment")
def test_silence_ends(data: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with server(tmp_path) as (reactor, served), program(reactor, served, data) as sock:
        assert until_end(sock) == b""
        wait_until(lambda: len(served) == 0)
    assert "no request came for 0.05 s" in caplog.text


@pytest.mark.parametrize("is_full", [False, True])
@pytest.mark.usefixtures("a_moment")
def test_a_broker_that_is_stuck(is_full: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX) as stuck, socket.socket(socket.AF_UNIX) as other:
        stuck.bind(str(tmp_path / "stream"))
        stuck.listen(0)
        if is_full:
            other.connect(str(tmp_path / "stream"))
        with server(tmp_path) as (reactor, served), program(reactor, served, b"CONNECT 52\nhello") as sock:
            assert until_end(sock) == b""
            wait_until(lambda: len(served) == 0)
    assert "did not answer in 0.05 s" in caplog.text


def test_no_broker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with server(tmp_path) as (reactor, served), program(reactor, served, b"CONNECT 52\n") as sock:
        assert until_end(sock) == b""
    assert "no broker answers" in caplog.text


def test_there_are_so_many_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with (
        server(tmp_path, 2) as (reactor, served),
        program(reactor, served),
        program(reactor, served) as second,
    ):
        wait_until(lambda: len(served) == 2)
        for _ in range(2):
            with program(reactor, served) as third:
                assert until_end(third) == b""
        second.close()
        wait_until(lambda: len(served) == 1)
        with program(reactor, served):
            wait_until(lambda: len(served) == 2)
    assert caplog.text.count("there are 2 connections, the most") == 1
