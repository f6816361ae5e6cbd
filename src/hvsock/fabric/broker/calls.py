"""The methods of management, each a function of the broker, the client and its parameters.

Methods marked *host* are for processes of the host partition; those marked *admin* for the fabric's owner,
root and its admin group among them. The others are open to every partition, guests too.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hvsock.addresses import SERVICE_WILDCARD, ServiceId, VmId, describe_vm_id, parse_service_id, parse_vm_id
from hvsock.errors import HvsockError, NotFoundError, RefusedError, UsageError
from hvsock.fabric.messages import MAX_REPLY_BYTES, Reply
from hvsock.registry.entries import MAX_UNIX_ID
from hvsock.topology import decision
from hvsock.topology.decision import Grant
from hvsock.topology.partitions import CID_MAX, MAX_PARTITION_NAME_CHARACTERS, NO_CID, Kind, Partition
from hvsock.topology.refusals import Refusal

from .refusals import text_for

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

if TYPE_CHECKING:
    from .broker import Broker
    from .clients import Client

Method = Callable[["Broker", "Client", dict[str, Any]], Any]

MAX_FAILURE_CHARACTERS: Final = 1000
"""Longest text of an error; longer ones are cut."""


def serve(broker: Broker, client: Client, call: dict[str, Any]) -> Reply:
    """Run one call.

    Raises:
        HvsockError: what the method refuses.
    """
    method = _METHODS.get(call["method"])
    if method is None:
        raise UsageError(f"this broker has no method {call['method']!r}; is it of another version?")
    body = json.dumps(method(broker, client, call), ensure_ascii=False).encode(errors="replace")
    if len(body) > MAX_REPLY_BYTES:
        raise HvsockError(f"the answer has {len(body)} bytes; {MAX_REPLY_BYTES} is the most")
    return Reply(0, body)


def failure(error: HvsockError) -> Reply:
    """The reply that carries `error` to the caller."""
    value = {"error": type(error).__name__, "text": str(error)[:MAX_FAILURE_CHARACTERS]}
    return Reply(errno.EINVAL, json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _text(call: dict[str, Any], name: str) -> str | None:
    value = call.get(name)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{name} is text, not {type(value).__name__}")
    return value


def _required(call: dict[str, Any], name: str) -> str:
    value = _text(call, name)
    if value is None:
        raise UsageError(f"{name} is missing")
    return value


def _whole(call: dict[str, Any], name: str, most: int) -> int | None:
    value = call.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most):
        raise UsageError(f"{name} is a whole number, at most {most}")
    return value


def _group(call: dict[str, Any]) -> str | None:
    group = _text(call, "group") or None
    if group is not None and not (group.isprintable() and len(group) <= MAX_PARTITION_NAME_CHARACTERS):
        raise UsageError(f"a group's name is printable text of at most {MAX_PARTITION_NAME_CHARACTERS} characters")
    return group


def _host_only(client: Client) -> None:
    if client.gate.partition.kind is not Kind.HOST:
        raise RefusedError("only the host may do this, and this partition is not the host")


def _admin_only(broker: Broker, client: Client) -> None:
    _host_only(client)
    subject = client.subject
    if subject is not None and not broker.rules.owner.administers(subject):
        raise RefusedError(
            f"only the fabric's owner (user {broker.rules.owner.uid}), root and its admin group may do this, "
            f"and user {subject.uid} is none of them"
        )


def _partition(broker: Broker, text: str) -> Partition:
    """The partition that `text`, a VmId or a name, means to the host."""
    if text.lower() == Kind.HOST:
        return broker.tree.host
    vm_id = parse_vm_id(text)
    found = broker.tree.named(text) if vm_id is None else broker.tree.get(vm_id)
    if found is None:
        raise NotFoundError(f"no partition is called {text!r}; see: hvsock partition list")
    return found


def _show_partition(broker: Broker, partition: Partition) -> dict[str, Any]:
    parent = broker.tree.parent_of(partition)
    return {
        "name": partition.name,
        "id": partition.id,
        "kind": partition.kind,
        "parent": None if parent is None else parent.name,
        "group": partition.group,
        "cid": partition.cid,
        "folder": broker.folder.partition(partition),
    }


def _ping(broker: Broker, client: Client, call: dict[str, Any]) -> Any:
    """Who answers: the broker's process, and the partition that the caller speaks for."""
    partition = client.gate.partition
    return {"pid": os.getpid(), "partition": partition.name if partition.kind is Kind.HOST else None}


