"""This Windows, for checks: its sockets, its registry and its VMs."""

from __future__ import annotations

from typing import Any

from hvsock.addresses import ServiceId, VmId
from hvsock.sockets.hyperv import aio
from hvsock.sockets.hyperv.socket import socket
from hvsock.transport import Transport
from hvsock.windows import vms
from hvsock.windows.registry import WindowsRegistry

from .ground import Ground


def ground() -> Ground:
    """This host or guest. The caller closes it, which does nothing.

    Raises:
        UsageError: this is not Windows.
    """

    def find_vm(name: str) -> VmId:
        return vms.find(name).id

    listed: dict[str, Any] = {"Get-VM": vms.by_powershell, "hcsdiag": vms.by_hcsdiag}
    return Ground(Transport.HYPERV, socket, aio, ServiceId.new, WindowsRegistry(), listed, find_vm)
