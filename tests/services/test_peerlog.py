"""Lines in the log that peers cause: so many of each, and how many were left out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

import pytest

assert sys.platform == "linux"

from hvsock.services import peerlog
from hvsock.services.peerlog import LINES_AT_ONCE, LinesOfPeers, lines_of
from hvsock.sockets.aio import connected
from tests.services.hostile import message
from tests.services.inventory import Inventory, Query
from tests.services.test_framework import World, in_world
from tests.services.test_hostile import COUNT, peer_of


def record(text: str = "%s lies", *arguments: object) -> logging.LogRecord:
    """A line."""
    return logging.LogRecord("hvsock.services.wire", logging.INFO, "", 0, text, arguments or ("it",), None)


def test_each_peer_has_so_many_lines() -> None:
    now = 0.0
    lines = LinesOfPeers(lambda: now)

    def written() -> str | None:
        one = record()
        return one.getMessage() if lines.filter(one) else None

    with lines_of("web01"):
        assert [written() for _ in range(LINES_AT_ONCE - 1)] == ["it lies"] * (LINES_AT_ONCE - 1)
        assert written() == "it lies (more of web01 are left out for now)"
        assert [written() for _ in range(30)] == [None] * 30
        with lines_of("db"):
            assert written() == "it lies"
        assert written() is None
        now += 1 / peerlog.LINES_PER_SECOND
        assert (
            written()
            == "it lies (31 lines of web01 before this were left out; more of web01 are left out for now)"
        )
        now += 1000
        assert written() == "it lies"
    assert [written() for _ in range(2 * LINES_AT_ONCE)] == ["it lies"] * (2 * LINES_AT_ONCE)


def begin(caplog: pytest.LogCaptureFixture, peers: LinesOfPeers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loggers begin anew, with a clock that stands."""
    for name in peerlog._LOGGERS:
        logger = logging.getLogger(name)
        assert peerlog._filter in logger.filters
        monkeypatch.setattr(logger, "filters", [peers])
    caplog.set_level(logging.INFO)


def test_peers_that_break_http_and_grpc(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many breaches, the first are told; the peer's calls are served all the same."""
    monkeypatch.setattr(peerlog, "LINES_AT_ONCE", 20)
    begin(caplog, LinesOfPeers(lambda: 0), monkeypatch)

    async def test(world: World) -> None:
        for _ in range(40):
            sock = await connected(("web01", Inventory.ID), partition=world.fabric.host.folder)
            with sock:
                await asyncio.get_running_loop().sock_sendall(sock, b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    while await asyncio.get_running_loop().sock_recv(sock, 4096):
                        pass
        async with peer_of(world) as peer:
            for _ in range(10):
                await peer.outcome(await peer.ask(COUNT, message(b"", length=2**32 - 1)))
        async with world.connect() as inventory:
            assert (await inventory.count(Query("after"))).name == "after"

    in_world(test)
    told = [one for one in caplog.records if one.name in peerlog._LOGGERS]
    assert "asked for nothing" in told[0].getMessage()
    assert len(told) == 20
    assert told[-1].getMessage().endswith("are left out for now)")
