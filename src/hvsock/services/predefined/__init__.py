"""Equivalents of Hyper-V's predefined integration services: new protocols with the meaning of the originals."""

from __future__ import annotations

from typing import Final

from hvsock.constants import DIRECT, GUEST_AGENT

_HERE: Final = "hvsock.services.predefined"

GUEST_HALVES: Final = {
    GUEST_AGENT.name: "hvsock.services.agent:GuestAgent",
    DIRECT.name: "hvsock.services.predefined.direct.service:Direct",
}
"""The guest halves, as "module:class" by the service's name; a class is made with the agent's surroundings."""
