"""Addresses with names in them, looked up in this Windows."""

from __future__ import annotations

from collections.abc import Callable

from hvsock import urls
from hvsock.addresses import WELL_KNOWN_VMIDS, Address, AddressText, VmId, parse_service_id, parse_vm_id
from hvsock.errors import NoFabricError, NotFoundError, UsageError
from hvsock.urls import HybridText

from . import vms
from .registry import WindowsRegistry


def parse(address: str | tuple[str, str]) -> AddressText:
    """An address as it is written, of the kinds that Windows has.

    Raises:
        UsageError: it is none, or of another kind.
    """
    try:
        found = urls.parse(address) if isinstance(address, str) else AddressText(*address)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    if isinstance(found, HybridText):
        raise UsageError("unix: URLs are for the VMMs of Linux hosts; on Windows write hvsocket://VM/SERVICE")
    scheme = f"{urls.VSOCK_SCHEME}:"
    if isinstance(address, str) and address[: len(scheme)].lower() == scheme:
        vm = found.vm if found.vm in WELL_KNOWN_VMIDS else "VM"
        raise UsageError(
            f"Windows knows VMs by name or VmId and not by CID: write hvsocket://{vm}/{found.service}"
        )
    return found


def resolve(
    address: str | tuple[str, str],
    registry: WindowsRegistry | None = None,
    find_vm: Callable[[str], vms.Vm] = vms.find,
) -> Address:
    """The address that somebody wrote; only what is a name is looked up.

    Args:
        address: ``hvsocket://VM/SERVICE``, or the pair of its halves.
        registry: where services are looked up; None for this Windows' own.
        find_vm: looks a VM up.

    Raises:
        UsageError: it is not an address.
        NotFoundError: no VM or service has that name. A guest has no registry of services: there they are GUIDs.
    """
    text = parse(address)
    vm_id, service_id = parse_vm_id(text.vm), parse_service_id(text.service)
    if service_id is None:
        try:
            service_id = (registry or WindowsRegistry()).find(text.service).id
        except NoFabricError as error:
            raise NotFoundError(f"{error}; in a guest, give the service's GUID or port") from None
    return Address(VmId(find_vm(text.vm).id) if vm_id is None else vm_id, service_id)
