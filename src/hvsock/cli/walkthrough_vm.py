"""The last part of `hvsock demo`: a stock Linux kernel in QEMU, whose sockets are the host's.

What the guest says of its own checksums it writes to its console; what the host says of them is computed here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any, Final

import hvsock
from hvsock.addresses import ServiceId, VmId
from hvsock.constants import GUEST_ECHO_PORT
from hvsock.errors import NotFoundError
from hvsock.fabric import paths
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.sockets.socket import socket
from hvsock.tied import tied
from hvsock.vm import control, image, qemu
from hvsock.vm.guest import DEMO_BYTES, DEMO_OPTION
from hvsock.vm.qemu import CONSOLE_LOG
from hvsock.vm.runs import Run

from .steps import DemoError, Steps, check
from .walkthrough_tour import Tour

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

VM_NAME: Final = "demo-guest"
VM_CPUS: Final = 2
"""Processors of the VM: its agent loads on one while the other echoes."""
ECHO_NAME: Final = "Guest Echo"
BOOT_SECONDS: Final = 120.0
"""How long the guest may take to boot; it takes some seconds, also where it is emulated."""
QUIET_SECONDS: Final = 60.0
"""How long a socket may be quiet; on an emulated processor some milliseconds are usual."""
LOOK_SECONDS: Final = 0.05
"""Pause between two looks at what the guest does."""
BLOCK_BYTES: Final = 1 << 20


class VmPart:
    """A guest that talks to the host, and a host that talks to a guest.

    Args:
        steps: the demonstration's.
        fabric: the demonstration's.
        service_id: the service that the guest looks for.
    """

    def __init__(self, steps: Steps, fabric: EmbeddedFabric, service_id: ServiceId) -> None:
        self._steps = steps
        self._fabric = fabric
        self._service_id = service_id
        self._run = Run(fabric.folder, VM_NAME)

    def run(self) -> tuple[dict[str, Any] | None, str]:
        """Go through it; returns what was measured, or None and why there is no VM.

        Raises:
            HvsockError, OSError: something is not as it has to be.
        """
        with self._steps.step("Find QEMU and a guest for it") as found:
            try:
                qemu.find()
                made = image.ensure()
            except NotFoundError as error:
                found(f"skipped: {error}")
                return None, str(error)
            found(f"Debian's kernel {made.series}, {made.facts['bytes'] >> 20} MiB in memory")
        with contextlib.ExitStack() as stack:
            with self._steps.step("Boot it as a partition") as found:
                vm_id = VmId(self._fabric.create_partition(VM_NAME).id)
                listener = self._listen(stack, vm_id)
                vm = self._boot(stack)
                found(f"{VM_NAME} = {vm_id}, CID {vm['cid']}, {vm['accelerator']}; up")
            with self._steps.step(f"The guest sends {DEMO_BYTES >> 20} MiB to its parent") as found:
                upward = self._answer(listener, vm_id)
                found(f"echoed; the guest's checksums match, {_speed(upward)}")
            with self._steps.step(f"The host sends {DEMO_BYTES >> 20} MiB to the guest") as found:
                downward = self._ask(vm_id)
                found(f"echoed; the host's checksums match, {_speed(downward)}")
            services = Tour(self._steps, self._fabric, VM_NAME, vm_id).run()
            self._run.wait_for_end()
        return {
            "name": VM_NAME,
            "id": str(vm_id),
            "transport": "virtio-vsock",
            "accelerator": vm["accelerator"],
            "kernel": vm["kernel"],
            "bytes_each_way": DEMO_BYTES,
            "checksums_match": True,
            "guest_to_host_seconds": upward,
            "host_to_guest_seconds": downward,
            "integration_services": services,
        }, ""

    def _listen(self, stack: contextlib.ExitStack, vm_id: VmId) -> socket:
        """A listener for this guest alone."""
        self._fabric.register(ECHO_NAME, ServiceId.from_port(GUEST_ECHO_PORT))
        listener = stack.enter_context(socket(partition=self._fabric.host.folder))
        listener.settimeout(BOOT_SECONDS)
        listener.bind((vm_id, self._service_id))
        listener.listen()
        return listener

    def _boot(self, stack: contextlib.ExitStack) -> dict[str, Any]:
        """Start the VM as a child that ends with this process, and wait until its guest is up."""
        command = [sys.executable, "-P", "-m", "hvsock", "vm", "start", VM_NAME, "--foreground"]
        process = subprocess.Popen(
            tied([*command, "--cpus", str(VM_CPUS), "--append", DEMO_OPTION]),
            env={**os.environ, paths.FOLDER_VARIABLE: self._fabric.folder},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        stack.callback(_end, process)
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            try:
                return control.ask(self._run, "wait", seconds=max(0.0, deadline - time.monotonic()))
            except NotFoundError:
                if process.poll() is not None:
                    assert process.stderr is not None, "it is a pipe"
                    raise DemoError(process.stderr.read().decode(errors="replace").strip()) from None
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOOK_SECONDS)

    def _answer(self, listener: socket, vm_id: VmId) -> float:
        """Echo what the guest sends; returns the seconds that it took, by the guest's clock."""
        connection, peer = listener.accept()
        with connection:
            check(peer.vm_id == vm_id, f"the guest's connection shows {peer}, not the VM's VmId")
            connection.settimeout(QUIET_SECONDS)
            buffer, count = memoryview(bytearray(BLOCK_BYTES)), 0
            while taken := connection.recv_into(buffer):
                self._steps.received += taken
                connection.sendall(buffer[:taken])
                self._steps.sent += taken
                count += taken
                self._steps.audience.progress(count, DEMO_BYTES)
            connection.shutdown(hvsock.SHUT_WR)
            report = self._report()
        check(count == DEMO_BYTES == report["bytes"], f"{count} bytes came, {report['bytes']} went back")
        check(report["checksums_match"] is True, f"the guest's checksums differ: {report}")
        return float(report["seconds"])

    def _report(self) -> dict[str, Any]:
        """What the guest wrote to its console."""
        deadline = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < deadline:
            with open(self._run.path(CONSOLE_LOG), "rb") as file:
                for line in file:
                    if line.startswith(b'{"bytes"') and line.endswith(b"\n"):
                        found: dict[str, Any] = json.loads(line)
                        return found
            time.sleep(LOOK_SECONDS)
        raise DemoError("the guest did not report its checksums on its console")

    def _ask(self, vm_id: VmId) -> float:
        """Send to the guest's echo, and compare; returns the seconds that it took."""
        with socket(partition=self._fabric.host.folder) as connection:
            connection.settimeout(QUIET_SECONDS)
            connection.connect((vm_id, ServiceId.from_port(GUEST_ECHO_PORT)))
            check(connection.getpeername().vm_id == vm_id, "the connection shows another VmId")
            sent, received = hashlib.sha256(), hashlib.sha256()
            failures: list[OSError] = []

            def send() -> None:
                block = os.urandom(BLOCK_BYTES)
                try:
                    for _ in range(DEMO_BYTES // BLOCK_BYTES):
                        connection.sendall(block)
                        sent.update(block)
                        self._steps.sent += BLOCK_BYTES
                    connection.shutdown(hvsock.SHUT_WR)
                except OSError as error:
                    failures.append(error)

            started = time.monotonic()
            sender = threading.Thread(target=send, name="hvsock-demo")
            sender.start()
            try:
                buffer, count = memoryview(bytearray(BLOCK_BYTES)), 0
                while taken := connection.recv_into(buffer):
                    received.update(buffer[:taken])
                    self._steps.received += taken
                    count += taken
                    self._steps.audience.progress(count, DEMO_BYTES)
            except BaseException:
                connection.shutdown(hvsock.SHUT_RDWR)  # so that the sender ends
                raise
            finally:
                sender.join()
        seconds = time.monotonic() - started
        if failures:
            raise failures[0]
        check(count == DEMO_BYTES, f"{count} bytes came back")
        check(sent.digest() == received.digest(), "the checksums differ")
        return round(seconds, 3)


def _speed(seconds: float) -> str:
    return f"{DEMO_BYTES / seconds / (1 << 20):.0f} MiB/s each way at once"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(control.STOP_SECONDS)
    process.kill()
    process.communicate()
