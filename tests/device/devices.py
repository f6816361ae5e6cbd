"""Devices under test: in a thread of this process, and as the process that they are in life."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

from hvsock.device.device import Device, Limits
from hvsock.fabric import client
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.fabric.reactor import Reactor
from hvsock.testing.virtio_driver import ONE, Layout
from tests.cli.helpers import environment, line_of, started
from tests.device.guest import Guest
from tests.waiting import in_reactor

if sys.platform != "linux":
    raise ImportError("the device needs Linux")

T = TypeVar("T")

DEFAULTS = Limits()


@contextlib.contextmanager
def running() -> Iterator[Reactor]:
    """A reactor in a thread; the body reaches what it watches by in_reactor()."""
    reactor = Reactor()
    thread = threading.Thread(target=reactor.run, name="reactor under test")
    thread.start()
    try:
        yield reactor
    finally:
        reactor.stop()
        thread.join()
        reactor.close()


class DeviceThread:
    """The device of a partition, in a thread, from construction to close().

    Args:
        fabric: where the partition is.
        partition: a VM's.
        limits: what the guest may use.
    """

    def __init__(self, fabric: EmbeddedFabric, partition: PartitionHandle, limits: Limits = DEFAULTS) -> None:
        self.cid: int = client.call(fabric.host.folder, "resolve", vm=partition.name)["cid"]
        self.reactor = Reactor()
        try:
            self.device = Device(self.reactor, self.cid, partition.folder, limits)
        except BaseException:
            self.reactor.close()
            raise
        self._thread = threading.Thread(target=self.reactor.run, name="device under test")
        self._thread.start()

    def ask(self, act: Callable[[], T]) -> T:
        """What `act` returns, called in the device's thread."""
        return in_reactor(self.reactor, act)

    def front_end(self) -> socket.socket:
        """QEMU's end of a socket that the device serves."""
        near, far = socket.socketpair()
        self.ask(lambda: self.device.serve(far))
        return near

    def guest(self, layout: Layout = ONE, *, boot: bool = True) -> Guest:
        """A guest with this device; up, or not yet."""
        guest = Guest(self.front_end(), layout=layout)
        return guest.boot() if boot else guest

    def report(self) -> dict[str, Any]:
        """What the device tells of itself."""
        return self.ask(self.device.report)

    def close(self) -> None:
        """End it, as SIGTERM does; calling this twice is fine."""
        if self._thread.is_alive():
            self.reactor.stop()
            self._thread.join()
            self.device.close()
            self.reactor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextlib.contextmanager
def device_process(
    fabric: EmbeddedFabric, folder: str, *options: str, vm: str = "vm"
) -> Iterator[subprocess.Popen[bytes]]:
    """`hvsock device` for a VM, once it is up, with its sockets `device` and `report` in `folder`."""
    paths = ("--socket-path", os.path.join(folder, "device"), "--report-path", os.path.join(folder, "report"))
    env = environment(HVSOCK_DIR=fabric.folder)
    with started("device", "--vm", vm, *paths, *options, env=env) as process:
        line = line_of(process.stderr)
        assert line.endswith("is up\n"), line
        yield process


def guest_of(folder: str, layout: Layout = ONE) -> Guest:
    """A guest, up, with the device process whose sockets are in `folder`."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(os.path.join(folder, "device"))
        return Guest(connection, layout=layout).boot()
    except BaseException:
        connection.close()
        raise
