"""What the guest half of a predefined service may rely on: the machine that it runs on, and who runs it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hvsock import transport
from hvsock.errors import NotReadyError, RefusedError
from hvsock.fabric import paths
from hvsock.transport import Transport

from .policy import ALLOW_ALL, Policy

T = TypeVar("T")


class Holds:
    """Why the machine may not be switched off just now, told by whoever would be harmed."""

    def __init__(self) -> None:
        self._reasons: list[str] = []

    @contextlib.contextmanager
    def hold(self, reason: str) -> Iterator[None]:
        """Keep the machine on for as long as the context lasts.

        Args:
            reason: what goes on, like "file systems are frozen for a backup".
        """
        self._reasons.append(reason)
        try:
            yield
        finally:
            self._reasons.remove(reason)

    def check(self) -> None:
        """Refuse to switch anything off while somebody holds it.

        Raises:
            NotReadyError: somebody does.
        """
        if self._reasons:
            raise NotReadyError(f"not now: {self._reasons[0]}; try again when that is over")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The surroundings of a guest agent.

    Attributes:
        own_machine: whether the machine is the partition's own, as a VM's is. It is not for a partition that is
            a folder of this machine: there nobody may set the clock, freeze file systems or switch anything off.
        state_folder: where a service keeps what has to outlive the agent; it exists, and is the agent's alone.
        policy: which operations may be called.
        end: ends the agent, once what it says to its callers is said; for a partition whose machine is another's.
        holds: why nothing may be switched off just now.
        processes: those that the agent has besides its own, and that end with it.
        common: see :meth:`shared`.
    """

    own_machine: bool
    state_folder: str
    policy: Policy = ALLOW_ALL
    end: Callable[[], object] = field(default=lambda: None)
    holds: Holds = field(default_factory=Holds)
    processes: frozenset[int] = frozenset()
    common: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def shared(self, kind: Callable[[Surroundings], T]) -> T:
        """What several services of the agent have in common: made by `kind` on first use, one for all of them."""
        if kind not in self.common:
            self.common[kind] = kind(self)
        found: T = self.common[kind]
        return found

    def check_own_machine(self, what: str) -> None:
        """Refuse an act upon the machine where it is not the partition's own.

        Args:
            what: the act, like "setting the clock".

        Raises:
            RefusedError: it is somebody else's machine.
        """
        if not self.own_machine:
            raise RefusedError(
                f"{what} is refused here: this partition is a folder of a machine that is not its own"
            )

    def path(self, name: str) -> str:
        """The path of a service's file or folder in the state folder."""
        return os.path.join(self.state_folder, name)


def default_state_folder(own_machine: bool, partition: str) -> str:
    """Where an agent keeps what outlives it, unless told otherwise; each local partition has its own.

    Args:
        own_machine: whether the machine is the partition's own.
        partition: the partition's folder.
    """
    import platformdirs

    if own_machine and sys.platform != "win32" and os.geteuid() == 0:
        return "/var/lib/hvsock"
    base = platformdirs.user_state_path("hvsock")
    return str(base if own_machine else base / "partitions" / os.path.basename(partition))


def own_state_folder() -> str:
    """The state folder of the agent that runs where this process does, as the same user."""
    return default_state_folder(transport.chosen() is Transport.VSOCK, paths.partition_folder())
