"""`hvsock status`."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from hvsock.cli.commands.partition import partition_table
from hvsock.cli.output import (
    Column,
    Table,
    drawn,
    duration_text,
    json_option,
    plain,
    print_json,
    time_text,
    to_terminal,
)
from hvsock.errors import NoFabricError
from hvsock.fabric import client, paths

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


@click.command()
@click.option(
    "--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with --json one line each time."
)
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="For --watch.",
)
@json_option
def status(watch: bool, interval: float, as_json: bool) -> None:
    """Show partitions, and services with their counters.

    Connections of two local processes are counted here, and their bytes are not: payload never passes
    through the broker.
    """
    if watch:
        _watch(interval, as_json)
        return
    value = _ask()
    if as_json:
        print_json(value)
    elif to_terminal():
        from rich.console import Console

        Console().print(_drawn(value))
    else:
        click.echo("\n".join(_lines(value)))


def _ask() -> dict[str, Any]:
    found: dict[str, Any] = client.call(paths.partition_folder(), "status")
    return {"time": time_text(time.time()), **found}


def _watch(interval: float, as_json: bool) -> None:
    if to_terminal() and not as_json:
        from rich.live import Live

        with Live(_drawn(_ask()), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                live.update(_drawn_or_waiting(), refresh=True)
    while True:
        value = _ask()
        if as_json:
            print_json(value, one_line=True)
        else:
            click.echo("\n".join([*_lines(value), ""]))
        time.sleep(interval)


def _drawn_or_waiting() -> Any:
    try:
        return _drawn(_ask())
    except NoFabricError as error:
        from rich.text import Text

        return Text(f"{time_text(time.time())}  {error}", style="yellow")


def _headline(value: dict[str, Any]) -> str:
    return (
        f"fabric {value['folder']}: process {value['pid']}, up {duration_text(value['uptime_seconds'])}, "
        f"connecting {value['connecting']}, undelivered {value['undelivered']}, "
        f"bad requests {value['bad_requests']}"
    )


def _lines(value: dict[str, Any]) -> list[str]:
    tables = [partition_table(value["partitions"], counts=True), service_table(value["services"])]
    return [_headline(value), *[line for table in tables for line in ("", *plain(table))]]


def _drawn(value: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

    return Group(
        Text(_headline(value)),
        "",
        drawn(partition_table(value["partitions"], counts=True)),
        "",
        drawn(service_table(value["services"])),
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
        if one["id"] == _NOT_REGISTERED and not (
            one["listeners"] or one["open"] or one["accepted"] or one["refused"]
        ):
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


_NOT_REGISTERED = "00000000-0000-0000-0000-000000000000"


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in counts.items()) or "0"


def _time(microseconds: float) -> str:
    return f"{microseconds:.0f} us" if microseconds < 10_000 else f"{microseconds / 1000:.0f} ms"
