"""The class `hvsock.socket` of this process: that of the transport which is chosen."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from hvsock import transport, urls
from hvsock.transport import Transport

__all__ = ["class_for", "socket"]

if sys.platform == "win32":
    transport.chosen()  # says what is wrong with HVSOCK_TRANSPORT
    from .hyperv.socket import socket
elif TYPE_CHECKING or transport.chosen() is Transport.FABRIC:
    from .socket import socket
elif transport.chosen() is Transport.VSOCK:
    from .vsock.socket import socket
else:
    from .hybrid.socket import socket


def class_for(address: object) -> type[socket]:
    """The class of sockets for an address: that of this process, save for ``unix:`` URLs, which are hybrid."""
    if sys.platform == "win32" or not urls.is_hybrid(address):
        return socket
    from .hybrid.socket import socket as hybrid

    return hybrid
