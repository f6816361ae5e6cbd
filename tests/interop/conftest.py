"""The two partitions that the libraries talk between."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

assert sys.platform == "linux"

import uvloop

from hvsock.fabric.embedded import EmbeddedFabric
from tests.interop.support import Certificates, Wire
from tests.sockets.support import World


@pytest.fixture
def wire(hvsock_fabric: EmbeddedFabric) -> Wire:
    """A fabric of this test's own, with a guest that reaches a service of its host."""
    return Wire.make(hvsock_fabric)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The larger fabric of the sockets' own tests."""
    with EmbeddedFabric() as fabric:
        yield World.make(fabric)


@pytest.fixture
def certificates() -> Certificates:
    """What a server and its clients need to speak TLS; a test may change them."""
    return Certificates.issue()


@pytest.fixture(scope="session", autouse=True)
def pipe_of_libuv() -> None:
    """libuv opens a pipe for signals with the first loop of a process, and keeps it: no test has leaked it."""
    uvloop.new_event_loop().close()
