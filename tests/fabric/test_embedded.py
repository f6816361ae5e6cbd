"""A fabric in this process: it starts, restarts and ends without leaving anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

assert sys.platform == "linux"

import threading

import hvsock
from hvsock.errors import NoFabricError, StateError
from hvsock.fabric import client
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.testing.leaks import leak_check
from tests.registry.processes import in_child


def test_its_own_folder_goes_with_it_and_a_given_one_stays(tmp_path: Path) -> None:
    with EmbeddedFabric() as fabric:
        assert os.path.isdir(fabric.folder)
        assert os.stat(fabric.folder).st_mode & 0o077 == 0
    assert not os.path.exists(fabric.folder)
    with EmbeddedFabric(str(tmp_path / "given")) as fabric:
        name = fabric.create_partition("web01").name
        service = fabric.register("Demo")
    with EmbeddedFabric(str(tmp_path / "given")) as fabric:
        fabric.remove_partition(name)
        assert fabric.registry.find("Demo") == service


def test_it_ends_once() -> None:
    fabric = EmbeddedFabric()
    fabric.close()
    fabric.close()
    with pytest.raises(NoFabricError):
        client.call(fabric.host.folder, "ping")


def test_several_at_once_know_nothing_of_each_other() -> None:
    with EmbeddedFabric() as one, EmbeddedFabric() as other:
        one.register("Demo")
        other.register("Demo")
        assert client.call(one.host.folder, "status")["folder"] == one.folder
        assert client.call(other.host.folder, "status")["folder"] == other.folder
        assert in_child(lambda: client.call(one.host.folder, "ping"))["pid"] == os.getpid()


def test_a_restart_that_fails_can_be_closed(tmp_path: Path) -> None:
    fabric = EmbeddedFabric(str(tmp_path))
    (tmp_path / "state" / "partitions.json").write_text("damaged")
    with pytest.raises(StateError):
        fabric.restart()
    fabric.close()
    with leak_check(), pytest.raises(StateError):
        EmbeddedFabric(str(tmp_path))


def test_what_is_established_lives_on_after_it() -> None:
    with EmbeddedFabric() as fabric:
        service = fabric.register("Demo")
        with hvsock.create_server(("loopback", service.id), partition=fabric.host.folder) as listener:
            near = hvsock.create_connection(("loopback", service.id), 5, partition=fabric.host.folder)
            far, _ = listener.accept()
    with near, far:
        near.sendall(b"still here")
        assert far.recv(100) == b"still here"


@pytest.mark.soak
def test_forks_and_requests_at_once_do_each_other_no_harm() -> None:
    """Each fork waits for the end of the broker's turn, and each child closes what is the broker's."""
    with EmbeddedFabric() as fabric:
        stop = threading.Event()
        asked = 0

        def ask() -> None:
            nonlocal asked
            while not stop.is_set():
                client.call(fabric.host.folder, "ping")
                asked += 1

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            for _ in range(30):
                assert in_child(lambda: os.getppid()) == os.getpid()
        finally:
            stop.set()
            thread.join()
        assert asked > 30
        assert client.call(fabric.host.folder, "status")["connecting"] == 0


def test_a_child_leaves_the_fabric_of_its_parent_alone() -> None:
    with EmbeddedFabric() as fabric:

        def close() -> bool:
            fabric.close()
            return os.path.exists(fabric.folder)

        assert in_child(close)
        assert client.call(fabric.host.folder, "ping")
