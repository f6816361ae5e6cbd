"""The class of the hybrid transport, with a VM that a configuration names: a host's end of two columns."""

from __future__ import annotations

import errno
import socket as stdlib
import sys
from collections.abc import Callable
from typing import Any, Final

from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.sockets.hybrid.socket import socket as hybrid_socket

assert sys.platform == "linux"

from .probes import Lack, MakeSocket, Setting, Way

CID: Final = 3
"""Of the VM, in the configuration."""


def host(kind: int) -> Any:
    """A socket of the host."""
    return hybrid_socket(type=kind)


def hybrid_setting(
    calling: MakeSocket,
    serving: MakeSocket,
    vm_id: VmId,
    port_service: Callable[[], ServiceId],
    guid_service: Callable[[], ServiceId],
) -> Setting:
    """A VM, whose sockets `calling` and `serving` make, and its host."""
    numbered = VmId.from_cid(CID)
    up, down = (HV_GUID_PARENT,) * 2, (vm_id,) * 2
    to_host = Way(calling, host, HV_GUID_CHILDREN, HV_GUID_PARENT, up, down)
    to_guest = Way(host, serving, HV_GUID_PARENT, vm_id, down, up)
    return Setting(
        {
            "connect_parent": to_host,
            "connect_loopback": Lack(host, "connect", HV_GUID_LOOPBACK, errno.EADDRNOTAVAIL),
            "connect_vm_id": to_guest,
            "connect_cid": Way(host, serving, HV_GUID_PARENT, numbered, (numbered,) * 2, up),
            "connect_silohost": Lack(host, "connect", HV_GUID_SILOHOST, errno.EADDRNOTAVAIL),
            "listen_any": Way(calling, host, HV_GUID_WILDCARD, HV_GUID_PARENT, up, down),
            "listen_children": to_host,
            "listen_parent": to_guest,
            "listen_loopback": Lack(host, "bind", HV_GUID_LOOPBACK, errno.EADDRNOTAVAIL),
            "listen_vm_id": Way(calling, host, vm_id, HV_GUID_PARENT, up, down),
            "listen_silohost": Lack(host, "bind", HV_GUID_SILOHOST, errno.EADDRNOTAVAIL),
        },
        to_guest,
        to_host,
        port_service,
        guid_service,
        absent={"seqpacket_messages": errno.ESOCKTNOSUPPORT, "names_of_connectors": None},
    )


def hybrid_pair(
    serving: MakeSocket, vm_id: VmId, port_service: Callable[[], ServiceId], wait_seconds: float
) -> tuple[Any, Any]:
    """A connection of the host to the VM: (its end, the VM's)."""
    service = port_service()
    with serving(stdlib.SOCK_STREAM) as listener:
        listener.settimeout(wait_seconds)
        listener.bind((HV_GUID_PARENT, service))
        listener.listen()
        near = host(stdlib.SOCK_STREAM)
        try:
            near.settimeout(wait_seconds)
            near.connect((vm_id, service))
            far, _ = listener.accept()
        except BaseException:
            near.close()
            raise
    return near, far
