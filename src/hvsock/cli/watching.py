"""Reports: shown once, or again and again; to people in headlines and tables, to programs as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from .output import Table, drawn, plain, print_json, time_text, to_terminal

F = TypeVar("F", bound=Callable[..., Any])

Page = Sequence[str | Table]
"""Headlines and tables, as they stand below each other."""


def watch_options(function: F) -> F:
    """The options `--watch` and `--interval` of a command."""
    watch = click.option(
        "--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with --json one line each time."
    )
    interval = click.option(
        "--interval",
        metavar="SECONDS",
        type=click.FloatRange(min=0.1),
        default=1.0,
        show_default=True,
        help="For --watch.",
    )
    return watch(interval(function))


def show(
    ask: Callable[[], dict[str, Any]],
    page: Callable[[dict[str, Any]], Page],
    *,
    watch: bool,
    interval: float,
    as_json: bool,
    passing: type[Exception],
) -> None:
    """Show what `ask` finds, which gets the time besides.

    Args:
        ask: looks.
        page: makes a page of what was found.
        watch: do it again and again.
        interval: seconds between two looks.
        as_json: print JSON.
        passing: an error that may be over at the next look; who watches on a terminal goes on after it.
    """

    def found() -> dict[str, Any]:
        return {"time": time_text(time.time()), **ask()}

    if not watch:
        _print(found(), page, as_json=as_json)
    elif to_terminal() and not as_json:
        _live(found, page, interval, passing)
    else:
        while True:
            value = found()
            if as_json:
                print_json(value, one_line=True)
            else:
                click.echo("\n".join([*_lines(page(value)), ""]))
            time.sleep(interval)


def _print(value: dict[str, Any], page: Callable[[dict[str, Any]], Page], *, as_json: bool) -> None:
    if as_json:
        print_json(value)
    elif to_terminal():
        from rich.console import Console

        Console().print(_drawn(page(value)))
    else:
        click.echo("\n".join(_lines(page(value))))


def _live(
    found: Callable[[], dict[str, Any]],
    page: Callable[[dict[str, Any]], Page],
    interval: float,
    passing: type[Exception],
) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(_drawn(page(found())), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            try:
                shown = _drawn(page(found()))
            except passing as error:
                shown = Text(f"{time_text(time.time())}  {error}", style="yellow")
            live.update(shown, refresh=True)


def _lines(page: Page) -> list[str]:
    lines: list[str] = []
    for part in page:
        lines += [""] if lines else []
        lines += [part] if isinstance(part, str) else plain(part)
    return lines


def _drawn(page: Page) -> Any:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for part in page:
        parts += [""] if parts else []
        parts.append(Text(part) if isinstance(part, str) else drawn(part))
    return Group(*parts)
