"""The broker's side of bind and listen."""

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING, Final

from hvsock.addresses import HV_GUID_LOOPBACK, SERVICE_WILDCARD, Address, ServiceId
from hvsock.fabric import messages
from hvsock.fabric.messages import Reply, Request
from hvsock.topology.decision import Reason, Refusal
from hvsock.topology.matching import may_bind
from hvsock.topology.partitions import Partition

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it passes descriptors over AF_UNIX")

if TYPE_CHECKING:
    from .broker import Broker
    from .clients import Client

MAX_LISTENERS_PER_PARTITION: Final = 16_384
"""Bound sockets in one partition: as many as the registry holds services. Each is two files of the broker."""
_TYPES: Final = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)


def bind(broker: Broker, client: Client, partition: Partition, request: Request, address: Address) -> None:
    """Make the bound socket and send it to the client, or refuse."""
    address = Address(address.vm_id, broker.real_service(address.service_id))
    refusal = _verdict(broker, client, partition, request, address)
    if refusal is not None:
        broker.counters.ended(broker.row_of(address.service_id), refusal.reason)
        client.refuse(refusal.errno, refusal.text)
        return
    if address.service_id == SERVICE_WILDCARD:
        address = Address(address.vm_id, ServiceId.new())
    pid, uid, _ = client.credentials()
    try:
        listener, bound = broker.listeners.bind(partition.id, address, request.type, uid, pid)
    except OSError as error:
        client.refuse(errno.ENOBUFS, f"the broker cannot make a socket: {error.strerror}")
        return
    reply = Reply(0, messages.pack_binding(listener.id, address.service_id))
    with bound:
        try:
            # 48 bytes into an empty buffer: sent whole, or the client is gone
            socket.send_fds(client.sock, [reply.pack()], [bound.fileno()], socket.MSG_DONTWAIT)
        except OSError:
            broker.listeners.remove(listener)
    client.drop()


def _verdict(
    broker: Broker, client: Client, partition: Partition, request: Request, address: Address
) -> Refusal | None:
    if request.type not in _TYPES:
        return Refusal(errno.EINVAL, Reason.BAD_REQUEST, f"no socket type {request.type}")
    # a fresh id is nobody's service: any address will do, and loopback alone reaches it on the host
    wanted = address.vm_id if address.service_id != SERVICE_WILDCARD else HV_GUID_LOOPBACK
    if address.service_id == SERVICE_WILDCARD and not may_bind(broker.tree, partition, address.vm_id):
        wanted = address.vm_id
    refusal = broker.rules.bind(partition, wanted, address.service_id, client.subject)
    if refusal is not None:
        return refusal
    if address.service_id != SERVICE_WILDCARD and broker.listeners.in_use(partition.id, address):
        text = f"{address} is bound in {partition.name!r} already"
        return Refusal(errno.EADDRINUSE, Reason.IN_USE, text)
    if broker.listeners.per_partition[partition.id] >= MAX_LISTENERS_PER_PARTITION:
        broker.listeners.sweep()
        if broker.listeners.per_partition[partition.id] >= MAX_LISTENERS_PER_PARTITION:
            text = f"{partition.name!r} has {MAX_LISTENERS_PER_PARTITION} bound sockets already"
            return Refusal(errno.ENOBUFS, Reason.LIMIT, text)
    return None


def listen(broker: Broker, client: Client, partition: Partition, request: Request) -> None:
    """Let connects reach a bound socket from now on, or refuse."""
    listener = broker.listeners.get(request.token)
    if listener is None or listener.partition != partition.id:
        client.refuse(
            errno.EINVAL, "the socket's binding is gone: its partition or the fabric was removed; bind again"
        )
        return
    refusal = broker.rules.listen(partition, listener.vm_id, listener.service_id)
    if refusal is not None:
        broker.counters.ended(broker.row_of(listener.service_id), refusal.reason)
        client.refuse(refusal.errno, refusal.text)
        return
    broker.listeners.mark_listening(listener)
    client.answer(Reply(0))
