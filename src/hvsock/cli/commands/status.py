"""`hvsock status`."""

from __future__ import annotations

import sys
from typing import Any

import click

from hvsock.addresses import SERVICE_WILDCARD
from hvsock.cli.commands.partition import partition_table
from hvsock.cli.output import Column, Table, duration_text, json_option
from hvsock.cli.watching import Page, show, watch_options
from hvsock.errors import NoFabricError
from hvsock.fabric import client, paths

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


@click.command()
@watch_options
@click.option("--all", "everything", is_flag=True, help="In-box services of which nothing is to be told, too.")
@json_option
def status(watch: bool, interval: float, everything: bool, as_json: bool) -> None:
    """Show partitions, and services with their counters.

    In-box services that nothing listens on and nothing has connected to are left out; --json has them all.

    Connections of two local processes are counted here, and their bytes are not: payload never passes
    through the broker.
    """

    def page(value: dict[str, Any]) -> Page:
        services = [one for one in value["services"] if everything or not one["inbox"] or _tells(one)]
        return [_headline(value), partition_table(value["partitions"], counts=True), service_table(services)]

    show(_ask, page, watch=watch, interval=interval, as_json=as_json, passing=NoFabricError)


def _ask() -> dict[str, Any]:
    found: dict[str, Any] = client.call(paths.partition_folder(), "status")
    return found


def _headline(value: dict[str, Any]) -> str:
    return (
        f"fabric {value['folder']}: process {value['pid']}, up {duration_text(value['uptime_seconds'])}, "
        f"connecting {value['connecting']}, undelivered {value['undelivered']}, "
        f"bad requests {value['bad_requests']}"
    )


def service_table(services: list[dict[str, Any]]) -> Table:
    """Services with their counters, as the broker reports them; without the line for nothing at all."""
    columns = [
        Column("SERVICE", fold=True),
        Column("LISTENERS", right=True),
        Column("OPEN", right=True),
        Column("ACCEPTED", right=True),
        Column("REFUSED", fold=True),
        Column("RESET", fold=True),
        Column("CONNECT MEAN", right=True),
        Column("MAX", right=True),
    ]
    rows = []
    for one in services:
        if one["id"] == SERVICE_WILDCARD and not _tells(one):  # what stands for all that is not registered
            continue
        rows.append(
            (
                one["name"],
                str(one["listeners"]),
                str(one["open"]),
                str(one["accepted"]),
                _reasons(one["refused"]),
                _reasons(one["reset"]),
                _time(one["connect_microseconds_mean"]) if one["accepted"] else "-",
                _time(one["connect_microseconds_max"]) if one["accepted"] else "-",
            )
        )
    return Table(columns, rows)


def _tells(one: dict[str, Any]) -> bool:
    """Whether anything listens on a service, or ever tried to reach it."""
    return bool(one["listeners"] or one["open"] or one["accepted"] or one["refused"] or one["reset"])


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.items()) or "0"


def _time(microseconds: float) -> str:
    return f"{microseconds:.0f} us" if microseconds < 10_000 else f"{microseconds / 1000:.0f} ms"
