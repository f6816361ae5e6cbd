"""`hvsock hybrid`: the Unix sockets of Firecracker and its kin, from both sides."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any, Final

import click

from hvsock import transport
from hvsock.cli.lazy import HELP_OPTIONS
from hvsock.cli.loglines import LogLines
from hvsock.cli.names import complete_partitions, complete_services, vm_id_of, written_down
from hvsock.cli.outcome import ExitCode, say
from hvsock.cli.output import Column, Table, joined, json_option, print_json, print_table
from hvsock.cli.sessions import pipe
from hvsock.errors import NotFoundError, UsageError
from hvsock.hybrid import process
from hvsock.hybrid.connecting import HANDSHAKE_SECONDS, connect
from hvsock.hybrid.listening import listen
from hvsock.hybrid.profiles import PROFILES, Profile
from hvsock.topology.partitions import Kind
from hvsock.transport import Transport

if sys.platform != "linux":
    raise ImportError("hybrid sockets need Linux, as the VMMs do")

STANDARD_INPUT: Final = 0


def _mode(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """The mode of a file that octal digits spell."""
    if not re.fullmatch("[0-7]{3}", value):
        raise click.BadParameter(f"{value!r} is no mode like 600 or 660", ctx, param)
    return int(value, 8)


def _profile_option(function: Any) -> Any:
    return click.option(
        "--profile",
        type=click.Choice(list(PROFILES), case_sensitive=False),
        default="hvsock",
        show_default=True,
        help="Whose ways it has; see: hvsock hybrid profiles.",
    )(function)


_mode_option = click.option(
    "--mode",
    metavar="MODE",
    callback=_mode,
    default="600",
    show_default=True,
    help="The socket's mode: who may connect.",
)


@click.group(context_settings=HELP_OPTIONS)
def hybrid() -> None:
    """Speak the hybrid sockets of Firecracker, cloud-hypervisor, vhost-device-vsock, libkrun and OpenVMM."""


@hybrid.command()
@click.argument("vm", shell_complete=complete_partitions)
@click.argument("path", type=click.Path())
@_profile_option
@_mode_option
def serve(vm: str, path: str, profile: str, mode: int) -> None:
    """Show a VM of the fabric as such a VMM would, until SIGTERM or SIGINT.

    Who connects to PATH and sends CONNECT with a port or a GUID is connected to that service of VM. What VM
    connects to on its parent goes to PATH_PORT or PATH_GUID while somebody listens there; the service has to be
    registered.
    """
    if transport.chosen() is not Transport.FABRIC:
        text = f"it shows a VM of a fabric, and the transport here is {transport.chosen()}"
        raise UsageError(f"{text}: run it on the fabric's host, with {transport.TRANSPORT_VARIABLE}=fabric")
    vm_id = vm_id_of(vm)
    known = {one.id: one.kind for one in written_down()}  # none where this user may not look
    if known and known.get(vm_id, Kind.HOST) is Kind.HOST:
        raise NotFoundError(f"{vm} is no VM or container of this fabric; see: hvsock partition list")
    logging.basicConfig(level=logging.INFO, handlers=[LogLines()])
    process.serve(
        vm_id,
        path,
        lambda: say(f"{vm} is at {path} (process {os.getpid()})"),
        profile=PROFILES[profile],
        mode=mode,
    )


@hybrid.command("connect")
@click.argument("path", type=click.Path())
@click.argument("service", shell_complete=complete_services)
@_profile_option
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.001),
    default=HANDSHAKE_SECONDS,
    show_default=True,
    help="How long the handshake may take.",
)
def connect_(path: str, service: str, profile: str, timeout: float) -> None:
    """Connect standard input and output to a service of a VMM's guest, by the VMM's socket PATH.

    SERVICE is a port, a GUID or a registered name. For libkrun, PATH is that of the service.
    """
    with connect(path, service, profile=PROFILES[profile], timeout=timeout) as sock:
        pipe(sock, STANDARD_INPUT)


@hybrid.command("listen")
@click.argument("path", type=click.Path())
@click.argument("service", shell_complete=complete_services)
@_profile_option
@_mode_option
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error where it listens.")
def listen_(path: str, service: str, profile: str, mode: int, verbose: bool) -> None:
    """Take one connection of a VMM's guest to a service of its host; PATH is the VMM's socket.

    It listens at PATH_PORT or PATH_GUID, as the VMM looks for it. Standard input and output are connected to it.
    """
    with listen(path, service, profile=PROFILES[profile], mode=mode) as listener:
        if verbose:
            say(f"listening at {listener.path}")
        sock = listener.accept()
    with sock:
        pipe(sock, STANDARD_INPUT)


@hybrid.command()
@json_option
def profiles(as_json: bool) -> int:
    """List the VMMs whose ways are known."""
    if as_json:
        print_json([_described(one) for one in PROFILES.values()])
        return ExitCode.OK
    columns = [Column("PROFILE"), Column("TAKES"), Column("ANSWERS OK AND"), Column("QUIRKS", fold=True)]
    print_table(Table(columns, [_row(one) for one in PROFILES.values()]))
    return ExitCode.OK


def _described(profile: Profile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "handshake": profile.has_handshake,
        "answers": profile.answers.name.lower(),
        "guids": profile.guids,
        "longest_request": profile.longest_request,
        "takes_pieces": profile.takes_pieces,
        "keeps_early_data": profile.keeps_early_data,
        "keeps_half_close": profile.keeps_half_close,
        "listeners": [str(form) for form in profile.listeners],
        "note": profile.note,
    }


def _row(profile: Profile) -> list[str]:
    takes = "nothing" if not profile.has_handshake else "ports, GUIDs" if profile.guids else "ports"
    quirks = [
        *([] if profile.takes_pieces else ["a request comes in one piece"]),
        *([] if profile.keeps_early_data else ["loses what comes before its answer"]),
        *([] if profile.keeps_half_close else ["one end of stream ends both"]),
        profile.note,
    ]
    return [profile.name, takes, profile.answers.value, joined(quirks)]
