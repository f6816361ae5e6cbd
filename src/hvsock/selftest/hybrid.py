"""Hybrid sockets for checks: a VM of a fabric of its own, which `hvsock hybrid serve` shows as a VMM would."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

if sys.platform != "linux":
    raise ImportError("hybrid sockets need Linux, as the VMMs do")

from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_PARENT, VmId
from hvsock.config.files import CONFIG_VARIABLE, PROFILE_VARIABLE
from hvsock.errors import NotReadyError
from hvsock.fabric import paths
from hvsock.hybrid.listening import is_served
from hvsock.machines import known
from hvsock.sockets import aio
from hvsock.sockets import socket as fabric_sockets
from hvsock.sockets.hybrid.socket import socket
from hvsock.testing import Features
from hvsock.testing.fabric import fabric
from hvsock.tied import tied
from hvsock.transport import TRANSPORT_VARIABLE, Transport

from . import connections
from .fabric import fresh_service
from .ground import Ground, Way

START_SECONDS: Final = 30.0
"""How long the server may take until it is there."""
END_SECONDS: Final = 5.0
"""How long it may take to end, after which it is killed."""
NOTICED_SECONDS: Final = 3.0
"""How long a listener of the host may take to be noticed by the server, which looks every 0.1 s."""
_LOOK_SECONDS: Final = 0.02
"""Pause between two looks."""
FEATURES: Final = Features(resets=False, delivers_before_reset=False)
"""A reset does not go through the server: it shows as an end of stream."""


class PatientSocket(fabric_sockets.socket):
    """A socket of the fabric that believes a refusal when it stays: the server has to notice listeners first."""

    def connect(self, address: Any, /) -> None:
        """As ever."""
        deadline = time.monotonic() + NOTICED_SECONDS
        while True:
            try:
                super().connect(address)
                return
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def configured(path: str, vm_id: VmId, vmm: str) -> Iterator[None]:
    """A configuration with one VM, for this process, in place of its own; the transport stays."""
    before = {name: os.environ.get(name) for name in (CONFIG_VARIABLE, PROFILE_VARIABLE)}
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(f'[profiles.default.vms.web01]\nid = "{vm_id}"\ncid = 3\npath = "{path}"\nvmm = "{vmm}"\n')
        file.flush()
        os.environ.pop(PROFILE_VARIABLE, None)
        os.environ[CONFIG_VARIABLE] = file.name
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@contextlib.contextmanager
def served(vm: str, folder: str, name: str, fabric_folder: str) -> Iterator[None]:
    """`hvsock hybrid serve` of a VM at a path, once it is there.

    Raises:
        NotReadyError: it did not start; the text is what it said last.
    """
    mine = (CONFIG_VARIABLE, PROFILE_VARIABLE, paths.PARTITION_VARIABLE)
    environ = {key: value for key, value in os.environ.items() if key not in mine}
    environ |= {
        paths.FOLDER_VARIABLE: fabric_folder,
        TRANSPORT_VARIABLE: Transport.FABRIC,
        CONFIG_VARIABLE: os.devnull,
    }
    command = [sys.executable, "-P", "-m", "hvsock", "hybrid", "serve", vm, os.path.join(folder, name)]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(tied(command), env=environ, stdin=subprocess.DEVNULL, stderr=said) as process,
    ):
        try:
            deadline = time.monotonic() + START_SECONDS
            while not is_served(folder, name):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
                    raise NotReadyError(f"hvsock hybrid serve did not start: {last or 'it says nothing'}")
                time.sleep(_LOOK_SECONDS)
            yield
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def ground() -> Ground:
    """A host and a VM of it. The caller closes it.

    Raises:
        NotReadyError: the server did not start.
    """
    with ExitStack() as stack:
        made = stack.enter_context(fabric())
        vm = made.create_partition("selftest")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hvsock-"))
        stack.enter_context(served(vm.name, folder, "vm", made.folder))
        stack.enter_context(configured(os.path.join(folder, "vm"), vm.id, "hvsock"))

        inside = partial(fabric_sockets.socket, partition=vm.folder)
        patient = partial(PatientSocket, partition=vm.folder)
        to_vm = Way(socket, inside, HV_GUID_PARENT, vm.id)
        to_host = Way(patient, socket, HV_GUID_CHILDREN, HV_GUID_PARENT)
        return Ground(
            Transport.HYBRID,
            socket,
            aio,
            partial(fresh_service, made),
            made.registry,
            {"the configuration": lambda: list(known.vms())},
            lambda name: known.named(name).id,
            {"a host connects to its VM": to_vm, "a VM connects to its host": to_host},
            to_vm,
            to_host,
            {
                connections.BIND_UNREGISTERED: "a VMM has no registry: whoever may make its files listens",
                connections.BOTH_ENDS_OF_ASYNCIO: "the other end is no hybrid socket",
            },
            FEATURES,
            stack=stack.pop_all(),
        )
