"""The service VSS as both sides know it.

One exchange is one freeze. The host sends a request with :attr:`Step.FREEZE`; the answer FROZEN comes once
everything is frozen. Everything thaws when the host sends :attr:`Step.THAW`, ends its side or is lost, and when
the time is over: THAWED comes at once with the reason, DONE when the hooks have run, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Final

from hvsock.constants import VSS
from hvsock.errors import RefusedError
from hvsock.services.caller import Caller
from hvsock.services.service import Service, call, exchange
from hvsock.services.types import Limit

FREEZE_SECONDS: Final = 10.0
"""How long a freeze lasts at most, where the host says nothing: what Windows allows a freeze."""
MAX_FREEZE_SECONDS: Final = 120.0
"""How long the host may ask for: programs whose writes wait for longer than this are taken for dead by others."""
PREPARE_SECONDS: Final = 120.0
"""Until everything is frozen, or the freeze has failed: hooks, and all that is not yet written to the disks."""
CONCLUDE_SECONDS: Final = 120.0
"""Until the hooks have run after a thaw."""
MAX_FILE_SYSTEMS: Final = 1024
"""Most file systems of one machine: containers may bring hundreds."""
MAX_HOOKS: Final = 64
"""Most hooks, each of which takes its time."""
MAX_PATH_BYTES: Final = 4096
"""Longest path of a mount point: PATH_MAX of Linux."""
MAX_TEXT_BYTES: Final = 4096
"""Longest reason, which may have a hook's output in it."""

Path = Annotated[str, Limit(MAX_PATH_BYTES)]
Text = Annotated[str, Limit(MAX_TEXT_BYTES)]


class Step(IntEnum):
    """What the host wants within a freeze."""

    FREEZE = 0
    THAW = 1


class State(IntEnum):
    """How far it is."""

    FREEZING = 0
    """Hooks run and file systems are frozen; never answered."""
    FROZEN = 1
    """All file systems are frozen."""
    THAWED = 2
    """All are thawed."""
    DONE = 3
    """The hooks have run after the thaw."""


class Why(IntEnum):
    """Why it was thawed."""

    NOTHING = 0
    """It was not."""
    ASKED = 1
    """The host asked for it: what it copied while all was frozen is good."""
    TIMED_OUT = 2
    """The time was over."""
    HOST_LOST = 3
    """The host went away."""
    ENDED = 4
    """The process that freezes was told to end, or was killed."""
    OTHERS = 5
    """Somebody else in the guest had thawed a file system meanwhile."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the host sends within a freeze.

    Attributes:
        step: what it wants.
        timeout: of the freeze, in seconds; at most MAX_FREEZE_SECONDS.
    """

    step: Step = Step.FREEZE
    timeout: float = FREEZE_SECONDS


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system of the guest.

    Attributes:
        path: where it is mounted; with escapes where it is no UTF-8.
        source: what is mounted, like /dev/vda.
        kind: like ext4.
        obstacle: why it cannot be frozen; empty where it can.
    """

    path: Path
    source: Path
    kind: Text
    obstacle: Text = ""


@dataclass(frozen=True, slots=True)
class Hook:
    """A program that runs before a freeze and after the thaw.

    Attributes:
        name: its file's.
        obstacle: why it is not run, and no freeze either; empty where nothing is in the way.
    """

    name: Text
    obstacle: Text = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What the guest says within a freeze.

    Attributes:
        state: how far it is.
        why: why it was thawed.
        seconds: how long it took to freeze (FROZEN), or how long it was frozen (THAWED), as the guest measured.
        file_systems: those that are frozen, and those that are left out (FROZEN).
        warnings: what went wrong and harms nothing but itself: a hook after the thaw (DONE).
    """

    state: State
    why: Why = Why.NOTHING
    seconds: float = 0.0
    file_systems: Annotated[list[FileSystem], Limit(MAX_FILE_SYSTEMS)] = field(default_factory=list)
    warnings: Annotated[list[Text], Limit(MAX_HOOKS)] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Check:
    """Asks whether a freeze would work."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a freeze would do.

    Attributes:
        obstacle: why there would be none; empty where nothing is in the way.
        file_systems: those that it would freeze, and those that it would leave out, in its order.
        hooks: in the order before the freeze.
        frozen: whether a freeze is under way.
    """

    obstacle: Text
    file_systems: Annotated[list[FileSystem], Limit(MAX_FILE_SYSTEMS)] = field(default_factory=list)
    hooks: Annotated[list[Hook], Limit(MAX_HOOKS)] = field(default_factory=list)
    frozen: bool = False


class Vss(Service, name=VSS.name, port=VSS.port):
    """Freezes a guest's file systems."""

    @call(idempotent=True)
    async def check(self, caller: Caller, question: Check) -> Checked:
        """Whether a freeze would work (the original's hot-backup check)."""
        raise RefusedError("this side has nothing to freeze")

    @exchange
    async def freeze(self, caller: Caller, questions: AsyncIterator[Request]) -> AsyncIterator[Report]:
        """Freeze, until the host asks for the thaw, is lost, or the time is over.

        Raises:
            RefusedError: the machine is not the partition's own.
            BusyError: a freeze is under way.
            NotReadyError: something could not be frozen, or a hook failed; everything is thawed.
            UsageError: the time-out is none.
        """
        raise RefusedError("this side has nothing to freeze")
        yield  # an async generator, like its override
