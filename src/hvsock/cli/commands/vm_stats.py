"""`hvsock vm stats`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from hvsock.addresses import ServiceId
from hvsock.cli.names import open_registry
from hvsock.cli.output import Column, Table, joined, json_option, size_text
from hvsock.cli.watching import Page, show, watch_options
from hvsock.constants import VSOCK_BROKER_PORT, VSOCK_CID_HOST
from hvsock.device.reporting import read_report
from hvsock.errors import HvsockError, StateError, UsageError
from hvsock.vm.qemu import REPORT_SOCKET
from hvsock.vm.runs import State

from .vm import complete_vms, run_of

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

_CALLS: Final = {str(ServiceId.from_port(VSOCK_BROKER_PORT)): "(calls of the broker)"}


@click.command()
@click.argument("name", required=False, shell_complete=complete_vms)
@click.option("--socket", "path", metavar="PATH", help="Instead of a VM: the --report-path of its hvsock device.")
@watch_options
@json_option
def stats(name: str | None, path: str | None, watch: bool, interval: float, as_json: bool) -> None:
    """Show what the connections of the VM NAME move: in all, by service, and those that move most.

    FROM GUEST and TO GUEST are payload. STALLS counts how often the host's side had something for the guest and
    the guest no room. QUEUED is what waits for receive buffers of the guest.
    """
    if (name is None) == (path is None):
        raise UsageError("name a VM, or say where its device tells with --socket")

    def ask() -> dict[str, Any]:
        where = path
        if where is None:
            run = run_of(str(name))
            if run.record().state is State.STOPPED:
                raise StateError(f"the VM {name!r} is stopped; see: hvsock vm list")
            where = run.path(REPORT_SOCKET)
        return {"name": name, **_named(read_report(where))}

    show(ask, _page, watch=watch, interval=interval, as_json=as_json, passing=StateError)


def _named(found: dict[str, Any]) -> dict[str, Any]:
    """The report with the services' friendly names, where the registry can be read, else None."""
    names = dict(_CALLS)
    with contextlib.suppress(HvsockError), contextlib.closing(open_registry()) as registry:
        names.update((str(entry.id), entry.name) for entry in registry.entries())
    services = [{"id": key, "name": names.get(key), **one} for key, one in found["services"].items()]
    listed = [{**one, "name": names.get(one["service"])} for one in found["listed"]]
    return {**found, "services": services, "listed": listed}


def _page(value: dict[str, Any]) -> Page:
    headline = (
        f"VM {value['name'] or '-'}: CID {value['cid']}, driver {value['driver']}, "
        f"{value['connections']} of at most {value['limits']['connections']} connections, "
        f"queued {value['queue_depth']}, bad packets {value['bad_packets']}"
    )
    parts: list[str | Table] = [headline, _services(value)]
    if value["listed"]:
        parts.append(_connections(value["listed"]))
    if value["connections_left_out"]:
        parts.append(f"and {value['connections_left_out']} more connections, which moved less")
    return parts


def _services(value: dict[str, Any]) -> Table:
    columns = [
        *(Column("SERVICE", fold=True), Column("OPEN", right=True), Column("OPENED", right=True)),
        *(Column("FROM GUEST", right=True), Column("TO GUEST", right=True), Column("PACKETS", right=True)),
        *(Column("STALLS", right=True), Column("ENDED", fold=True)),
    ]
    everything = {"open": value["connections"], **value["total"]}
    ordered = sorted(value["services"], key=_label)
    rows = [(_label(one), *_counts(one)) for one in ordered]
    return Table(columns, [*rows, ("in all", *_counts(everything))])


def _counts(one: Mapping[str, Any]) -> tuple[str, ...]:
    packets = one["packets_from_guest"] + one["packets_to_guest"]
    return (
        *(str(one["open"]), str(one["opened"])),
        *(size_text(one["bytes_from_guest"]), size_text(one["bytes_to_guest"]), str(packets)),
        *(str(one["stalls"]), joined(f"{number} {reason}" for reason, number in one["ended"].items())),
    )


def _connections(listed: Iterable[dict[str, Any]]) -> Table:
    columns = [
        *(Column("CONNECTION", fold=True), Column("PEER"), Column("GUEST'S PORT", right=True)),
        *(Column("PEER'S PORT", right=True), Column("TYPE"), Column("STATE")),
        *(Column("FROM GUEST", right=True), Column("TO GUEST", right=True), Column("STALLS", right=True)),
    ]
    rows = []
    for one in listed:
        cid = one["peer_cid"]
        state = f"{one['state']}, stalled" if one["stalled"] else one["state"]
        rows.append(
            [
                *(_label(one), "host" if cid == VSOCK_CID_HOST else f"CID {cid}", str(one["guest_port"])),
                *(str(one["peer_port"]), one["type"], state),
                *(size_text(one["bytes_from_guest"]), size_text(one["bytes_to_guest"]), str(one["stalls"])),
            ]
        )
    return Table(columns, rows)


def _label(one: Mapping[str, Any]) -> str:
    """What a service is called, or at least its id; a connection that is being opened has none yet."""
    return str(one["name"] or one.get("id") or one.get("service") or "-")
