"""The transports that need no guest: the fabric, hybrid sockets against our own server, Windows over its fake."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import hvsock
from hvsock.addresses import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_SILOHOST,
    HV_GUID_WILDCARD,
    ServiceId,
    VmId,
)
from hvsock.fabric import client, paths
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.testing import Features
from hvsock.testing.fabric import fabric

assert sys.platform == "linux"

from benchmarks.pairs import MakePair, fabric_pair, throughput
from hvsock.selftest.hybrid import PatientSocket, configured
from tests.cli.helpers import PATIENCE, ended, line_of, started
from tests.windows.winsock import Machine, Windows, windows

from .hybrid import CID, hybrid_pair, hybrid_setting
from .probes import Lack, MakeSocket, Setting, Way, run_probes
from .streams import run_suite

RUNS: Final = 5
"""Measurements of throughput, of which the median counts."""
RATE_BYTES: Final = 128 << 20
"""Bytes of each."""
NO_CONTAINERS: Final = (
    "the fake has no containers, since no source tells what both ends of a connection of one are called on Windows"
)

Column = dict[str, Any]


@contextlib.contextmanager
def in_fabric() -> Iterator[EmbeddedFabric]:
    """A fabric, which sockets and child processes of this process are in."""
    before = os.environ.get(paths.FOLDER_VARIABLE)
    with fabric() as made:
        os.environ[paths.FOLDER_VARIABLE] = made.folder
        try:
            yield made
        finally:
            os.environ.pop(paths.FOLDER_VARIABLE)
            if before is not None:
                os.environ[paths.FOLDER_VARIABLE] = before


class Services:
    """Fresh services of a fabric."""

    def __init__(self, made: EmbeddedFabric) -> None:
        self._fabric = made
        self._ports = itertools.count(50_000)

    def port(self) -> ServiceId:
        """One of a port."""
        port = next(self._ports)
        return self._fabric.register(f"port {port}", ServiceId.from_port(port)).id

    def guid(self) -> ServiceId:
        """One of none."""
        return self._fabric.register(f"guid {next(self._ports)}").id


def sockets_of(partition: PartitionHandle) -> MakeSocket:
    """Makes sockets of a partition."""
    return lambda kind: hvsock.socket(type=kind, partition=partition.folder)


def fabric_setting(made: EmbeddedFabric) -> Setting:
    """A host, a VM of it, and a container."""
    web, box = made.create_partition("web01"), made.create_partition("box", "container")
    cid = client.call(made.host.folder, "resolve", vm="web01", service=None)["cid"]
    host, guest, inside = sockets_of(made.host), sockets_of(web), sockets_of(box)
    numbered = VmId.from_cid(cid)
    up, down, own = (HV_GUID_PARENT,) * 2, (web.id,) * 2, (HV_GUID_CHILDREN, HV_GUID_LOOPBACK)
    to_host = Way(guest, host, HV_GUID_CHILDREN, HV_GUID_PARENT, up, down)
    to_guest = Way(host, guest, HV_GUID_PARENT, web.id, down, up)
    alone = Way(host, host, HV_GUID_LOOPBACK, HV_GUID_LOOPBACK, own, own)
    to_box, silo = (box.id,) * 2, (HV_GUID_SILOHOST,) * 2
    services = Services(made)
    return Setting(
        {
            "connect_parent": to_host,
            "connect_loopback": alone,
            "connect_vm_id": to_guest,
            "connect_cid": Way(host, guest, HV_GUID_PARENT, numbered, (numbered,) * 2, up),
            "connect_silohost": Way(inside, host, HV_GUID_CHILDREN, HV_GUID_SILOHOST, silo, to_box),
            "listen_any": Way(guest, host, HV_GUID_WILDCARD, HV_GUID_PARENT, up, down),
            "listen_children": to_host,
            "listen_parent": to_guest,
            "listen_loopback": alone,
            "listen_vm_id": Way(guest, host, web.id, HV_GUID_PARENT, up, down),
            "listen_silohost": Way(host, inside, HV_GUID_SILOHOST, box.id, to_box, up),
        },
        to_host,
        to_guest,
        services.port,
        services.guid,
    )


def probe_fabric() -> dict[str, str]:
    """The probes over a fabric."""
    with in_fabric() as made:
        return run_probes(fabric_setting(made))


def probe_hyperv() -> dict[str, str]:
    """The probes over the fake of Winsock."""
    machine = Machine()
    vm = machine.add_vm()
    return run_probes(hyperv_setting(machine, windows(machine), windows(machine, vm), vm))


def run_fabric() -> Column:
    """The fabric."""
    checks = probe_fabric()
    with in_fabric() as made:
        return {"checks": {**run_suite(fabric_pair(made), Features()), **checks}, "throughput": 1.0}


def ratio_to_fabric(pair: MakePair, yardstick: MakePair) -> float:
    """Throughput over the fabric's, measured in turn."""
    found = [throughput(pair, RATE_BYTES) / throughput(yardstick, RATE_BYTES) for _ in range(RUNS)]
    return float(f"{statistics.median(found):.2g}")


