"""Equivalents of Hyper-V's predefined integration services: new protocols with the meaning of the originals."""

from __future__ import annotations

from typing import Final

from hvsock.constants import GUEST_AGENT, GUEST_SERVICE_INTERFACE

_HERE: Final = "hvsock.services.predefined"

GUEST_HALVES: Final = {
    GUEST_AGENT.name: "hvsock.services.agent:GuestAgent",
    GUEST_SERVICE_INTERFACE.name: f"{_HERE}.filecopy.guest:GuestServiceInterface",
}
"""The guest halves, as "module:class" by the service's name; a class is made with the agent's surroundings."""
