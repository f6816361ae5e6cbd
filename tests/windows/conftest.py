"""A Windows host and one of its VMs, as the fakes have them."""

from __future__ import annotations

import sys

import pytest

from hvsock.addresses import VmId

collect_ignore: list[str] = []
if sys.platform != "linux":
    # the fake of Winsock is made of AF_UNIX sockets
    collect_ignore += ["test_aio.py", "test_fake_winsock.py", "test_helpers.py", "test_socket.py"]

if sys.platform == "linux":
    from tests.windows.winsock import Machine, Windows, windows

    @pytest.fixture
    def machine() -> Machine:
        """A host without VMs."""
        return Machine()

    @pytest.fixture
    def host(machine: Machine) -> Windows:
        """hvsock on the host."""
        return windows(machine)

    @pytest.fixture
    def vm(machine: Machine) -> VmId:
        """A VM that runs."""
        return machine.add_vm()

    @pytest.fixture
    def guest(machine: Machine, vm: VmId) -> Windows:
        """hvsock in that VM."""
        return windows(machine, vm)
