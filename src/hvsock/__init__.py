"""Hyper-V sockets for everybody: a service under a GUID, a socket by (VmId, ServiceId), on every machine.

The names are those of CPython's socket module on Windows (AF_HYPERV, HV_GUID_*, HVSOCKET_*), and
``import hvsock as socket`` is meant to be all that a program needs to change: what is not in this module
is looked up in the standard one.

    >>> import hvsock
    >>> str(hvsock.Address(hvsock.HV_GUID_PARENT, hvsock.ServiceId.from_port(2761)))
    'hvsocket://parent/2761'
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .addresses import (
    HV_GUID_BROADCAST,
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_VSOCK_TEMPLATE,
    HV_GUID_WILDCARD,
    HV_GUID_ZERO,
    Address,
    ServiceId,
    VmId,
)
from .constants import (
    AF_HYPERV,
    HV_PROTOCOL_RAW,
    HVSOCKET_ADDRESS_FLAG_PASSTHRU,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HVSOCKET_CONNECTED_SUSPEND,
    HVSOCKET_CONTAINER_PASSTHRU,
    HVSOCKET_HIGH_VTL,
)
from .errors import (
    BusyError,
    DuplicateError,
    HvsockError,
    LostError,
    NegotiationError,
    NoFabricError,
    NotFoundError,
    NotReadyError,
    ProtocolError,
    RefusedError,
    RemoteError,
    StateError,
    UsageError,
)

if TYPE_CHECKING:
    from socket import SHUT_RD, SHUT_RDWR, SHUT_WR, SO_ERROR, SOCK_SEQPACKET, SOCK_STREAM, SOL_SOCKET

    if sys.platform == "linux":
        from .sockets.aio import open_connection, start_server
        from .sockets.helpers import create_connection, create_server, resolve, socketpair, wait_for_service
        from .sockets.plain import to_plain
        from .sockets.socket import socket
    elif sys.platform == "win32":
        from .sockets.hyperv.aio import open_connection, start_server
        from .sockets.hyperv.helpers import create_connection, create_server, resolve, wait_for_service
        from .sockets.hyperv.socket import socket

# Loaded on first use, so that `import hvsock` is quick.
_LAZY = {
    "create_connection": "sockets.helpers",
    "create_server": "sockets.helpers",
    "open_connection": "sockets.aio",
    "resolve": "sockets.helpers",
    "socket": "sockets.chosen",
    "socketpair": "sockets.helpers",
    "start_server": "sockets.aio",
    "to_plain": "sockets.plain",
    "wait_for_service": "sockets.helpers",
}
if sys.platform == "win32":
    _LAZY |= {
        "create_connection": "sockets.hyperv.helpers",
        "create_server": "sockets.hyperv.helpers",
        "open_connection": "sockets.hyperv.aio",
        "resolve": "sockets.hyperv.helpers",
        "start_server": "sockets.hyperv.aio",
        "wait_for_service": "sockets.hyperv.helpers",
    }

__all__ = [
    "AF_HYPERV",
    "HVSOCKET_ADDRESS_FLAG_PASSTHRU",
    "HVSOCKET_CONNECTED_SUSPEND",
    "HVSOCKET_CONNECT_TIMEOUT",
    "HVSOCKET_CONNECT_TIMEOUT_MAX",
    "HVSOCKET_CONTAINER_PASSTHRU",
    "HVSOCKET_HIGH_VTL",
    "HV_GUID_BROADCAST",
    "HV_GUID_CHILDREN",
    "HV_GUID_LOOPBACK",
    "HV_GUID_PARENT",
    "HV_GUID_SILOHOST",
    "HV_GUID_VSOCK_TEMPLATE",
    "HV_GUID_WILDCARD",
    "HV_GUID_ZERO",
    "HV_PROTOCOL_RAW",
    "SHUT_RD",
    "SHUT_RDWR",
    "SHUT_WR",
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "SOL_SOCKET",
    "SO_ERROR",
    "Address",
    "BusyError",
    "DuplicateError",
    "HvsockError",
    "LostError",
    "NegotiationError",
    "NoFabricError",
    "NotFoundError",
    "NotReadyError",
    "ProtocolError",
    "RefusedError",
    "RemoteError",
    "ServiceId",
    "StateError",
    "UsageError",
    "VmId",
    "__version__",
    "create_connection",
    "create_server",
    "open_connection",
    "resolve",
    "socket",
    "socketpair",
    "start_server",
    "to_plain",
    "wait_for_service",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    elif name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        try:
            value = getattr(importlib.import_module("socket"), name)
        except AttributeError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
