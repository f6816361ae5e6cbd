"""The address tuples of AF_HYPERV, with the errors that CPython raises for them (getsockaddrarg)."""

from __future__ import annotations

from typing import TypeVar

from hvsock.addresses import Address, Guid, ServiceId, VmId

_G = TypeVar("_G", bound=Guid)


def parse_sockaddr(address: object, caller: str) -> Address:
    """The address in a tuple (vm_id, service_id) of GUIDs as text.

    Args:
        address: what the program gave.
        caller: the method's name, for the message.

    Raises:
        TypeError: not a tuple of two strings; the program's mistake.
        ValueError: a half is not a GUID; names are for :func:`hvsock.resolve`.
    """
    if not isinstance(address, tuple):
        raise TypeError(f"{caller}(): AF_HYPERV address must be tuple, not {type(address).__name__}")
    if len(address) != 2 or not all(isinstance(half, str) for half in address):
        raise TypeError("AF_HYPERV address must be a str tuple (vm_id, service_id)")
    vm_id, service_id = address
    return Address(_guid(VmId, vm_id, "vm_id", caller), _guid(ServiceId, service_id, "service_id", caller))


def _guid(kind: type[_G], text: str, name: str, caller: str) -> _G:
    try:
        if text.startswith("{"):  # UuidFromStringW takes no braces
            raise ValueError(text)
        return kind(text)
    except ValueError:
        raise ValueError(f"{caller}(): AF_HYPERV address {name} is not a valid UUID string") from None
