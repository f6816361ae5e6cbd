"""`hvsock demo`."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, Self

import click

from hvsock.cli.commands.status import service_table
from hvsock.cli.outcome import CommandError
from hvsock.cli.output import drawn, json_option, mark, plain, print_json, size_text, to_terminal
from hvsock.cli.walkthrough import BULK_BYTES, Walk

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


@click.command()
@click.option(
    "--mib",
    metavar="NUMBER",
    type=click.IntRange(1, 1 << 20),
    default=BULK_BYTES >> 20,
    show_default=True,
    help="Size of the long transfer.",
)
@click.option("--vm/--no-vm", default=True, show_default=True, help="Boot a virtual machine in the end.")
@json_option
def demo(mib: int, vm: bool, as_json: bool) -> None:
    """Walk through everything once, in a fabric of its own that needs no daemon and leaves nothing behind.

    Registers a service, creates the sockets, binds, connects by wildcard and by VmId, exchanges text and
    256 MiB with a checksum, waits with select, closes gracefully, and reads the counters. Then it boots a
    stock Linux kernel in QEMU, whose guest talks to the host and the host to it; where QEMU is missing, that
    is skipped with a word. The exit code is 1 where anything is not as it has to be. With --json the last
    line is one JSON object.
    """
    if as_json:
        result = Walk(_Silence(), mib << 20, with_vm=vm).run()
        print_json(result, one_line=True)
    elif to_terminal():
        with _LiveView() as view:
            result = Walk(view, mib << 20, with_vm=vm).run()
            view.conclude(result)
    else:
        result = Walk(_Lines(), mib << 20, with_vm=vm).run()
        if result["counters"]:
            click.echo("\n".join(["", *plain(service_table([result["counters"]]))]))
        if result["ok"]:
            click.echo(f"\n{_verdict(result)}")
    if not result["ok"]:
        raise CommandError(f"the demo failed: {result['error']}")


def _verdict(result: dict[str, Any]) -> str:
    return f"all well: {size_text(result['bytes_received'])} in {result['seconds']:.1f} s"


class _Silence:
    """Sees everything and says nothing."""

    def begin(self, title: str) -> None:
        """See :class:`hvsock.cli.steps.Audience`."""

    def progress(self, done: int, total: int) -> None:
        """See :class:`hvsock.cli.steps.Audience`."""

    def end(self, title: str, found: str, ok: bool, seconds: float) -> None:
        """See :class:`hvsock.cli.steps.Audience`."""


class _Lines(_Silence):
    """One line for each step."""

    def end(self, title: str, found: str, ok: bool, seconds: float) -> None:
        """See :class:`hvsock.cli.steps.Audience`."""
        click.echo(f"{mark(ok)} {title}: {found}")


class _LiveView(contextlib.AbstractContextManager["_LiveView"]):
    """A small live view on a terminal: the steps, a bar for the long one, the counters."""

    def __init__(self) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, DownloadColumn, Progress

        self._done: list[tuple[str, str, bool, float]] = []
        self._current: str | None = None
        self._bar = Progress(BarColumn(40), DownloadColumn(binary_units=True))
        self._task: Any = None
        self._last: list[Any] = []
        self._live = Live(get_renderable=self._draw, refresh_per_second=12)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._current = None
        self._live.stop()

    def begin(self, title: str) -> None:
        """See :class:`hvsock.cli.steps.Audience`."""
        self._current = title

    def progress(self, done: int, total: int) -> None:
        """See :class:`hvsock.cli.steps.Audience`."""
        if self._task is None:
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=done)

    def end(self, title: str, found: str, ok: bool, seconds: float) -> None:
        """See :class:`hvsock.cli.steps.Audience`."""
        self._current = None
        self._task = None
        self._done.append((title, found, ok, seconds))

    def conclude(self, result: dict[str, Any]) -> None:
        """Show the counters and the verdict below the steps."""
        from rich.text import Text

        if result["counters"]:
            self._last = ["", drawn(service_table([result["counters"]]))]
        if result["ok"]:
            self._last += ["", Text(_verdict(result), style="bold green")]

    def _draw(self) -> Any:
        from rich.console import Group
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        steps = Table.grid(padding=(0, 1))
        for title, found, ok, seconds in list(self._done):
            sign = Text(mark(ok), style="green" if ok else "red")
            steps.add_row(
                sign, Text(title, style="bold"), Text(found), Text(f"{seconds * 1000:.0f} ms", style="dim")
            )
        parts: list[Any] = [steps]
        if self._current is not None:
            parts.append(Spinner("line", Text(self._current, style="bold")))
            if self._task is not None:
                parts.append(self._bar)
        return Group(*parts, *self._last)
