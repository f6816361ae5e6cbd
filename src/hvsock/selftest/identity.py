"""Checks of addresses, constants, the registry of services and the names of VMs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

import hvsock
from hvsock.addresses import Address, ServiceId, VmId, parse_service_id, parse_vm_id
from hvsock.errors import HvsockError, NoFabricError, RefusedError
from hvsock.testing._harness import require

from .check import Check, NotApplicable, words_of
from .ground import AnyRegistry, Ground

NUMBERS: Final = (
    *("AF_HYPERV", "HV_PROTOCOL_RAW", "HVSOCKET_CONNECT_TIMEOUT", "HVSOCKET_CONNECT_TIMEOUT_MAX"),
    *("HVSOCKET_CONNECTED_SUSPEND", "HVSOCKET_ADDRESS_FLAG_PASSTHRU"),
)
"""Names of numbers that CPython's socket module has on Windows."""
GUIDS: Final = tuple(
    f"HV_GUID_{name}" for name in ("ZERO", "WILDCARD", "BROADCAST", "CHILDREN", "LOOPBACK", "PARENT")
)
"""Names of GUIDs that it has."""


def _addresses(_: Ground) -> None:
    service = ServiceId.from_port(2761)
    require(service == "00000ac9-facb-11e6-bd58-64006a7986d3", f"{service} came")
    require(
        parse_service_id("2761") == parse_service_id(service.upper()) == service,
        "a port and its GUID are two services",
    )
    words = {word: parse_vm_id(word) for word in ("parent", "children", "loopback", "any", "silohost")}
    require(len(set(words.values()) - {None}) == len(words), f"{words} came")
    require(
        str(Address(hvsock.HV_GUID_PARENT, service)) == "hvsocket://parent/2761", "an address is written otherwise"
    )


def _constants(ground: Ground) -> str:
    if not hasattr(ground.stdlib, "AF_HYPERV"):
        raise NotApplicable("this Python's socket module has no AF_HYPERV; it has one on Windows, from 3.12 on")
    seen = 0
    for name in (*NUMBERS, *GUIDS):
        theirs, ours = getattr(ground.stdlib, name, None), getattr(hvsock, name)
        if theirs is None:
            continue
        same = VmId(theirs) == ours if name in GUIDS else int(theirs) == int(ours)
        require(same, f"{name} is {theirs!r} in CPython, and {ours!r} here")
        seen += 1
    return f"{seen} of {len(NUMBERS) + len(GUIDS)} are in the socket module, and the same"


def registry_of(ground: Ground) -> AnyRegistry:
    """The registry of a ground.

    Raises:
        NotApplicable: it has none.
    """
    if ground.registry is None:
        raise NotApplicable("this transport has no registry of services: they are numbers, or names of the host's")
    return ground.registry


def _services(ground: Ground) -> str:
    try:
        return f"{len(registry_of(ground).entries())} services are registered"
    except NoFabricError as error:
        raise NotApplicable(f"{error}; a guest has none") from None


@contextlib.contextmanager
def registered(registry: AnyRegistry) -> Iterator[ServiceId]:
    """A service of a random GUID, which is unregistered in the end.

    Raises:
        NotApplicable: this process may not change the registry, or there is none.
    """
    service = ServiceId.new()
    try:
        registry.register(f"hvsock selftest {service[:8]}", service)
    except RefusedError as error:
        raise NotApplicable(f"not elevated; run hvsock selftest in an elevated prompt too: {error}") from None
    except NoFabricError as error:
        raise NotApplicable(f"{error}; a guest has none") from None
    try:
        yield service
    finally:
        registry.unregister(service)


def _registering(ground: Ground) -> None:
    registry = registry_of(ground)
    with registered(registry) as service:
        entry = registry.get(service)
        if entry is None:
            raise AssertionError("what was registered is not there")
        require(entry.name == f"hvsock selftest {service[:8]}", f"{entry.name} came")
        require(service in [one.id for one in registry.entries()], "what was registered is not listed")
    require(registry.get(service) is None, "what was unregistered is still there")


def _vm_names(ground: Ground) -> str:
    """No VM's name is told: a report is for everybody."""
    told, reasons = [], []
    for source, vms in ground.vms.items():
        try:
            found = vms()
        except HvsockError as error:
            reasons.append(f"{source}: {words_of(error)}")
            continue
        told.append(f"{source}: {len(found)} VMs")
        count = Counter(vm.name.casefold() for vm in found)
        for number, vm in enumerate(found, 1):
            if count[vm.name.casefold()] > 1:
                continue
            try:
                right = ground.find_vm(vm.name) == vm.id
            except HvsockError as error:
                raise AssertionError(f"{source}'s VM {number} is not found: {type(error).__name__}") from None
            require(right, f"{source}'s VM {number} is found with another id")
    if not told:
        raise NotApplicable("; ".join(("nobody tells of VMs", *reasons)))
    return "; ".join((*told, *(f"not asked: {reason}" for reason in reasons)))


CHECKS: Final = (
    Check("addresses", _addresses),
    Check("constants are CPython's", _constants),
    Check("services are listed", _services),
    Check("a service is registered, read back and unregistered", _registering),
    Check("VMs are found by their names", _vm_names),
)
