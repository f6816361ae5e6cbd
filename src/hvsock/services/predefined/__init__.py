"""Equivalents of Hyper-V's predefined integration services: new protocols with the meaning of the originals."""

from __future__ import annotations

from typing import Final

from hvsock.constants import GUEST_AGENT, KEY_VALUE_PAIR_EXCHANGE, SHUTDOWN

_HERE: Final = "hvsock.services.predefined"

GUEST_HALVES: Final = {
    KEY_VALUE_PAIR_EXCHANGE.name: f"{_HERE}.kvp.guest:GuestExchange",
    SHUTDOWN.name: f"{_HERE}.shutdown.guest:GuestShutdown",
    GUEST_AGENT.name: "hvsock.services.agent:GuestAgent",
}
"""The guest halves, as "module:class" by the service's name; a class is made with the agent's surroundings."""
