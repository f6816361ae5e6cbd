"""The service and its messages, and the guest half."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from hvsock.constants import HEARTBEAT
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.service import Service, exchange
from hvsock.services.types import UInt64

from .applications import Applications, ApplicationState

SEQUENCES: Final = 2**64
"""Sequence numbers count up to here, and from 0 again."""
APPLICATION_VERSION: Final = 2
"""The version from which answers have the state of applications; before, it is UNKNOWN."""
MAX_BEAT_BYTES: Final = 256
"""Most bytes of a message; two numbers take some 12, and what a later version adds has room."""


@dataclass(frozen=True, slots=True)
class Beat:
    """The host's question.

    Attributes:
        sequence: its number.
    """

    sequence: UInt64


@dataclass(frozen=True, slots=True)
class Pulse:
    """The guest's answer.

    Attributes:
        sequence: the question's number and 1.
        application_state: of the guest's programs.
    """

    sequence: UInt64
    application_state: ApplicationState = ApplicationState.UNKNOWN


class Heartbeat(Service, name=HEARTBEAT.name, port=HEARTBEAT.port, versions=(1, APPLICATION_VERSION)):
    """The heartbeat, and its guest half.

    Args:
        surroundings: the guest's.
    """

    def __init__(self, surroundings: Surroundings) -> None:
        self._applications = Applications(surroundings.state_folder)

    @exchange(max_bytes=MAX_BEAT_BYTES)
    async def beat(self, caller: Caller, beats: AsyncIterator[Beat]) -> AsyncIterator[Pulse]:
        """Answer every beat, for as long as the host asks."""
        async for beat in beats:
            state = ApplicationState.UNKNOWN
            if caller.version >= APPLICATION_VERSION:
                state = self._applications.worst()
            yield Pulse((beat.sequence + 1) % SEQUENCES, state)
