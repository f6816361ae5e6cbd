"""A fabric of its own, for checks: it needs nothing, and leaves nothing behind."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_PARENT, ServiceId, VmId
from hvsock.fabric import client
from hvsock.sockets import aio
from hvsock.sockets.socket import socket
from hvsock.testing.fabric import EmbeddedFabric, PartitionHandle, fabric
from hvsock.transport import Transport

from .ground import Ground, Way


def fresh_service(made: EmbeddedFabric) -> ServiceId:
    """A service that is registered in a fabric for one check."""
    service = ServiceId.new()
    return made.register(f"selftest {service[:8]}", service).id


def ground() -> Ground:
    """A host and a VM of it. The caller closes it."""
    with ExitStack() as stack:
        made = stack.enter_context(fabric())
        vm = made.create_partition("selftest")

        def vms() -> list[PartitionHandle]:
            told = client.call(made.host.folder, "partition.list")
            return [
                PartitionHandle(one["name"], VmId(one["id"]), one["folder"]) for one in told if one["kind"] == "vm"
            ]

        def find_vm(name: str) -> VmId:
            return client.resolve((name, "1"), made.host.folder).vm_id

        on_host, in_vm = (partial(socket, partition=one.folder) for one in (made.host, vm))
        return Ground(
            Transport.FABRIC,
            on_host,
            aio,
            partial(fresh_service, made),
            made.registry,
            {"the fabric": vms},
            find_vm,
            {
                "a VM connects to its host": Way(in_vm, on_host, HV_GUID_CHILDREN, HV_GUID_PARENT),
                "a host connects to its VM": Way(on_host, in_vm, HV_GUID_PARENT, vm.id),
            },
            partition=made.host.folder,
            stack=stack.pop_all(),
        )
