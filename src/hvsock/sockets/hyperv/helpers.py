"""Shortcuts around the socket class on Windows: names instead of GUIDs, and waiting for services."""

from __future__ import annotations

import socket as _stdlib

from hvsock.addresses import Address
from hvsock.errors import UsageError
from hvsock.sockets.patience import AddressLike, connect_patiently
from hvsock.windows import names

from .socket import socket


def resolve(address: AddressLike, partition: str | None = None) -> Address:
    """The address that somebody wrote, with names looked up in this Windows.

    Args:
        address: ``hvsocket://VM/SERVICE``, or the pair of its halves. VM is a GUID, a word (parent, children,
            loopback, any, silohost) or a VM's name; SERVICE is a GUID, a port or a service's name.
        partition: there are no partition folders on Windows; None.

    Raises:
        UsageError: it is not an address, or `partition` is given.
        NotFoundError: no VM or service has that name, or none that this user may see.
    """
    if partition is not None:
        raise UsageError("Windows has no partition folders: with the hyperv transport, partition is None")
    return names.resolve(address)


def create_connection(
    address: AddressLike,
    timeout: float | None = None,
    *,
    retry: bool = False,
    type: int = _stdlib.SOCK_STREAM,
    partition: str | None = None,
) -> socket:
    """Connect to a service; names are looked up.

    Args:
        address: ``hvsocket://VM/SERVICE`` or the pair.
        timeout: seconds for the whole of it, and the time-out of the socket; None for no limit.
        retry: try again until the service is there, or `timeout` is over.
        type: SOCK_STREAM.
        partition: None.

    Raises:
        OSError: what connect raises; with `retry`, what the last try raised that had the time for an answer.
        UsageError, NotFoundError: the address, as :func:`resolve` says.
    """
    return connect_patiently(
        lambda: socket(type=type, partition=partition), lambda: resolve(address), timeout, retry
    )


def create_server(
    address: AddressLike,
    *,
    backlog: int = 128,
    type: int = _stdlib.SOCK_STREAM,
    partition: str | None = None,
) -> socket:
    """A listening socket; names are looked up.

    Args:
        address: ``hvsocket://VM/SERVICE`` or the pair; VM is any, children, parent, loopback, a VmId or a name.
        backlog: connections that may wait to be accepted.
        type: SOCK_STREAM.
        partition: None.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError: the address, as :func:`resolve` says.
    """
    sock = socket(type=type, partition=partition)
    try:
        sock.bind(resolve(address))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def wait_for_service(address: AddressLike, timeout: float | None = None, *, partition: str | None = None) -> None:
    """Wait until a connect to `address` succeeds; it connects, and closes that at once, as there is nobody to ask.

    Args:
        address: as for :func:`resolve`.
        timeout: seconds; None for no limit.
        partition: None.

    Raises:
        OSError: what the last try raised, when `timeout` was over, or at once what waiting does not help against.
        UsageError, NotFoundError: the address, as :func:`resolve` says.
    """
    create_connection(address, timeout, retry=True, partition=partition).close()
