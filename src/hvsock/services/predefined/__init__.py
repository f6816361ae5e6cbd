"""Equivalents of Hyper-V's predefined integration services: new protocols with the meaning of the originals."""

from __future__ import annotations

from typing import Final

from hvsock.constants import (
    DIRECT,
    GUEST_AGENT,
    GUEST_SERVICE_INTERFACE,
    HEARTBEAT,
    KEY_VALUE_PAIR_EXCHANGE,
    SHUTDOWN,
    TIME_SYNCHRONIZATION,
    VM_SESSION_SERVICE,
    VM_SESSION_SERVICE_2,
    VSS,
)

_HERE: Final = "hvsock.services.predefined"

GUEST_HALVES: Final = {
    DIRECT.name: f"{_HERE}.direct.service:Direct",
    HEARTBEAT.name: f"{_HERE}.heartbeat.protocol:Heartbeat",
    SHUTDOWN.name: f"{_HERE}.shutdown.guest:GuestShutdown",
    TIME_SYNCHRONIZATION.name: f"{_HERE}.timesync.protocol:TimeSynchronization",
    KEY_VALUE_PAIR_EXCHANGE.name: f"{_HERE}.kvp.guest:GuestExchange",
    VSS.name: f"{_HERE}.vss.guest:GuestVss",
    GUEST_SERVICE_INTERFACE.name: f"{_HERE}.filecopy.guest:GuestServiceInterface",
    GUEST_AGENT.name: "hvsock.services.agent:GuestAgent",
    VM_SESSION_SERVICE.name: "hvsock.services.powershell.server:VmSessionBroker",
    VM_SESSION_SERVICE_2.name: "hvsock.services.powershell.server:VmSession",
}
"""The guest halves, as "module:class" by the service's name; a class is made with the agent's surroundings. They
are begun in this order: Direct first, which loads nothing, but has most to load once somebody connects."""
