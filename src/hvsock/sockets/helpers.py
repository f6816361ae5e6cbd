"""Shortcuts around the socket class: names instead of GUIDs, and waiting for services that are not there yet."""

from __future__ import annotations

import errno
import socket as _stdlib
import sys
import time
from typing import Final

from hvsock import transport
from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, Address, ServiceId
from hvsock.constants import AF_HYPERV
from hvsock.errors import NoFabricError, NotFoundError, UsageError
from hvsock.fabric import client, paths
from hvsock.fabric.client import resolve as resolve
from hvsock.transport import Transport

from .chosen import socket
from .options import TYPES

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

FIRST_PAUSE_SECONDS: Final = 0.01
"""Pause after the first try in vain; it doubles up to LONGEST_PAUSE_SECONDS."""
LONGEST_PAUSE_SECONDS: Final = 0.25
"""So a service is noticed a quarter of a second after it came, at most."""

AddressLike = str | tuple[str, str]
"""``hvsocket://VM/SERVICE`` or the pair (VM, SERVICE); each half a GUID, a word, a port or a name."""

WORTH_WAITING: Final = {
    errno.ECONNREFUSED,  # nothing listens yet
    errno.ENETUNREACH,  # no broker yet
    errno.EHOSTUNREACH,  # no such partition yet
    errno.EACCES,  # not registered yet; a denial looks the same from here
    errno.ETIMEDOUT,
    errno.ENOBUFS,
}


class _Patience:
    """Growing pauses until a deadline."""

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pause = FIRST_PAUSE_SECONDS

    @property
    def left(self) -> float | None:
        """Seconds that are left, not below zero; None for no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def pause(self) -> bool:
        """Sleep; False when the time is over."""
        left = self.left
        if left == 0:
            return False
        time.sleep(self._pause if left is None else min(self._pause, left))
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return True


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
        type: SOCK_STREAM or SOCK_SEQPACKET.
        partition: the partition's folder to connect from; by default that of the process.

    Raises:
        OSError: what connect raises; with `retry`, what the last try raised.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    patience = _Patience(timeout)
    while True:
        sock = socket(type=type, partition=partition)
        try:
            target = client.resolve(address, partition)
            # a try of its own may take what is left, so that a late refusal is not turned into a time-out
            sock.settimeout(patience.left or (None if timeout is None else FIRST_PAUSE_SECONDS))
            sock.connect(target)
            sock.settimeout(timeout)
            return sock
        except (OSError, NotFoundError, NoFabricError) as error:
            sock.close()
            worth = isinstance(error, (NotFoundError, NoFabricError)) or (
                isinstance(error, OSError) and error.errno in WORTH_WAITING
            )
            if not (retry and worth and patience.pause()):
                raise
        except BaseException:
            sock.close()
            raise


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
        type: SOCK_STREAM or SOCK_SEQPACKET.
        partition: the partition's folder to listen in; by default that of the process.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    sock = socket(type=type, partition=partition)
    try:
        sock.bind(client.resolve(address, partition))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def socketpair(
    family: int | None = None, type: int = _stdlib.SOCK_STREAM, proto: int = 0
) -> tuple[socket, socket]:
    """Two connected sockets that look like a loopback connection; needs no broker.

    Args:
        family: None, AF_HYPERV, or AF_UNIX, which it is underneath.
        type: SOCK_STREAM or SOCK_SEQPACKET.
        proto: without meaning; the standard function has it.

    Raises:
        OSError: EAFNOSUPPORT: another family; ESOCKTNOSUPPORT: another type; EMFILE.
    """
    if family not in (None, AF_HYPERV, _stdlib.AF_UNIX):
        raise OSError(errno.EAFNOSUPPORT, "these are AF_HYPERV sockets; for others there is the socket module")
    if type not in TYPES:
        raise OSError(errno.ESOCKTNOSUPPORT, "AF_HYPERV has SOCK_STREAM, and here SOCK_SEQPACKET too")
    connector, accepted = (Address(HV_GUID_CHILDREN, ServiceId.new()) for _ in range(2))
    ends = _stdlib.socketpair(_stdlib.AF_UNIX, type)
    return (
        socket._established(ends[0].detach(), type, connector, accepted._replace(vm_id=HV_GUID_LOOPBACK)),
        socket._established(ends[1].detach(), type, accepted, connector._replace(vm_id=HV_GUID_LOOPBACK)),
    )


def wait_for_service(address: AddressLike, timeout: float | None = None, *, partition: str | None = None) -> None:
    """Wait until a connect to `address` would succeed; makes no connection, except to a guest of a VM.

    What listens in a guest its host does not know: there it connects, and closes that at once.

    Args:
        address: ``hvsocket://VM/SERVICE`` or the pair.
        timeout: seconds; None for no limit.
        partition: the partition's folder to ask from; by default that of the process.

    Raises:
        TimeoutError: `timeout` is over; the text says what was missing last.
        OSError: a connect to a guest failed for another reason than that nothing listens there yet.
        UsageError: it is not an address, or it is loopback in a guest, of which its host knows nothing.
    """
    patience = _Patience(timeout)
    folder = partition or paths.partition_folder()
    while True:
        try:
            target = client.resolve(address, partition)
            if target.vm_id == HV_GUID_LOOPBACK and transport.chosen() is Transport.VSOCK:
                raise UsageError("the host cannot tell what listens in this guest; try to connect, with retry")
            found = client.call(folder, "explain", vm=target.vm_id, service=target.service_id)
            if found["ok"]:
                if found.get("guest_decides"):
                    create_connection(target, patience.left, partition=partition).close()
                return
            missing = found["error"]["text"]
        except (NotFoundError, NoFabricError) as error:
            missing = str(error)
        except OSError as error:
            if error.errno not in WORTH_WAITING and not isinstance(error, TimeoutError):
                raise
            missing = error.strerror or str(error)
        if not patience.pause():
            raise TimeoutError(errno.ETIMEDOUT, f"the service is not there after {timeout:g} s: {missing}")
