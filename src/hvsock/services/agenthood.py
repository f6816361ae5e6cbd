"""What the guest half of a predefined service may rely on: the machine that it runs on, and who runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from hvsock.errors import RefusedError

from .policy import ALLOW_ALL, Policy


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The surroundings of a guest agent.

    Attributes:
        own_machine: whether the machine is the partition's own, as a VM's is. It is not for a partition that is
            a folder of this machine: there nobody may set the clock, freeze file systems or switch anything off.
        state_folder: where a service keeps what has to outlive the agent; it exists, and is the agent's alone.
        policy: which operations may be called.
        end: ends the agent, once what it says to its callers is said; for a partition whose machine is another's.
    """

    own_machine: bool
    state_folder: str
    policy: Policy = ALLOW_ALL
    end: Callable[[], object] = field(default=lambda: None)

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
