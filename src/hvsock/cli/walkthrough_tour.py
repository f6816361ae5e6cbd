"""The end of `hvsock demo`: the integration services of the VM, one after the other, and its shutdown by one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import sys
import tempfile
from typing import Any, Final

from hvsock.addresses import VmId
from hvsock.constants import GUEST_SERVICE_INTERFACE, INTEGRATION_SERVICES
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.services.agent import GuestAgent, Question, Running
from hvsock.services.connecting import connect
from hvsock.services.predefined.direct.connecting import logged_in
from hvsock.services.predefined.direct.hostkeys import HostKeys
from hvsock.services.predefined.filecopy.copying import copy_to
from hvsock.services.predefined.heartbeat.monitor import Monitor
from hvsock.services.predefined.heartbeat.status import Status
from hvsock.services.predefined.kvp.host import exchange
from hvsock.services.predefined.kvp.pools import Pool
from hvsock.services.predefined.shutdown.host import shut_down
from hvsock.services.predefined.timesync.host import synchronize

from .steps import Steps, check

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

READY_SECONDS: Final = 120.0
"""How long the guest's agent may take until it serves everything; an emulated guest loads it for some seconds."""
ANSWER_SECONDS: Final = 60.0
"""How long anything may take that an emulated guest does for the first time, and loads the code for."""
LOOK_SECONDS: Final = 0.2
"""Pause between two looks at what the agent serves."""
FILE_BYTES: Final = 4 << 20
"""Size of the file that is copied."""
FILE_NAME: Final = "/tmp/a file from the host"


class Tour:
    """The integration services of one VM.

    Args:
        steps: the demonstration's.
        fabric: the demonstration's.
        vm: the VM's name.
        vm_id: its VmId.
    """

    def __init__(self, steps: Steps, fabric: EmbeddedFabric, vm: str, vm_id: VmId) -> None:
        self._steps = steps
        self._fabric = fabric
        self._vm = vm
        self._vm_id = vm_id
        self._host = fabric.host.folder

    def run(self) -> dict[str, Any]:
        """Go through it; returns what was measured.

        Raises:
            HvsockError, OSError: something is not as it has to be.
        """
        return asyncio.run(self._run())

    async def _run(self) -> dict[str, Any]:
        with self._steps.step("Wait for the guest's agent") as found:
            self._fabric.registry.set_enabled(GUEST_SERVICE_INTERFACE.name, True, self._vm_id)
            names = await self._served()
            found(f"it serves {len(names)} integration services")
        with self._steps.step("Heartbeat") as found:
            health = await self._heartbeat()
            found(f"{health}; asked every 2 s")
        with self._steps.step("Time synchronization") as found:
            clock = await synchronize(self._vm, partition=self._host, timeout=ANSWER_SECONDS)
            found(f"offset {clock.offset / 1e6:.1f} ms, round trip {clock.round_trip / 1e6:.1f} ms")
        with self._steps.step("Exchange two values") as found:
            system = await self._exchange()
            found(f"the guest runs {system}; it got a value of the host's")
        with self._steps.step("Copy a file to the guest") as found:
            digest = await self._copy()
            found(f"{FILE_BYTES >> 20} MiB, with checksums")
        with self._steps.step("Run a command in it") as found:
            printed = await self._execute(f"sha256sum {shlex.quote(FILE_NAME)}")
            check(printed.split()[0] == digest, f"the guest's sha256sum says {printed!r}, not {digest}")
            found(f"sha256sum says {digest[:16]}..., as here")
        with self._steps.step("Shut it down by the service") as found:
            await shut_down(self._vm, reason="the demo is over", wait=ANSWER_SECONDS, partition=self._host)
            found("it answered, and went by itself")
        return {
            "services": names,
            "heartbeat": health,
            "clock_offset_seconds": clock.offset / 1e9,
            "clock_round_trip_seconds": clock.round_trip / 1e9,
            "guest_system": system,
            "file_sha256": digest,
        }

    async def _served(self) -> list[str]:
        """The services that the agent serves, once they are all that it can."""
        async with asyncio.timeout(READY_SECONDS):
            async with connect(GuestAgent, self._vm, partition=self._host, timeout=None, wait=True) as agent:
                while True:
                    report = await agent.report(Question(), timeout=ANSWER_SECONDS)
                    missing = [one for one in report.services if one.state != Running.RUNNING]
                    if not missing:
                        ours = {one.name for one in INTEGRATION_SERVICES}
                        return [one.name for one in report.services if one.name in ours]
                    await asyncio.sleep(LOOK_SECONDS)

    async def _heartbeat(self) -> str:
        async with asyncio.timeout(ANSWER_SECONDS), Monitor([self._vm], partition=self._host) as monitor:
            await monitor.wait(lambda: monitor.health(self._vm).primary is Status.OK)
            return monitor.health(self._vm).primary.words

    async def _exchange(self) -> str:
        async with exchange(self._vm, partition=self._host, timeout=ANSWER_SECONDS) as values:
            system = (await values.get("OSName", Pool.AUTO)).value.decode(errors="replace")
            await values.set({"demo": "from the host"})
            check((await values.get("demo", Pool.EXTERNAL)).value == b"from the host", "the value is another")
        return system

    async def _copy(self) -> str:
        data = os.urandom(FILE_BYTES)
        with tempfile.NamedTemporaryFile(prefix="hvsock-demo-") as file:
            file.write(data)
            file.flush()
            outcome = await copy_to(self._vm, file.name, FILE_NAME, partition=self._host)
        check(not outcome.failures, f"not copied: {outcome.failures}")
        return hashlib.sha256(data).hexdigest()

    async def _execute(self, command: str) -> str:
        keys = HostKeys(os.path.join(self._fabric.folder, "keys"), self._vm_id, self._vm)
        async with logged_in(self._vm_id, keys, partition=self._host) as connection:
            done = await connection.run(command, check=False)
        check(done.exit_status == 0, f"{command} ended with {done.exit_status}: {done.stderr!r}")
        return str(done.stdout)
