"""`hvsock doctor`."""

from __future__ import annotations

from typing import Any, Final

import click

from hvsock import transport
from hvsock.cli.names import complete_addresses, complete_partitions, complete_services
from hvsock.cli.outcome import ExitCode
from hvsock.cli.output import json_option, mark, print_json
from hvsock.errors import UsageError
from hvsock.fabric import paths

OWN: Final = "-"
"""FROM that means the partition that the process speaks for."""
NOTE: Final = (
    "disable, unregister and partition remove stop new connections only, where both ends are local processes: "
    "nobody else holds a connection that is under way"
)
"""What a verdict on a new connection does not say."""


@click.command()
@click.argument("source", metavar="[FROM", required=False, shell_complete=complete_partitions)
@click.argument("target", metavar="TO", required=False, shell_complete=complete_addresses)
@click.argument("service", metavar="SERVICE]", required=False, shell_complete=complete_services)
@click.option("--report", is_flag=True, help="Print what a bug report needs, as Markdown to be pasted.")
@json_option
def doctor(source: str | None, target: str | None, service: str | None, report: bool, as_json: bool) -> int:
    """Check the environment; or say step by step why a connection works or not, and what to do about it.

    FROM is a partition: its name or VmId, host, or - for the one that this process speaks for. TO is what
    it would connect to: parent, loopback, silohost, a name or a VmId. The exit code is 1 where something
    is wrong. --report tells of builds, kernel options, transports and QEMU, and of no user, machine or VM by name.
    """
    if report:
        if source is not None:
            raise click.UsageError("--report is of the environment, and takes no FROM, TO and SERVICE")
        return _report(as_json)
    if source is None:
        return _environment(as_json)
    if target is None or service is None:
        raise click.UsageError("give all of FROM, TO and SERVICE, or none of them")
    return _explain(source, target, service, as_json)


def _environment(as_json: bool) -> int:
    from hvsock.cli import checks

    found = [one.to_json() for one in checks.examine()]
    ok = all(one["ok"] for one in found if one["needed"])
    if as_json:
        print_json({"ok": ok, "checks": found})
        return ExitCode.OK if ok else ExitCode.FAILED
    for heading, members in checks.headed(found):
        click.echo(heading)
        for one in members:
            _print_check(one["question"], one["found"], one["ok"], one["cure"], one["needed"])
    return ExitCode.OK if ok else ExitCode.FAILED


def _report(as_json: bool) -> int:
    from hvsock.cli.checks import report

    made = report.made()
    if as_json:
        print_json(made)
    else:
        click.echo(report.markdown(made), nl=False)
    return ExitCode.OK


def _explain(source: str, target: str, service: str, as_json: bool) -> int:
    from hvsock.fabric import client
    from hvsock.names import has_broker

    if not has_broker():
        raise UsageError(
            f"by the transport {transport.chosen()} no broker decides, so none can explain: see "
            f"hvsock connect {target} {service}, and hvsock doctor"
        )
    value: dict[str, Any] = client.call(
        paths.partition_folder(),
        "explain",
        source=None if source == OWN else source,
        vm=target,
        service=service,
    )
    ok = bool(value["ok"])
    if as_json:
        print_json({**value, "notes": [NOTE]})
        return ExitCode.OK if ok else ExitCode.FAILED
    click.echo(f"{value['source'] or 'this guest'} connects to {value['vm']}, service {value['service_id']}:")
    error = value["error"]
    for check in value["checks"]:
        cure = f"{error['name']}: {error['text']}" if error and not check["ok"] else None
        _print_check(check["question"], check["found"], check["ok"], cure)
    if error and not value["checks"]:  # guests are told no more
        click.echo(f"  -> {error['name']}: {error['text']}")
    click.echo("It works." if ok else "It does not work.")
    click.echo(f"Note: {NOTE}.")
    return ExitCode.OK if ok else ExitCode.FAILED


def _print_check(question: str, found: str, ok: bool, cure: str | None, needed: bool = True) -> None:
    colour = "green" if ok else "red" if needed else "yellow"
    click.echo(f"{click.style(mark(ok, needed), fg=colour)} {question} {found}")
    if cure:
        click.echo(f"  -> {cure}")