def _partition_create(broker: Broker, client: Client, call: dict[str, Any]) -> Any:
    """admin: make a partition; its folder is the answer's `folder`, its CID is `cid`."""
    _admin_only(broker, client)
    kind = _required(call, "kind")
    if kind not in (Kind.VM, Kind.CONTAINER):
        raise UsageError(f"a partition is a vm or a container, not {kind!r}")
    parent = _partition(broker, _text(call, "parent") or Kind.HOST)
    text = _text(call, "id")
    try:
        vm_id = VmId.new() if text is None else VmId(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    cid = _whole(call, "cid", CID_MAX)
    if cid == NO_CID:
        raise UsageError("the CID 0 is no partition's; leave it out to get a free one")
    partition = Partition(vm_id, _required(call, "name"), Kind(kind), parent.id, _group(call), cid or NO_CID)
    return _show_partition(broker, broker.add_partition(partition, _whole(call, "owner", MAX_UNIX_ID)))


def _partition_remove(broker: Broker, client: Client, call: dict[str, Any]) -> Any:
    """admin: remove a partition; new connections are refused, and those of a VM are reset by its device."""
    _admin_only(broker, client)
    partition = _partition(broker, _required(call, "name"))
    shown = _show_partition(broker, partition)
    broker.remove_partition(partition)
    return shown


def _partition_list(broker: Broker, client: Client, call: dict[str, Any]) -> Any:
    """host: all partitions, parents before children."""
    _host_only(client)
    return [_show_partition(broker, partition) for partition in broker.tree]


def _resolve(broker: Broker, client: Client, call: dict[str, Any]) -> Any:
    """The ids that names mean; the names of partitions are looked up for the host and for a group's members."""
    vm, service = _text(call, "vm"), _text(call, "service")
    asking = client.gate.partition
    vm_id = cid = None
    if vm is not None:
        found = broker.tree.named(vm)
        related = found is not None and (
            asking.kind is Kind.HOST
            or found.parent == asking.id
            or (asking.group is not None and asking.group == found.group)
        )
        if found is None or not related:
            raise NotFoundError(f"no partition is called {vm!r}; see: hvsock partition list")
        vm_id, cid = found.id, found.cid
    service_id = None if service is None else broker.services.find(service)
    return {"vm_id": vm_id, "cid": cid, "service_id": service_id}


def _services(broker: Broker, client: Client, call: dict[str, Any]) -> Any:
    """The services that are registered and enabled, with their port aliases, and what is denied of them."""
    asking = client.gate.partition
    broker.look()
    found = ((entry, entry.service().settings_for(asking.id)) for entry in broker.services.entries())
    return [
        {
            "id": entry.id,
            "name": entry.name,
            "port_alias": entry.port_alias,
            **({"denied": sorted(settings.denied)} if settings.denied else {}),
        }
        for entry, settings in found
        if settings.enabled
    ]


def _explain(broker: Broker, client: Client, call: dict[str, Any]) -> Any:
    """Why a connection would work or not, step by step; from another partition than the own: host.

    A guest learns what its connect would: the errno and no reason, no step and no name.
    """
    rules = broker.rules
    source_text = _text(call, "source")
    source = client.gate.partition if source_text is None else _partition_of(broker, client, source_text)
    vm, service = _required(call, "vm"), _required(call, "service")
    vm_id, service_id = parse_vm_id(vm), parse_service_id(service)
    request = decision.Request(
        source,
        _partition_of(broker, client, vm).id if vm_id is None else vm_id,
        broker.services.real(broker.services.find(service) if service_id is None else service_id),
        _whole(call, "type", MAX_UNIX_ID) or socket.SOCK_STREAM,
        bool(call.get("passthru")),
        client.subject,
    )
    while isinstance(verdict := rules.connect(request), Grant) and not broker.listeners.alive(verdict.listener):
        broker.listeners.remove(verdict.listener)
    checks = rules.explain_connect(request)
    refusal = checks[-1].refusal
    on_host = client.gate.partition.kind is Kind.HOST
    return {
        "source": source.name if on_host else None,
        "vm_id": request.vm_id,
        "vm": describe_vm_id(request.vm_id),
        "service_id": request.service_id,
        "ok": refusal is None,
        "guest_decides": isinstance(verdict, Grant) and verdict.listener.device,
        "error": None if refusal is None else _show_refusal(client, refusal),
        "checks": [
            {"question": check.question, "found": check.found, "ok": check.refusal is None}
            for check in checks
            if on_host
        ],
    }


def _partition_of(broker: Broker, client: Client, text: str) -> Partition:
    _host_only(client)
    return _partition(broker, text)


def _show_refusal(client: Client, refusal: Refusal) -> dict[str, Any]:
    partition = client.gate.partition
    return {
        "errno": refusal.errno,
        "name": errno.errorcode.get(refusal.errno, str(refusal.errno)),
        "reason": refusal.reason.value if partition.kind is Kind.HOST else None,
        "text": text_for(partition, refusal),
    }


def _status(broker: Broker, client: Client, call: dict[str, Any]) -> Any:
    """host: what there is and what happened: partitions, services with their counters.

    What belongs to services that are not registered, or not any more, is in one row, the last one; the
    counts of a service that was unregistered come back with it.
    """
    _host_only(client)
    broker.look()
    broker.listeners.sweep()
    open_by_row, open_by_partition = broker.connections.sweep()
    listeners: Counter[ServiceId] = Counter()
    listening: Counter[VmId] = Counter()
    for listener in broker.listeners:
        if listener.listening and not listener.device:
            listeners[listener.service_id] += 1
            listening[listener.partition] += 1
    services = []
    for entry in broker.services.entries():
        services.append(
            {
                "id": entry.id,
                "name": entry.name,
                "inbox": entry.inbox,
                "listeners": listeners.pop(entry.id, 0),
                "open": open_by_row.pop(broker.counters.row_of(entry.id), 0),
                **broker.counters.report(entry.id),
            }
        )
    services.append(
        {
            "id": SERVICE_WILDCARD,
            "name": "(not registered)",
            "inbox": False,
            "listeners": listeners.total(),
            "open": open_by_row.total(),
            **broker.counters.report(SERVICE_WILDCARD),
        }
    )
    return {
        "folder": broker.folder.path,
        "pid": os.getpid(),
        "uptime_seconds": round(broker.reactor.clock() - broker.started, 3),
        "transport": "fabric",
        "connecting": len(broker.gates.clients()) - 1,
        "undelivered": len(broker.deliveries),
        "bad_requests": broker.bad_requests,
        "partitions": [
            {
                **_show_partition(broker, partition),
                "listeners": listening[partition.id],
                "open": open_by_partition[partition.id],
                "device": partition.id in broker.listeners.devices,
            }
            for partition in broker.tree
        ],
        "services": services,
    }


_METHODS: dict[str, Method] = {
    "ping": _ping,
    "partition.create": _partition_create,
    "partition.remove": _partition_remove,
    "partition.list": _partition_list,
    "resolve": _resolve,
    "services": _services,
    "explain": _explain,
    "status": _status,
}
