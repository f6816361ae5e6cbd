"""Fixtures of the tests of VMs."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

if sys.platform == "linux":
    from hvsock.fabric import paths
    from hvsock.vm.image import Image
    from tests.vm.support import guest_image
    from tests.vm.traffic.world import Kind, World

    WRONG_CLOCK = ("-rtc", "base=2020-01-01T00:00:00")
    """The machine's own clock, from which a guest has its time when it boots."""

    @pytest.fixture(scope="session")
    def guest() -> Image:
        """The default guest."""
        return guest_image()

    @pytest.fixture(scope="session")
    def shared_agent_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
        """A fabric that keeps clocks right, with one guest that has its agent and a machine with a wrong clock."""
        kind = Kind("6.12", 2, options=WRONG_CLOCK, agent=True)
        made = World(tmp_path_factory.mktemp("agents"), {"web01": kind}, timesync=True)
        yield made
        made.close()

    @pytest.fixture
    def agent_world(
        shared_agent_world: World, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
    ) -> Iterator[World]:
        """The same, which sockets and child processes are in; when a test fails, the guest says what it knows."""
        monkeypatch.setenv(paths.FOLDER_VARIABLE, shared_agent_world.folder)
        monkeypatch.delenv(paths.PARTITION_VARIABLE, raising=False)
        failed = request.session.testsfailed
        yield shared_agent_world
        if request.session.testsfailed > failed:
            print(shared_agent_world.describe())
        shared_agent_world.forget()

else:
    collect_ignore_glob = ["test_*.py"]  # VMs need Linux
