"""The class `hvsock.socket` of this process: that of the transport which HVSOCK_TRANSPORT chooses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hvsock import transport
from hvsock.transport import Transport

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

__all__ = ["socket"]

if TYPE_CHECKING or transport.chosen() is Transport.FABRIC:
    from .socket import socket
else:
    from .vsock.socket import socket
