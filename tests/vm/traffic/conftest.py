"""The guests that the tests of traffic share."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator

import pytest

assert sys.platform == "linux"

from hvsock.fabric import paths
from tests.support import SOAK
from tests.vm.traffic.programs import Programs
from tests.vm.traffic.world import Guest, Kind, World

KINDS = {
    "web01": Kind("6.12", 2, "g"),
    "web02": Kind("6.1", 1, "g"),
    "web03": Kind("6.12", 1),
}
"""Both kernels, one and two processors, members of a group and one of none."""


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """The programs that the guests have besides their own."""
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> Iterator[World]:
    """A fabric with the guests of :data:`KINDS`, which start when a test needs them."""
    made = World(tmp_path_factory.mktemp("world"), KINDS, programs.folder)
    yield made
    made.close()


@pytest.fixture
def world(shared_world: World, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[World]:
    """The same, which sockets and child processes are in; when a test fails, the guests say what they know."""
    monkeypatch.setenv(paths.FOLDER_VARIABLE, shared_world.folder)
    monkeypatch.delenv(paths.PARTITION_VARIABLE, raising=False)
    failed = request.session.testsfailed
    yield shared_world
    shared_world.forget()
    if request.session.testsfailed > failed:
        print(shared_world.describe())


BOTH_KERNELS = ("web01", "web02")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test with a guest of each kernel; in `make test` with one of them, always the same."""
    if "guest" in metafunc.fixturenames:
        turn = zlib.crc32(metafunc.function.__name__.encode()) % len(BOTH_KERNELS)
        metafunc.parametrize("guest", BOTH_KERNELS if SOAK else [BOTH_KERNELS[turn]], indirect=True)


@pytest.fixture
def guest(world: World, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest that runs; at the end it has no connections."""
    found = world.guest(request.param)
    yield found
    found.wait_until_quiet()


@pytest.fixture
def victim(world: World) -> Guest:
    """A guest that may be killed; the next test that needs it starts it anew."""
    return world.guest("web02")
