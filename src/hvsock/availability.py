"""Whether a transport can be used on this machine, and what it lacks. Nothing is connected to."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvsock import transport
from hvsock.errors import HvsockError
from hvsock.fabric import paths
from hvsock.transport import Transport

VSOCK_DEVICE: Final = "/dev/vsock"
"""What the kernel has as soon as it speaks AF_VSOCK."""


@dataclass(frozen=True, slots=True)
class Availability:
    """What is known of a transport.

    Attributes:
        transport: which.
        ok: whether it can be used.
        found: what there is, or what is missing, in words.
        cure: what to do about it; None where nothing is to be done, or nothing can be.
    """

    transport: Transport
    ok: bool
    found: str
    cure: str | None = None


def look() -> tuple[Availability, ...]:
    """All transports, of whichever platform."""
    return tuple(of(one) for one in Transport)


def of(which: Transport) -> Availability:
    """One transport, whichever is chosen."""
    if which not in transport.possible():
        needed = "Windows" if which is Transport.HYPERV else "Linux"
        return Availability(which, False, f"it needs {needed}, and this is {sys.platform}")
    try:
        return _LOOK[which]()
    except (HvsockError, OSError) as error:
        return Availability(which, False, str(error), _CURES.get(which))


def _fabric() -> Availability:
    from hvsock.hybrid.listening import is_served

    folder = paths.partition_folder()
    if not paths.may_enter(folder):
        return Availability(Transport.FABRIC, False, f"this user may not enter {folder}", paths.LET_IN)
    if not is_served(folder, paths.STREAM_SOCKET):
        return Availability(Transport.FABRIC, False, f"no broker is in {folder}", _CURES[Transport.FABRIC])
    return Availability(Transport.FABRIC, True, f"a broker is in {folder}")


def _vsock() -> Availability:
    """The file tells that the kernel speaks it; who is at the other end, a connect has to tell."""
    if not os.path.exists(VSOCK_DEVICE):
        raise FileNotFoundError(errno.ENOENT, "the kernel does not speak AF_VSOCK", VSOCK_DEVICE)
    from hvsock.machines import known

    role = "a host, as the configuration says" if known.is_host() else "a guest, if it has a device"
    return Availability(Transport.VSOCK, True, f"the kernel speaks AF_VSOCK; this machine is {role}")


def _hybrid() -> Availability:
    from hvsock.machines import known

    vms = [vm for vm in known.vms() if vm.path is not None]
    if not vms:
        return Availability(Transport.HYBRID, False, "no VM with a path is known", known.where_to_write("vms"))
    there = [vm for vm in vms if vm.path is not None and paths.is_socket(vm.path)]
    found = f"{len(there)} of {len(vms)} VMs have a socket at their path"
    if there:
        return Availability(Transport.HYBRID, True, found)
    return Availability(Transport.HYBRID, False, found, "start their VMMs, which make them")


def _hyperv() -> Availability:
    if not hasattr(socket, "AF_HYPERV"):
        return Availability(Transport.HYPERV, False, "this Python has no AF_HYPERV", "use Python 3.12 or newer")
    return Availability(Transport.HYPERV, True, "Python has AF_HYPERV")


_LOOK: Final[dict[Transport, Callable[[], Availability]]] = {
    Transport.FABRIC: _fabric,
    Transport.VSOCK: _vsock,
    Transport.HYBRID: _hybrid,
    Transport.HYPERV: _hyperv,
}
_CURES: Final = {
    Transport.FABRIC: "start one with: hvsock up",
    Transport.VSOCK: "load the module vsock, and the one of this machine's device, or vhost_vsock on a host",
}
