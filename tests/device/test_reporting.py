"""The socket at which a device tells: readers that read, that do not, and that leave."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

assert sys.platform == "linux"

from hvsock.device.process import bound_socket
from hvsock.device.reporting import MAX_READERS, Reports, read_report
from hvsock.errors import StateError
from tests.device.devices import running
from tests.device.guest import PATIENCE_SECONDS
from tests.fabric.peers import fails_with
from tests.waiting import in_reactor, wait_until

LARGE = {"cid": 3, "filler": "x" * (4 << 20)}
"""More than the kernel keeps for a reader."""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "report")


@pytest.fixture
def reports(path: str) -> Iterator[Reports]:
    """Large ones."""
    with running() as reactor:
        made = in_reactor(reactor, lambda: Reports(reactor, bound_socket(path), lambda: LARGE))
        yield made
        in_reactor(reactor, made.close)


def reader(path: str) -> socket.socket:
    """Somebody who asks."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_SECONDS)
    sock.connect(path)
    return sock


def test_a_report_in_pieces(reports: Reports, path: str) -> None:
    assert read_report(path) == LARGE


def test_readers_that_do_not_read_are_bounded(reports: Reports, path: str) -> None:
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(reader(path)) for _ in range(MAX_READERS)]
        for one in readers:
            assert one.recv(1) == b"{"
        with pytest.raises(StateError, match="too many readers"):
            read_report(path)
        readers[0].close()

        def is_served() -> bool:
            with contextlib.suppress(StateError):
                return read_report(path) == LARGE
            return False

        wait_until(is_served)


def test_a_socket_at_a_long_path(tmp_path: Path) -> None:
    """Longer than a Unix address holds."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    path = str(folder / "report")
    with running() as reactor:
        made = in_reactor(reactor, lambda: Reports(reactor, bound_socket(path), lambda: {"cid": 5}))
        assert read_report(path) == {"cid": 5}
        in_reactor(reactor, made.close)


def test_a_socket_takes_the_place_of_a_dead_one(path: str) -> None:
    bound_socket(path).close()
    with bound_socket(path), fails_with(errno.EADDRINUSE):
        bound_socket(path)
    Path(path).unlink()
    Path(path).write_text("a file")
    with fails_with(errno.EADDRINUSE):
        bound_socket(path)
    assert Path(path).read_text() == "a file"