def run_serve() -> Column:
    """The hybrid transport against our own server, for a partition of the fabric."""
    with in_fabric() as made, tempfile.TemporaryDirectory(prefix="hvsock-") as folder:
        web = made.create_partition("web01")
        services = Services(made)
        path = os.path.join(folder, "v")
        inside = sockets_of(web)

        def patient(kind: int) -> hvsock.socket:
            return PatientSocket(type=kind, partition=web.folder)

        with (
            started("hybrid", "serve", "web01", path) as process,
            configured(path, web.id, "hvsock"),
        ):
            assert line_of(process.stderr).startswith("hvsock: web01 is at ")
            checks = run_probes(hybrid_setting(patient, inside, web.id, services.port, services.guid))
            pair = partial(hybrid_pair, inside, web.id, services.port, PATIENCE)
            checks |= run_suite(pair, Features(resets=False, delivers_before_reset=False))
            rate = ratio_to_fabric(pair, fabric_pair(made))
            process.terminate()
            ended(process)
    return {"checks": checks, "throughput": rate}


def hyperv_setting(machine: Machine, host: Windows, guest: Windows, vm: VmId) -> Setting:
    """A host with Windows and a VM of it, as the fake has them."""

    def of(side: Windows) -> MakeSocket:
        return lambda kind: side.socket.socket(type=kind)

    here, there = of(host), of(guest)
    up, down, own = (HV_GUID_PARENT,) * 2, (vm,) * 2, (HV_GUID_CHILDREN, HV_GUID_LOOPBACK)
    to_host = Way(there, here, HV_GUID_CHILDREN, HV_GUID_PARENT, up, down)
    to_guest = Way(here, there, HV_GUID_PARENT, vm, down, up)
    alone = Way(here, here, HV_GUID_LOOPBACK, HV_GUID_LOOPBACK, own, own)
    ports = itertools.count(50_000)

    def port() -> ServiceId:
        service = ServiceId.from_port(next(ports))
        machine.registered.add(str(service))
        return service

    return Setting(
        {
            "connect_parent": to_host,
            "connect_loopback": alone,
            "connect_vm_id": to_guest,
            "connect_cid": Lack(here, "connect", VmId.from_cid(CID), errno.ENETUNREACH),
            "listen_any": Way(there, here, HV_GUID_WILDCARD, HV_GUID_PARENT, up, down),
            "listen_children": to_host,
            "listen_parent": to_guest,
            "listen_loopback": alone,
            "listen_vm_id": Way(there, here, vm, HV_GUID_PARENT, up, down),
        },
        alone,
        alone,
        port,
        machine.add_service,
        absent={"seqpacket_messages": errno.ESOCKTNOSUPPORT, "option_default": errno.ENOPROTOOPT},
        skipped=dict.fromkeys(("connect_silohost", "listen_silohost"), NO_CONTAINERS),
    )


def run_hyperv() -> Column:
    """The classes for Windows over the fake of Winsock."""
    machine = Machine()
    vm = machine.add_vm()
    host, guest = windows(machine), windows(machine, vm)
    service = machine.add_service()

    def pair() -> tuple[Any, Any]:
        with host.socket.socket() as listener:
            listener.bind((HV_GUID_CHILDREN, service))
            listener.listen()
            near = guest.socket.socket()
            near.connect((HV_GUID_PARENT, service))
            return near, listener.accept()[0]

    return {
        "checks": {**run_suite(pair, Features()), **probe_hyperv()},
        "throughput": None,
    }
