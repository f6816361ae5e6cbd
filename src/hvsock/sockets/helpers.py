"""Shortcuts around the socket class: names instead of GUIDs, and waiting for services that are not there yet."""

from __future__ import annotations

import errno
import socket as _stdlib
import sys

from hvsock import names, transport, urls
from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, Address, ServiceId
from hvsock.constants import AF_HYPERV
from hvsock.errors import NoFabricError, NotFoundError, UsageError
from hvsock.fabric import client, paths
from hvsock.names import resolve as resolve
from hvsock.transport import Transport

from .chosen import class_for, socket
from .options import TYPES
from .patience import WORTH_WAITING, AddressLike, Patience, connect_patiently

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")


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
        address: a URL or the pair, as :func:`hvsock.resolve` takes them.
        timeout: seconds for the whole of it, and the time-out of the socket; None for no limit.
        retry: try again until the service is there, or `timeout` is over.
        type: SOCK_STREAM or SOCK_SEQPACKET.
        partition: the partition's folder to connect from; by default that of the process.

    Raises:
        OSError: what connect raises; with `retry`, what the last try raised that had the time for an answer.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    return connect_patiently(
        lambda: class_for(address)(type=type, partition=partition),
        lambda: names.resolve(address, partition),
        timeout,
        retry,
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
        address: a URL or the pair; VM is any, children, parent, loopback, a VmId or a name.
        backlog: connections that may wait to be accepted.
        type: SOCK_STREAM or SOCK_SEQPACKET.
        partition: the partition's folder to listen in; by default that of the process.

    Raises:
        OSError: what bind and listen raise.
        UsageError, NotFoundError, NoFabricError: the address, as :func:`hvsock.resolve` says.
    """
    sock = class_for(address)(type=type, partition=partition)
    try:
        sock.bind(names.resolve(address, partition))
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

    What listens in a guest its host does not know: there it connects, and closes that at once. So it does where
    there is no broker to ask, with hybrid sockets and on a host of kernel vsock.

    Args:
        address: a URL or the pair, as :func:`hvsock.resolve` takes them.
        timeout: seconds; None for no limit.
        partition: the partition's folder to ask from; by default that of the process.

    Raises:
        TimeoutError: `timeout` is over; the text says what was missing last.
        OSError: a connect to a guest failed for another reason than that nothing listens there yet.
        UsageError: it is not an address, or it is loopback in a guest, of which its host knows nothing.
    """
    if urls.is_hybrid(address) or not names.has_broker():
        create_connection(address, timeout, retry=True, partition=partition).close()
        return
    patience = Patience(timeout)
    folder = partition or paths.partition_folder()
    while True:
        try:
            target = names.resolve(address, partition)
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
