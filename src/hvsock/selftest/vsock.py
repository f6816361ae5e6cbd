"""This kernel's AF_VSOCK, for checks: connections of this machine to itself (vsock_loopback).

Who is at the other end of a guest's device, no check knows, and none is connected to.
"""

from __future__ import annotations

import os
import sys
from typing import Final

if sys.platform != "linux":
    raise ImportError("AF_VSOCK needs Linux")

from hvsock.addresses import HV_GUID_LOOPBACK, SERVICE_WILDCARD, ServiceId, VmId
from hvsock.errors import NotFoundError, NotReadyError
from hvsock.sockets import aio
from hvsock.sockets.vsock.socket import socket
from hvsock.testing import Features
from hvsock.transport import Transport

from .ground import Ground

FIRST_PORT: Final = 1 << 30
"""Ports are taken from here on, at random: programs have lower ones."""
FEATURES: Final = Features(resets=False, delivers_before_reset=False)
"""The kernel shows a reset as an end of stream."""


def fresh_service() -> ServiceId:
    """A port that nobody has, in all likelihood."""
    return ServiceId.from_port(FIRST_PORT | int.from_bytes(os.urandom(3)))


def ground() -> Ground:
    """This machine, host or guest. The caller closes it, which does nothing.

    Raises:
        NotReadyError: the kernel has no AF_VSOCK, or no connections within the machine.
    """
    try:
        with socket() as trial:
            trial.bind((HV_GUID_LOOPBACK, SERVICE_WILDCARD))
    except OSError as error:
        raise NotReadyError(
            f"AF_VSOCK cannot be checked within this machine: {error.strerror}; run: modprobe vsock_loopback"
        ) from None

    def find_vm(name: str) -> VmId:
        raise NotFoundError(f"no VM is called {name!r}")

    return Ground(Transport.VSOCK, socket, aio, fresh_service, None, {}, find_vm, features=FEATURES)
