"""The two vsock devices, each with the host's programs behind it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.connects import broker_process
from hvsock.addresses import ServiceId
from hvsock.fabric import paths
from hvsock.registry import Registry

from .hosting import command
from .processes import Party, listens, running, wait_until
from .subjects import DEVICE, closing_side, host_side

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

DATA_PORT: Final = 5001
CLOSE_PORT: Final = 5002
SERVE_PORT: Final = 5003
"""AF_VSOCK ports: of the host's program, of the one that accepts and closes, and of the guest's that does."""
GUEST_CID: Final = 3
OURS: Final = "hvsock"
THEIRS: Final = "vhost-device-vsock"
_VM: Final = "bench-vm"


@dataclass(frozen=True)
class RunningDevice:
    """A device that waits for a front end.

    Attributes:
        name: whose it is.
        socket_path: where the front end connects.
        parties: itself, and what is behind it on the host.
        connecting: the command of a process that connects to the guest.
    """

    name: str
    socket_path: str
    parties: Sequence[Party]
    connecting: Sequence[str]


def our_device(stack: contextlib.ExitStack, folder: str, host_program: str) -> RunningDevice:
    """hvsock's device, with a fabric of its own, until the stack ends.

    Raises:
        StateError: a part of it does not start.
    """
    broker = stack.enter_context(broker_process())
    environment = {**os.environ, paths.FOLDER_VARIABLE: broker.folder}
    with Registry(os.path.join(broker.folder, "registry")) as registry:
        for port in (DATA_PORT, CLOSE_PORT, SERVE_PORT):
            registry.register(f"Benchmark {port}", ServiceId.from_port(port))
    path = os.path.join(folder, "device")
    words = ["device", "--socket-path", path, "--vm", _VM, "--cid", str(GUEST_CID)]
    process = stack.enter_context(running([sys.executable, "-m", "hvsock", *words], env=environment))
    wait_until(lambda: listens(path), "device of hvsock", process)
    _, host = host_side(stack, "fabric", host_program, port=DATA_PORT, where=_VM, env=environment)
    _, closing = closing_side(stack, "fabric", port=CLOSE_PORT, where=_VM, env=environment)
    parties = (
        Party(DEVICE, (process.pid,)),
        Party("broker", (broker.pid,)),
        Party("host program", (*host, *closing)),
    )
    variable = f"{paths.FOLDER_VARIABLE}={broker.folder}"
    connecting = ["env", variable, *command("connect", "fabric", port=SERVE_PORT, where=_VM)]
    return RunningDevice(OURS, path, parties, connecting)


def their_device(stack: contextlib.ExitStack, folder: str, host_program: str, program: str) -> RunningDevice:
    """vhost-device-vsock, until the stack ends.

    Raises:
        StateError: a part of it does not start.
    """
    path, hybrid = os.path.join(folder, "device"), os.path.join(folder, "hybrid")
    words = ["--guest-cid", str(GUEST_CID), "--socket", path, "--uds-path", hybrid]
    process = stack.enter_context(running([program, *words], stderr=subprocess.DEVNULL))
    wait_until(lambda: listens(path), "vhost-device-vsock", process)
    _, host = host_side(stack, "hybrid", host_program, port=DATA_PORT, where=hybrid)
    _, closing = closing_side(stack, "hybrid", port=CLOSE_PORT, where=hybrid)
    parties = (Party(DEVICE, (process.pid,)), Party("host program", (*host, *closing)))
    return RunningDevice(THEIRS, path, parties, command("connect", "hybrid", port=SERVE_PORT, where=hybrid))
