"""The address that somebody wrote, with names looked up: by the broker, or in the configuration."""

from __future__ import annotations

import sys

from hvsock import transport, urls
from hvsock.addresses import Address, AddressText, ServiceId, VmId, parse_service_id, parse_vm_id
from hvsock.errors import NotFoundError, UsageError
from hvsock.fabric import client
from hvsock.machines import known
from hvsock.transport import Transport
from hvsock.urls import HybridText

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")


def parse(address: str | tuple[str, str]) -> AddressText | HybridText:
    """An address as it is written, of any kind.

    Raises:
        UsageError: it is none.
    """
    try:
        return urls.parse(address) if isinstance(address, str) else AddressText(*address)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


def resolve(address: str | tuple[str, str], partition: str | None = None) -> Address:
    """The address that somebody wrote, with names looked up by the broker, or in the configuration.

    Args:
        address: ``hvsocket://VM/SERVICE``, ``vsock://CID:PORT``, ``unix:PATH?hybrid=PORT``, or the pair of VM and
            SERVICE. VM is a GUID, a word (parent, children, loopback, any, silohost) or the name of a partition or
            of a VM of the configuration; SERVICE is a GUID, a port or a service's name.
        partition: the partition's folder whose broker is asked; by default that of this process.

    Raises:
        UsageError: it is not an address.
        NotFoundError: no partition or service has that name.
        NoFabricError: there is a name to look up and no broker answers.
    """
    text = parse(address)
    if isinstance(text, HybridText):
        return Address(known.at_path(text.path, text.profile).id, text.service)
    found = at_once(text)
    if found is not None:
        return found
    if transport.chosen() is not Transport.FABRIC:
        text = _configured(text)
    return client.resolve((text.vm, text.service), partition)


def has_broker() -> bool:
    """Whether this process has a broker to ask, of this machine or, in a guest, of its host.

    Raises:
        UsageError: the transport or the configuration cannot be used.
    """
    used = transport.chosen()
    return used is Transport.FABRIC or (used is Transport.VSOCK and not known.is_host())


def at_once(text: AddressText) -> Address | None:
    """The address, where no name has to be looked up."""
    vm_id, service_id = parse_vm_id(text.vm), parse_service_id(text.service)
    return None if vm_id is None or service_id is None else Address(vm_id, service_id)


def _configured(text: AddressText) -> AddressText:
    """The address with the configuration's VMs and services as GUIDs; in a guest, others are left to its host."""
    vm_id: VmId | None = parse_vm_id(text.vm)
    service_id: ServiceId | None = parse_service_id(text.service) or known.service_named(text.service)
    is_asked = has_broker()
    if vm_id is None:
        try:
            vm_id = known.named(text.vm).id
        except NotFoundError:
            if not is_asked:
                raise
    if service_id is None and not is_asked:
        raise NotFoundError(f"no service is called {text.service!r}; {known.where_to_write('services')}")
    return AddressText(vm_id or text.vm, service_id or text.service)
