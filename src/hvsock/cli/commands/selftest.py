"""`hvsock selftest`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hvsock.cli.outcome import ExitCode
from hvsock.cli.output import json_option, print_json

if TYPE_CHECKING:
    from hvsock.selftest import Outcome

_COLOURS = {"passed": "green", "failed": "red", "not applicable": "yellow"}


@click.command()
@click.option("--report", "as_report", is_flag=True, help="Print Markdown, to be pasted into an issue.")
@json_option
def selftest(as_report: bool, as_json: bool) -> int:
    """Check the chosen transport of this machine from end to end.

    On Linux that is done in a fabric of its own, which needs nothing and leaves nothing behind; with the transport
    hybrid, by the hybrid sockets of a VM of such a fabric, which hvsock hybrid serve shows; with vsock, within
    this machine (the kernel module vsock_loopback); on Windows, with the sockets of this host or guest. There a
    service of a random GUID is registered for a moment, where this process is elevated. The exit code is 1 where
    something failed. --report has what `hvsock doctor --report` has, too: no user, machine or VM by name.
    """
    from hvsock import selftest as library
    from hvsock.cli.checks import report

    names = report.own_names()
    made: list[Outcome] = []
    quiet = as_report or as_json
    with library.chosen_ground() as ground:
        for outcome in library.run(ground, library.CHECKS):
            told = outcome._replace(found=report.without(outcome.found, names))
            made.append(told)
            if not quiet or sys.stderr.isatty():  # progress, where what is printed comes at the end
                _print(told, err=quiet)
    ok = all(one.result is not library.Result.FAILED for one in made)
    if as_json:
        checks = [one.to_json() for one in made]
        print_json({"ok": ok, "transport": str(ground.transport), "checks": checks, "environment": report.made()})
    elif as_report:
        click.echo(markdown(made) + report.markdown(report.made()), nl=False)
    else:
        click.echo(_summary(made))
    return ExitCode.OK if ok else ExitCode.FAILED


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as an issue takes them."""
    rows = [(one.name, str(one.result), f"{one.seconds:.2f}", one.found) for one in outcomes]
    return "\n".join(
        [
            f"### hvsock selftest: {_summary(outcomes)}",
            "",
            "| check | | seconds | found |",
            "|---|---|---|---|",
            *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
            "",
            "",
        ]
    )


def _cell(text: str) -> str:
    """Text that Markdown does not take for markup, on one line."""
    plain = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in plain)


def _summary(outcomes: Sequence[Outcome]) -> str:
    count: Counter[Any] = Counter(one.result for one in outcomes)
    return ", ".join(f"{count[result]} {result}" for result in _COLOURS)


def _print(outcome: Outcome, err: bool) -> None:
    word = click.style(outcome.result, fg=_COLOURS[outcome.result])
    found = " ".join(outcome.found.split())
    click.echo(f"{word}: {outcome.name}{f': {found}' if found else ''}", err=err)
