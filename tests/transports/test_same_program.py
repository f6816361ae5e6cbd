"""One service and one client, unchanged, over each transport that needs no VM.

Over a device and over the kernel's vsock: tests/vm/test_vsock_transport.py; over the real vhost-device-vsock:
tests/vm/test_hybrid.py.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvsock.addresses import ServiceId
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle

assert sys.platform == "linux"

from tests.cli.helpers import ended, line_of, started
from tests.transports.support import ALL_PASSED, PORTS, VM, results, served


@pytest.fixture
def vm(hvsock_fabric: EmbeddedFabric) -> PartitionHandle:
    """A VM of a fabric that knows the services."""
    for port in PORTS:
        hvsock_fabric.register(f"port {port}", ServiceId.from_port(port))
    return hvsock_fabric.create_partition(VM)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short: hybrid sockets are files, and AF_UNIX takes 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hvsock-") as made:
        yield Path(made)


def test_over_the_fabric(vm: PartitionHandle) -> None:
    with served("parent", HVSOCK_PARTITION=vm.folder):
        assert results() == ALL_PASSED


def test_over_hybrid_sockets(vm: PartitionHandle, folder: Path) -> None:
    """The client believes to talk to a VMM; the service is in a partition of a fabric."""
    path = folder / "vm.sock"
    config = folder / "config.toml"
    config.write_text(
        f'[profiles.default]\ntransport = "hybrid"\nvmm = "hvsock"\n[profiles.default.vms.{VM}]\npath = "{path}"\n'
    )
    with served("parent", HVSOCK_PARTITION=vm.folder), started("hybrid", "serve", VM, str(path)) as process:
        assert str(path) in line_of(process.stderr)
        assert results(HVSOCK_CONFIG=str(config), HVSOCK_TRANSPORT="") == ALL_PASSED
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
    assert os.listdir(folder) == ["config.toml"]
