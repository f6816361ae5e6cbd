"""`hvsock cp`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from hvsock.cli.outcome import ExitCode, say
from hvsock.cli.output import console_for_errors, json_option, print_json, size_text, to_terminal
from hvsock.cli.silent import asking
from hvsock.constants import GUEST_SERVICE_INTERFACE
from hvsock.errors import UsageError

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

if TYPE_CHECKING:
    from hvsock.services.predefined.filecopy.copying import Outcome
    from hvsock.services.predefined.filecopy.sending import Progress, Report

MAX_SHOWN: Final = 20
"""Most failures that are shown one by one; --json has them all."""
SHOW_SECONDS: Final = 0.1
"""Pause between two looks at a copy's progress: a terminal shows no more."""


class _Place(NamedTuple):
    """A place on the command line: a path of this machine where `vm` is None."""

    vm: str | None
    path: str


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("target")
@click.option("-r", "--recursive", is_flag=True, help="Copy folders with all that is in them.")
@click.option("--force", is_flag=True, help="Replace files that are there with other contents.")
@click.option("--no-clobber", is_flag=True, help="Leave files that are there, and say nothing of it.")
@click.option("--parents", is_flag=True, help="Make the folders on the way to TARGET.")
@click.option("--max-size", type=click.IntRange(min=0), metavar="BYTES", help="Most bytes to take from a guest.")
@click.option("--max-entries", type=click.IntRange(min=1), metavar="N", help="Most entries to take from a guest.")
@click.option(
    "--min-rate", type=click.IntRange(min=0), metavar="BYTES", help="Least a guest sends in a second; 0: any."
)
@json_option
def cp(
    sources: tuple[str, ...],
    target: str,
    recursive: bool,
    force: bool,
    no_clobber: bool,
    parents: bool,
    max_size: int | None,
    max_entries: int | None,
    min_rate: int | None,
    as_json: bool,
) -> int:
    """Copy files between this machine and a VM.

    Either TARGET or each SOURCE is VM:/PATH, an absolute path in the VM; the other side is a path here (./a:b
    for one with a colon). The integration service "Guest Service Interface" has to be enabled for the VM.
    A copy that was interrupted goes on where it was, by the same command. Files that are there with other
    contents are an error, unless --force or --no-clobber says what to do.
    """
    if force and no_clobber:
        raise UsageError("--force and --no-clobber say the opposite of each other")
    from hvsock.services.predefined.filecopy.channel import MIN_RATE
    from hvsock.services.predefined.filecopy.frames import Overwrite
    from hvsock.services.predefined.filecopy.receiving import MAX_BYTES, MAX_ENTRIES, Limits

    overwrite = Overwrite.REPLACE if force else Overwrite.KEEP if no_clobber else Overwrite.REFUSE
    limits = Limits(
        MAX_ENTRIES if max_entries is None else max_entries, MAX_BYTES if max_size is None else max_size
    )
    to, froms = _parsed(target), [_parsed(one) for one in sources]
    if any((one.vm is None) == (to.vm is None) for one in froms):
        raise UsageError("copy between this machine and a VM: one of both is VM:/PATH, like web01:/tmp")
    if len(froms) > 1 and to.vm is None and not os.path.isdir(to.path):
        raise UsageError(f"{to.path} is no folder, and there is more than one source")
    where = _Place(to.vm, to.path.rstrip("/") + "/") if len(froms) > 1 else to
    taken = {"limits": limits, "min_rate": MIN_RATE if min_rate is None else min_rate}
    options = {"recursive": recursive, "overwrite": overwrite, "parents": parents}
    done = []
    for one in froms:
        started = time.monotonic()
        with _watched(as_json) as report, asking(one.vm or to.vm or "", GUEST_SERVICE_INTERFACE.name):
            outcome = asyncio.run(_copy(one, where, options, taken, report))
        done.append((one, outcome, time.monotonic() - started))
    return _told(done, to, as_json)


async def _copy(
    source: _Place, target: _Place, options: dict[str, Any], taken: dict[str, Any], report: Report
) -> Outcome:
    from hvsock.services.predefined.filecopy.copying import copy_from, copy_to

    if target.vm is not None:
        return await copy_to(target.vm, source.path, target.path, report=report, **options)
    assert source.vm is not None
    return await copy_from(source.vm, source.path, target.path, report=report, **taken, **options)


def _parsed(text: str) -> _Place:
    """A place; what has a slash before its first colon is a path here."""
    vm, colon, path = text.partition(":")
    if not colon or "/" in vm or not vm:
        return _Place(None, text)
    if not path.startswith("/"):
        raise UsageError(f"{text}: a path in a VM is absolute, like {vm}:/{path or 'tmp'}")
    return _Place(vm, path)


def _told(done: list[tuple[_Place, Outcome, float]], to: _Place, as_json: bool) -> int:
    failed = [(one, failure) for one, outcome, _ in done for failure in outcome.failures]
    if as_json:
        print_json([_as_json(one, to, outcome, seconds) for one, outcome, seconds in done])
    elif to_terminal():
        for one, outcome, seconds in done:
            counts = outcome.counts
            rate = size_text(counts.size / seconds) if seconds else "-"
            kept = f", {counts.unchanged} unchanged" if counts.unchanged else ""
            click.echo(f"{one.path}: {counts.files} files, {size_text(counts.size)}, {rate}/s{kept}")
    if not failed:
        return ExitCode.OK
    for _, failure in failed[:MAX_SHOWN]:
        say(f"{os.fsdecode(failure.path)}: {failure.reason}")
    if len(failed) > MAX_SHOWN:
        say(f"{len(failed) - MAX_SHOWN} more were not copied; --json lists them")
    return ExitCode.FAILED


def _as_json(source: _Place, to: _Place, outcome: Outcome, seconds: float) -> dict[str, Any]:
    counts = outcome.counts
    return {
        "source": _text(source),
        "target": _text(to),
        "files": counts.files,
        "folders": counts.folders,
        "links": counts.links,
        "unchanged": counts.unchanged,
        "bytes": counts.size,
        "resumed_bytes": counts.resumed,
        "seconds": round(seconds, 6),
        "failures": [
            {"path": one.path.decode("utf-8", "backslashreplace"), "reason": one.reason}
            for one in outcome.failures
        ],
    }


def _text(place: _Place) -> str:
    path = os.fsencode(place.path).decode("utf-8", "backslashreplace")
    return path if place.vm is None else f"{place.vm}:{path}"


@contextlib.contextmanager
def _watched(as_json: bool) -> Iterator[Report]:
    """Progress on standard error, where that is a terminal."""
    if as_json or not os.isatty(2):
        yield lambda _: None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=console_for_errors(), transient=True) as bars:
        task = bars.add_task("copying", total=None)
        shown_at = 0.0

        def report(progress: Progress) -> None:
            nonlocal shown_at
            now = time.monotonic()
            if now - shown_at < SHOW_SECONDS:
                return
            shown_at = now
            name = os.path.basename(progress.path).decode("utf-8", "backslashreplace")[:32]
            printable = "".join(c if c.isprintable() else "?" for c in name)
            counted = f"{progress.entries}/{progress.all_entries} {printable}"
            bars.update(
                task, description=escape(counted), completed=progress.size, total=max(progress.all_size, 1)
            )

        yield report
