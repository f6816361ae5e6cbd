"""What the host makes of answers, and of none (pure: the time is an argument).

The words and numbers are those of Msvm_HeartbeatComponent.OperationalStatus, whose first value is the primary
status and whose second is the secondary one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hvsock.errors import ProtocolError

from .applications import ApplicationState
from .protocol import SEQUENCES, Beat, Heartbeat, Pulse

BEAT_SECONDS: Final = 2.0
"""Pause between two beats, that of the original."""
LOST_SECONDS: Final = 5.0
"""A guest that did not answer for so long is lost: two beats, and time for an answer."""


class Status(IntEnum):
    """Primary and secondary statuses, with the numbers of the original."""

    OK = 2
    DEGRADED = 3
    """It answers in an older version."""
    NON_RECOVERABLE = 7
    """It answers in no version that this side knows, or not as the protocol says."""
    NO_CONTACT = 12
    """It has never answered: nobody serves the heartbeat there, or not yet."""
    LOST_COMMUNICATION = 13
    """It did answer, and does not any more."""
    PAUSED = 15
    """Its VM is paused."""
    PROTOCOL_MISMATCH = 32775
    APPLICATION_CRITICAL_STATE = 32782
    """It answers, and one of its programs needs help."""
    COMMUNICATION_TIMED_OUT = 32783
    """There is a connection, and no answer."""
    COMMUNICATION_FAILED = 32784
    """There is no connection."""

    @property
    def words(self) -> str:
        """What it is called."""
        return _WORDS.get(self, self.name.replace("_", " ").title())


_WORDS: Final = {Status.OK: "OK", Status.NON_RECOVERABLE: "Non-Recoverable Error"}


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of one guest.

    Attributes:
        primary: its primary status.
        secondary: its secondary one.
        application_state: of its programs, as they told last.
        version: the heartbeat's version that it speaks; 0 where it never was asked.
        answered: seconds since its last answer; None where there is none.
        round_trip: seconds that its last answer took; None where there is none.
        reason: why it is not OK, in words; empty where there is nothing to say.
    """

    primary: Status
    secondary: Status
    application_state: ApplicationState = ApplicationState.UNKNOWN
    version: int = 0
    answered: float | None = None
    round_trip: float | None = None
    reason: str = ""


class Heart:
    """One guest, as its host sees it; times are of any clock that never goes back.

    Args:
        newest: the newest version that this side speaks.

    Attributes:
        connections: how many there were.
    """

    def __init__(self, newest: int = Heartbeat.VERSIONS[-1]) -> None:
        self.connections = 0
        self._newest = newest
        self._version = 0
        self._connected = False
        self._mismatch = False
        self._reason = ""
        self._sequence = 0
        self._sent: float | None = None
        self._answered: float | None = None
        self._round_trip: float | None = None
        self._state = ApplicationState.UNKNOWN

    @property
    def is_waiting(self) -> bool:
        """Whether a beat is not answered yet."""
        return self._sent is not None

    def connected(self, version: int) -> None:
        """There is a connection, on which `version` is spoken."""
        self._version = version
        self._connected = True
        self.connections += 1
        self._sent = None

    def beat(self, now: float) -> Beat:
        """The beat that is sent now, once the one before is answered."""
        assert self._sent is None
        self._sent = now
        self._sequence = (self._sequence + 1) % SEQUENCES
        return Beat(self._sequence)

    def answer(self, pulse: Pulse, now: float) -> None:
        """An answer has come.

        Raises:
            ProtocolError: to a question that was not asked; the guest's doing.
        """
        due = (self._sequence + 1) % SEQUENCES
        if self._sent is None:
            raise ProtocolError("an answer to no beat")
        if pulse.sequence != due:
            raise ProtocolError(f"the answer {pulse.sequence} where {due} is due")
        self._round_trip, self._answered, self._sent = now - self._sent, now, None
        self._state = pulse.application_state
        self._mismatch, self._reason = False, ""

    def lost(self, reason: str) -> None:
        """The connection has ended, or could not be made."""
        self._connected = False
        self._sent = None
        self._reason = reason

    def broke(self, reason: str) -> None:
        """The guest broke the protocol, or speaks no version that this side knows; the connection is dropped."""
        self.lost(reason)
        self._mismatch = True

    def silent(self, now: float) -> float:
        """For how many seconds a beat waits for its answer; 0 where none does."""
        return 0.0 if self._sent is None else now - self._sent

    def health(self, now: float, *, paused: bool = False) -> Health:
        """What is known now.

        Args:
            now: the time.
            paused: whether the guest's VM is known to be paused.
        """
        primary, secondary, reason = self._statuses(now, paused)
        answered = None if self._answered is None else now - self._answered
        return Health(primary, secondary, self._state, self._version, answered, self._round_trip, reason)

    def _statuses(self, now: float, paused: bool) -> tuple[Status, Status, str]:
        failure = Status.COMMUNICATION_TIMED_OUT if self._connected else Status.COMMUNICATION_FAILED
        if paused:
            return Status.PAUSED, Status.OK, "its VM is paused"
        if self._mismatch:
            return Status.NON_RECOVERABLE, Status.PROTOCOL_MISMATCH, self._reason
        if self._answered is None:
            return Status.NO_CONTACT, failure, self._reason or "it has not answered yet"
        if now - self._answered >= LOST_SECONDS:
            return Status.LOST_COMMUNICATION, failure, self._reason or "it does not answer"
        critical = self._state is ApplicationState.CRITICAL
        secondary = Status.APPLICATION_CRITICAL_STATE if critical else Status.OK
        if self._version < self._newest:
            reason = f"it speaks version {self._version}, and this side up to {self._newest}"
            return Status.DEGRADED, secondary, reason
        return Status.OK, secondary, "a program in the guest needs help" if critical else ""
