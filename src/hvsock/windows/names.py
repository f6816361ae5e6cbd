"""Addresses with names in them, looked up in this Windows."""

from __future__ import annotations

from hvsock.addresses import Address, AddressText, parse_service_id, parse_url, parse_vm_id
from hvsock.errors import NotFoundError, UsageError


def resolve(address: str | tuple[str, str]) -> Address:
    """The address that somebody wrote.

    Args:
        address: ``hvsocket://VM/SERVICE``, or the pair of its halves.

    Raises:
        UsageError: it is not an address.
        NotFoundError: no VM or service has that name.
    """
    try:
        text = parse_url(address) if isinstance(address, str) else AddressText(*address)
    except ValueError as error:
        raise UsageError(str(error)) from None
    vm_id, service_id = parse_vm_id(text.vm), parse_service_id(text.service)
    if vm_id is None:
        raise NotFoundError(f"names of VMs cannot be looked up yet: {text.vm}")
    if service_id is None:
        raise NotFoundError(f"names of services cannot be looked up yet: {text.service}")
    return Address(vm_id, service_id)
