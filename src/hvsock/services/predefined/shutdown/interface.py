"""What goes over the wire: the messages and operations of shutdown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from hvsock.constants import SHUTDOWN
from hvsock.services.caller import Caller
from hvsock.services.service import Service, call, download
from hvsock.services.types import Limit, UInt32

MAX_REASON_BYTES: Final = 2048
"""Longest reason, in UTF-8; the original's bound."""
MAX_WINDOW_SECONDS: Final = 24 * 3600
"""Longest time-out: what is later than tomorrow is for a timer of the host's."""


class Action(IntEnum):
    """What is done to a guest."""

    SHUTDOWN = 0
    """It is switched off."""
    REBOOT = 1
    """It is started again."""
    HIBERNATE = 2
    """Its memory goes to its disk, and it is switched off."""

    @property
    def word(self) -> str:
        """Its name for people."""
        return self.name.lower()


class Phase(IntEnum):
    """How far a guest is with what it was asked for."""

    IDLE = 0
    """It was asked for nothing, or has been called off."""
    WAITING = 1
    """Its time-out runs, within which it can be called off."""
    ACTING = 2
    """It is being done."""
    FAILED = 3
    """It could not be done; the guest is as it was."""


@dataclass(frozen=True, slots=True)
class Question:
    """Asks for nothing in particular."""


@dataclass(frozen=True, slots=True)
class Order:
    """Asks for an act.

    Attributes:
        action: which.
        reason: for the guest's log.
        timeout: seconds until the act, within which it can be called off.
        force: do not ask programs to end first.
    """

    action: Action = Action.SHUTDOWN
    reason: Annotated[str, Limit(MAX_REASON_BYTES)] = ""
    timeout: UInt32 = 0
    force: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """How far a guest is.

    Attributes:
        instance: the agent's own; another one after it was started again.
        phase: how far.
        action: what was asked for.
        reason: and why.
        asked_by: and by whom.
        seconds: until the act.
        error: why it failed; empty else.
    """

    instance: Annotated[str, Limit(64)]
    phase: Phase = Phase.IDLE
    action: Action = Action.SHUTDOWN
    reason: Annotated[str, Limit(MAX_REASON_BYTES)] = ""
    asked_by: str = ""
    seconds: UInt32 = 0
    error: str = ""


class ShutdownService(Service, name=SHUTDOWN.name, port=SHUTDOWN.port, short="shutdown"):
    """The service, as the host asks for it; see :class:`.guest.GuestShutdown` for who answers."""

    @call
    async def order(self, caller: Caller, order: Order) -> Pending:
        """Ask for an act; the answer comes before it.

        Raises:
            BusyError: another is under way.
            NotReadyError: the guest cannot be switched off just now.
            RefusedError: it cannot be done in this guest at all.
        """
        raise NotImplementedError

    @call(idempotent=True)
    async def cancel(self, caller: Caller, question: Question) -> Pending:
        """Call off what waits for its time-out.

        Raises:
            NotFoundError: nothing waits.
            BusyError: it is being done already.
        """
        raise NotImplementedError

    @call(idempotent=True)
    async def pending(self, caller: Caller, question: Question) -> Pending:
        """How far the guest is."""
        raise NotImplementedError

    @download
    async def follow(self, caller: Caller, question: Question) -> AsyncIterator[Pending]:
        """How far the guest is, now and whenever that changes, until it is gone."""
        raise NotImplementedError
        yield
