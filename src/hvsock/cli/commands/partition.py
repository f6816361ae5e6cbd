"""`hvsock partition`."""

from __future__ import annotations

import sys
from typing import Any

import click

from hvsock.cli.lazy import HELP_OPTIONS
from hvsock.cli.names import complete_partitions, user_id
from hvsock.cli.output import Column, Table, json_option, print_json, print_table, to_terminal
from hvsock.fabric import client, paths
from hvsock.topology.partitions import CID_MAX, CID_MIN

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


@click.group(context_settings=HELP_OPTIONS)
def partition() -> None:
    """Partitions: the VMs and containers of this fabric, in a tree below the host."""


@partition.command()
@click.argument("name")
@click.option(
    "--kind", type=click.Choice(("vm", "container")), default="vm", show_default=True, help="What it is."
)
@click.option(
    "--parent", metavar="NAME", shell_complete=complete_partitions, help="What it runs in; by default the host."
)
@click.option("--group", metavar="GROUP", help="Members of one group reach each other by VmId.")
@click.option("--id", "guid", metavar="GUID", help="Its VmId; by default a new one.")
@click.option(
    "--cid", metavar="N", type=click.IntRange(CID_MIN, CID_MAX), help="Its CID in AF_VSOCK; by default a free one."
)
@click.option("--owner", metavar="USER", help="Who may speak as it; by default the user that runs the broker.")
@json_option
def create(
    name: str,
    kind: str,
    parent: str | None,
    group: str | None,
    guid: str | None,
    cid: int | None,
    owner: str | None,
    as_json: bool,
) -> None:
    """Create the partition NAME.

    Prints its VmId; on a terminal with a word about it, else alone.
    """
    made = client.call(
        paths.partition_folder(),
        "partition.create",
        name=name,
        kind=kind,
        parent=parent,
        group=group,
        id=guid,
        cid=cid,
        owner=None if owner is None else user_id(owner),
    )
    if as_json:
        print_json(made)
    elif to_terminal():
        click.echo(f"created {made['kind']} {made['name']} as {made['id']}")
    else:
        click.echo(made["id"])


@partition.command()
@click.argument("name", shell_complete=complete_partitions)
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove the partition NAME, with its listeners and the services' settings for it.

    New connections are refused, and those of a VM are reset; those under way between two local processes go on.
    """
    removed = client.call(paths.partition_folder(), "partition.remove", name=name)
    if as_json:
        print_json(removed)
    elif to_terminal():
        click.echo(f"removed {removed['kind']} {removed['name']} ({removed['id']})")


@partition.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the partitions, parents before children."""
    found = client.call(paths.partition_folder(), "partition.list")
    if as_json:
        print_json(found)
    else:
        print_table(partition_table(found))


def partition_table(partitions: list[dict[str, Any]], *, counts: bool = False) -> Table:
    """Partitions as a table, children indented below their parents.

    Args:
        partitions: as the broker lists them.
        counts: with the counts of listeners and open connections, which `status` has.
    """
    columns = [Column("PARTITION", fold=True), Column("KIND"), Column("GROUP", fold=True)]
    columns += [Column("CID", right=True), Column("ID")]
    if counts:
        columns += [Column("LISTENERS", right=True), Column("OPEN", right=True)]
    rows = []
    for depth, one in _as_tree(partitions):
        row = ["  " * depth + one["name"], one["kind"], one["group"] or "-", str(one["cid"]), one["id"]]
        rows.append([*row, str(one["listeners"]), str(one["open"])] if counts else row)
    return Table(columns, rows)


def _as_tree(partitions: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """The partitions, each with its depth, every one straight after its parent's line and its siblings'."""
    children: dict[str | None, list[dict[str, Any]]] = {}
    for one in partitions:
        children.setdefault(one["parent"], []).append(one)
    shown: list[tuple[int, dict[str, Any]]] = []
    waiting = [(0, one) for one in reversed(children.get(None, []))]
    while waiting:
        depth, one = waiting.pop()
        shown.append((depth, one))
        waiting += [(depth + 1, child) for child in reversed(children.get(one["name"], []))]
    return shown
