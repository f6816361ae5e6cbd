"""The class `hvsock.socket` of this process: that of the transport which HVSOCK_TRANSPORT chooses."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hvsock import transport
from hvsock.transport import Transport

__all__ = ["socket"]

if sys.platform == "win32":
    transport.chosen()  # says what is wrong with HVSOCK_TRANSPORT
    from .hyperv.socket import socket
elif TYPE_CHECKING or transport.chosen() is Transport.FABRIC:
    from .socket import socket
else:
    from .vsock.socket import socket
