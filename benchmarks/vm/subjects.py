"""What is measured: one way between a guest and its host, with all who have a part in it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hvsock.errors import StateError

from .hosting import command
from .processes import Agent, Meter, Party, Usage, agent

if sys.platform != "linux":
    raise ImportError("the benchmarks need Linux")

GUEST: Final = "guest"
"""The party that is the guest's processors, or the fake driver."""
DEVICE: Final = "device"
"""The party whose processor time is compared: the vsock device, or QEMU where it is the device itself."""
MESSAGE_BYTES: Final = 64
"""Size of a message that is echoed."""


@dataclass(frozen=True)
class Work:
    """One thing that is measured.

    Attributes:
        name: what the table calls it.
        order: what the guest's side is told: to-host, to-guest, echo, connect; serve for
            connects of the host, of which it is told nothing.
        size: bytes of one write.
    """

    name: str
    order: str
    size: int = MESSAGE_BYTES

    @property
    def is_stream(self) -> bool:
        """Whether bytes are counted, and not messages or connections."""
        return self.order in ("to-host", "to-guest")

    @property
    def step(self) -> int:
        """The unit of an amount: bytes of a write, or 1 for connections."""
        return 1 if self.order in ("connect", "serve") else self.size

    def count(self, sample: Sample) -> float:
        """What a rate counts: bytes, round trips, or connections."""
        return sample.amount / self.size if self.order == "echo" else sample.amount


def _sized(size: int) -> str:
    return f"{size} B" if size < 1024 else f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"


_SIZES: Final = (64, 4 << 10, 64 << 10, 1 << 20)
WORKS: Final = (
    *(Work(f"guest to host, {_sized(size)} writes", "to-host", size) for size in _SIZES),
    *(Work(f"host to guest, {_sized(size)} writes", "to-guest", size) for size in _SIZES),
    Work(f"round trips, {MESSAGE_BYTES} B", "echo"),
    Work("connects, guest to host", "connect"),
    Work("connects, host to guest", "serve"),
)


@dataclass(frozen=True)
class Sample:
    """One measurement.

    Attributes:
        amount: bytes, or connections that did not fail.
        seconds: how long they took.
        used: by party, what it made of its time.
        elapsed: seconds of that time, which is a little longer: connecting is in it.
        told: what whoever measured says besides.
    """

    amount: int
    seconds: float
    used: Mapping[str, Usage]
    elapsed: float
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """One way between a guest and its host.

    Attributes:
        name: what the table calls it.
        agent: the guest's side.
        transport: what the guest's side calls the way.
        data_port: where the guest finds the host's program.
        close_port: where the guest finds a program that accepts and closes.
        parties: who has a part in it.
        connecting: the command of a process that connects to the guest; None where there are no connections.
    """

    name: str
    agent: Agent
    transport: str
    data_port: int
    close_port: int
    parties: Sequence[Party]
    connecting: Sequence[str] | None

    def does(self, work: Work) -> bool:
        """Whether there is such a thing on this way."""
        return self.connecting is not None or work.order not in ("connect", "serve")

    def sample(self, work: Work, amount: int) -> Sample:
        """Measure `amount` of `work`, in bytes or connections.

        Raises:
            StateError: a program of it failed.
        """
        if work.order == "serve":
            return self._connects_to_guest(amount)
        port = self.close_port if work.order == "connect" else self.data_port
        meter = Meter(self.parties)
        told = self.agent.ask(f"{self.transport} {port} {work.order} {work.size} {amount}")
        elapsed, used = meter.read()
        return Sample(amount, told["seconds"], used, elapsed, told)

    def _connects_to_guest(self, amount: int) -> Sample:
        """Connects one after another; those that fail take no time, and are told of."""
        assert self.connecting is not None, "there are connects"
        with agent(self.connecting) as (client, pid, _):
            meter = Meter([*self.parties, Party("client", (pid,))])
            told = client.ask(str(amount))
            elapsed, used = meter.read()
        if told["failed"] == amount:
            raise StateError("all connects failed")
        return Sample(amount - told["failed"], told["seconds"], used, elapsed, told)


def host_side(
    stack: contextlib.ExitStack, way: str, program: str, *, port: int = 0, where: str = "", **options: Any
) -> tuple[int, tuple[int, ...]]:
    """The host's program behind a way, until the stack ends: its port, and its processes."""
    _, pid, told = stack.enter_context(
        agent(command("serve", way, port=port, where=where, program=program), **options)
    )
    return told["port"], (pid, told["program"])


def closing_side(
    stack: contextlib.ExitStack, way: str, *, port: int = 0, where: str = "", **options: Any
) -> tuple[int, tuple[int, ...]]:
    """A program that accepts and closes, until the stack ends: its port, and its process."""
    _, pid, told = stack.enter_context(agent(command("close", way, port=port, where=where), **options))
    return told["port"], (pid,)
