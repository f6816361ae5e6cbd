"""The broker's side of bind and listen."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, Final

from hvsock.addresses import HV_GUID_WILDCARD, SERVICE_WILDCARD, Address, ServiceId
from hvsock.fabric import messages
from hvsock.fabric.messages import Flag, Reply, Request
from hvsock.topology.partitions import Kind, Partition
from hvsock.topology.refusals import Reason, Refusal

from .listeners import TYPES

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: it passes descriptors over AF_UNIX")

if TYPE_CHECKING:
    from .broker import Broker
    from .clients import Client

DEVICE_ADDRESS: Final = Address(HV_GUID_WILDCARD, SERVICE_WILDCARD)
"""What the listener of a device is bound to; no other one can be."""


def bind(broker: Broker, client: Client, partition: Partition, request: Request) -> None:
    """Make the bound socket and send it to the client, or refuse."""
    assert request.address is not None, "a bind has an address"
    if request.flags & Flag.DEVICE:
        _bind_device(broker, client, partition, request)
        return
    rules = broker.rules
    address = Address(request.address.vm_id, broker.services.real(request.address.service_id))
    ask = rules.bind
    if address.service_id == SERVICE_WILDCARD:
        address = Address(address.vm_id, ServiceId.new())
        ask = rules.bind_fresh
    refusal = (
        _bad_type(request)
        or ask(partition, address.vm_id, address.service_id, client.subject)
        or _taken(broker, partition, address)
        or _make(broker, client, partition, request, address)
    )
    if refusal is not None:
        _refuse(broker, client, address, refusal)


def _bind_device(broker: Broker, client: Client, partition: Partition, request: Request) -> None:
    """Make the listener of the device that serves a VM: one for all its services; in the host, the way up."""
    refusal = None
    if partition.kind is Kind.HOST and not _administers(broker, client):
        text = "the way up of a fabric is its owner's"
        refusal = Refusal(errno.EACCES, Reason.DENIED, text)
    elif partition.kind is Kind.CONTAINER or request.type != socket.SOCK_STREAM:
        text = f"a device serves a VM, by a SOCK_STREAM socket; {partition.name!r} is a {partition.kind}"
        refusal = Refusal(errno.EINVAL, Reason.BAD_REQUEST, text)
    elif broker.listeners.in_use(partition.id, DEVICE_ADDRESS):
        what = "a way up" if partition.kind is Kind.HOST else "a device"
        text = f"{what} serves {partition.name!r} already; end that one first"
        refusal = Refusal(errno.EADDRINUSE, Reason.IN_USE, text)
    refusal = refusal or _no_room(broker, partition) or _make(broker, client, partition, request, DEVICE_ADDRESS)
    if refusal is None:
        broker.notices.watch()
    else:
        _refuse(broker, client, DEVICE_ADDRESS, refusal)


def _administers(broker: Broker, client: Client) -> bool:
    return client.subject is not None and broker.rules.owner.administers(client.subject)


def listen(broker: Broker, client: Client, partition: Partition, request: Request) -> None:
    """Let connects reach a bound socket from now on, or refuse."""
    listener = broker.listeners.get(request.token)
    if listener is None or listener.partition != partition.id:
        text = "the socket's binding is gone: its partition or the fabric was removed; bind again"
        client.refuse(Refusal(errno.EINVAL, Reason.BAD_REQUEST, text))
        return
    refusal = broker.rules.listen(partition, listener.vm_id, listener.service_id)
    if refusal is None:
        try:
            broker.listeners.mark_listening(listener)
        except OSError as error:
            refusal = _short(error)
    if refusal is None:
        client.answer(Reply(0))
    else:
        _refuse(broker, client, Address(listener.vm_id, listener.service_id), refusal)


def _refuse(broker: Broker, client: Client, address: Address, refusal: Refusal) -> None:
    broker.counters.ended(broker.row_of(address.service_id), refusal.reason)
    client.refuse(refusal)


def _make(
    broker: Broker, client: Client, partition: Partition, request: Request, address: Address
) -> Refusal | None:
    pid, uid, _ = client.credentials()
    try:
        listener, bound = broker.listeners.bind(partition.id, address, request.type, uid, pid, request.flags)
    except OSError as error:
        return _short(error)
    reply = Reply(0, messages.pack_binding(listener.id, address.service_id))
    with bound:
        try:
            # 44 bytes into an empty buffer: sent whole, or not at all
            socket.send_fds(client.sock, [reply.pack()], [bound.fileno()], socket.MSG_DONTWAIT)
        except (BrokenPipeError, ConnectionResetError):
            broker.listeners.remove(listener)  # the client is gone
        except OSError as error:
            broker.listeners.remove(listener)
            return _short(error)
    client.drop()
    return None


def _bad_type(request: Request) -> Refusal | None:
    if request.type in TYPES:
        return None
    return Refusal(errno.EINVAL, Reason.BAD_REQUEST, f"no socket type {request.type}")


def _taken(broker: Broker, partition: Partition, address: Address) -> Refusal | None:
    if broker.listeners.in_use(partition.id, address):
        return Refusal(errno.EADDRINUSE, Reason.IN_USE, f"{address} is bound in {partition.name!r} already")
    return _no_room(broker, partition)


def _no_room(broker: Broker, partition: Partition) -> Refusal | None:
    if not broker.listeners.has_room(partition.id):
        text = f"{partition.name!r} has as many bound sockets as it may have; close some first"
        return Refusal(errno.ENOBUFS, Reason.LIMIT, text)
    return None


def _short(error: OSError) -> Refusal:
    why = os.strerror(error.errno or errno.EIO)
    return Refusal(errno.ENOBUFS, Reason.LIMIT, f"the broker is short of something: {why}")
