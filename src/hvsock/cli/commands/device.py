"""`hvsock device`."""

from __future__ import annotations

import grp
import logging
import sys
from typing import Any

import click

from hvsock.cli.names import complete_partitions
from hvsock.cli.outcome import say
from hvsock.device import process, rights
from hvsock.device.device import Limits
from hvsock.errors import StateError, UsageError
from hvsock.fabric import client, paths
from hvsock.topology.partitions import CID_MAX, CID_MIN
from hvsock.virtio.muxer import DEFAULT_BUFFER_BYTES, DEFAULT_CONNECTIONS

if sys.platform != "linux":
    raise ImportError("the device needs Linux")


@click.command()
@click.option("--socket-path", metavar="PATH", help="Where QEMU connects; made by the device.")
@click.option("--fd", metavar="N", type=click.IntRange(0), help="Instead: a socket that QEMU is connected to.")
@click.option("--print-capabilities", is_flag=True, help="Print what the device can do, as JSON, and exit.")
@click.option("--vm", metavar="NAME", shell_complete=complete_partitions, help="The VM's partition.")
@click.option(
    "--cid",
    metavar="N",
    type=click.IntRange(CID_MIN, CID_MAX),
    help="The guest's CID; by default the partition's.",
)
@click.option("--group", metavar="GROUP", help="The group of the VM, whose members reach each other.")
@click.option("--report-path", metavar="PATH", help="A socket at which the counters are read, as JSON.")
@click.option("--socket-group", metavar="GROUP", help="Users who may connect to --socket-path, besides its owner.")
@click.option("--user", metavar="NAME", help="The user that root's device becomes; the partition is given to it.")
@click.option(
    "--connections",
    metavar="N",
    type=click.IntRange(1),
    default=DEFAULT_CONNECTIONS,
    show_default=True,
    help="Most connections at once.",
)
@click.option(
    "--buffer",
    "buffer_bytes",
    metavar="BYTES",
    type=click.IntRange(4096, 1 << 30),
    default=DEFAULT_BUFFER_BYTES,
    show_default=True,
    help="Room of each connection for what the guest sent and nobody took yet.",
)
def device(
    socket_path: str | None,
    fd: int | None,
    print_capabilities: bool,
    vm: str | None,
    cid: int | None,
    group: str | None,
    report_path: str | None,
    socket_group: str | None,
    user: str | None,
    connections: int,
    buffer_bytes: int,
) -> None:
    """Be the virtio socket device of one VM, until SIGTERM: a vhost-user back end for QEMU.

    The partition is made where there is none of that name. QEMU needs shared memory, and

    \b
    -chardev socket,id=vsock,path=PATH -device vhost-user-vsock-pci,chardev=vsock
    """
    if print_capabilities:
        click.echo(process.CAPABILITIES)
        return
    if vm is None or (socket_path is None) == (fd is None):
        raise UsageError("name a --vm, and one of --socket-path and --fd")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="hvsock: %(levelname)s: %(message)s")
    account = None if user is None else rights.user_named(user)
    gid = None if socket_group is None else _group_id(socket_group)
    partition = _partition(vm, cid, group)
    process.serve(
        partition["cid"],
        partition["folder"],
        process.Places(socket_path, fd, gid, report_path),
        limits=Limits(connections, buffer_bytes),
        user=account,
        on_ready=lambda: say(f"the device of {partition['name']}, CID {partition['cid']}, is up"),
    )


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {name!r}") from None


def _partition(name: str, cid: int | None, group: str | None) -> dict[str, Any]:
    """The VM's partition as the broker describes it; made where there is none of that name.

    Raises:
        StateError: it is there, with another CID or in another group.
    """
    host = paths.partition_folder()
    for found in client.call(host, "partition.list"):
        if name.casefold() in (found["name"].casefold(), found["id"]):
            for what, wanted, has in (("CID", cid, found["cid"]), ("group", group, found["group"])):
                if wanted is not None and wanted != has:
                    raise StateError(f"{found['name']} has the {what} {has}, not {wanted}: leave it out")
            return dict(found)
    made = client.call(host, "partition.create", name=name, kind="vm", cid=cid, group=group)
    return dict(made)
