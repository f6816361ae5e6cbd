"""Checks of kernel vsock; they connect to nothing and listen nowhere, unless it is the chosen transport."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

from hvsock import transport
from hvsock.availability import VSOCK_DEVICE
from hvsock.errors import HvsockError
from hvsock.fabric import paths
from hvsock.transport import Transport

from . import kernel
from .check import Answer, Group, asks, no, usable, yes

VHOST_DEVICE: Final = "/dev/vhost-vsock"
_OF_LINUX: Final = "AF_VSOCK is in Linux"


def _need_linux() -> None:
    if sys.platform != "linux":
        raise HvsockError(_OF_LINUX)


@asks("Does the kernel speak AF_VSOCK?")
def _vsock() -> Answer:
    _need_linux()
    return kernel.answer(kernel.VSOCK)


@asks("Is there the device that tells a guest its CID?")
def _device() -> Answer:
    _need_linux()
    cure = f"as root: modprobe {kernel.VSOCK.name}; in a container, pass {VSOCK_DEVICE} in"
    return _node(VSOCK_DEVICE, os.R_OK, cure)


@asks("Is there a way between this guest and its host, or this host and its guests?")
def _to_host() -> Answer:
    _need_linux()
    from hvsock.machines import known

    if known.is_host():
        return kernel.answer(kernel.VHOST)
    return kernel.answer(kernel.VIRTIO, kernel.HYPERV, kernel.VMCI)


@asks("Is there a loopback?")
def _loopback() -> Answer:
    _need_linux()
    return kernel.answer(kernel.LOOPBACK)


@asks("Can this machine have guests by vhost-vsock?")
def _vhost() -> Answer:
    _need_linux()
    found = kernel.answer(kernel.VHOST)
    if not found.ok:
        return found
    return _node(VHOST_DEVICE, os.R_OK | os.W_OK, f"as root: chgrp kvm {VHOST_DEVICE}, and join that group")


def _node(path: str, mode: int, cure: str) -> Answer:
    """Whether a device is there and this user may open it; it is not opened."""
    if not os.path.exists(path):
        return no(f"no: {os.strerror(errno.ENOENT)}: {path}", cure)
    if not os.access(path, mode):
        return no(f"no: this user may not open {path}", cure)
    return yes(f"yes: {path}")


@asks(
    "Can a socket of it be made?",
    cure=f"as root: modprobe {kernel.VSOCK.name}, and the one of this guest's device",
)
def _socket() -> Answer:
    from hvsock.sockets.chosen import socket

    socket().close()
    return yes(f"yes, and {transport.TRANSPORT_VARIABLE} chooses it")


@asks("Is it known which VM has which CID?")
def _guests() -> Answer:
    from hvsock.config import files
    from hvsock.config.settings import Guests
    from hvsock.machines import known

    settings = files.settings()
    if settings.guests is None:
        return yes("not needed: this machine is a guest")
    try:
        number = sum(vm.cid is not None for vm in known.vms())
    except HvsockError as error:
        by_virsh = settings.guests is Guests.LIBVIRT
        cure = f"have this work: virsh --connect {settings.libvirt} list" if by_virsh else "correct it"
        return no(f"no: {error}", cure)
    if not number and settings.guests is Guests.TABLE:
        return no("no: no VM with a cid is known", known.where_to_write("vms"))
    return yes(f"yes: {number} now, by {settings.guests}")


@asks(
    "Does the host's broker answer?",
    cure="it takes a device of hvsock's (hvsock vm start, hvsock device); on other hosts services go by ports",
)
def _host() -> Answer:
    from hvsock.fabric import client
    from hvsock.machines import known

    if known.is_host():
        return yes("none is needed: this machine is a host")
    client.call(paths.partition_folder(), "ping")
    return yes("yes")


GROUP: Final = Group(
    Transport.VSOCK,
    (_vsock, usable(Transport.VSOCK), _to_host),
    when_chosen=(_socket, _guests),
    of_use_when_chosen=(_host,),
    optional=(_device, _loopback, _vhost),
)
