"""The two devices, driven by a native program that plays QEMU and a guest's driver: so the device is the limit."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from .devices import CLOSE_PORT, DATA_PORT, SERVE_PORT, RunningDevice, our_device, their_device
from .processes import Party, agent
from .programs import compiled
from .subjects import GUEST, Subject

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")


@contextlib.contextmanager
def fakes(vhost_device: str, *, polls: bool) -> Iterator[list[Subject]]:
    """Both devices, ours first, each with a driver.

    Args:
        vhost_device: the program vhost-device-vsock.
        polls: whether the drivers look at their queues all the time, and do not sleep until they are interrupted.

    Raises:
        StateError: something does not start.
    """
    host, driver = compiled("host"), compiled("driver")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hvsock-bench-"))
        for name in ("ours", "theirs"):
            os.mkdir(os.path.join(folder, name))

        def driven(device: RunningDevice) -> Subject:
            words = [driver, device.socket_path, str(SERVE_PORT), "poll" if polls else "sleep"]
            orders, pid, _ = stack.enter_context(agent(words))
            parties = (Party(GUEST, (pid,)), *device.parties)
            return Subject(device.name, orders, "vsock", DATA_PORT, CLOSE_PORT, parties, device.connecting)

        yield [
            driven(our_device(stack, os.path.join(folder, "ours"), host)),
            driven(their_device(stack, os.path.join(folder, "theirs"), host, vhost_device)),
        ]
