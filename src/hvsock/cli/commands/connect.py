"""`hvsock connect`."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

import click

import hvsock
from hvsock.cli.names import complete_addresses, complete_services
from hvsock.cli.outcome import ExitCode, say
from hvsock.cli.output import console_for_errors
from hvsock.cli.sessions import (
    address_of,
    check_session,
    describe,
    echo_back,
    execute,
    pipe,
    session_options,
    shown,
)
from hvsock.constants import ANSWER_GRACE_SECONDS
from hvsock.sockets.chosen import class_for, socket
from hvsock.sockets.patience import AddressLike, connect_patiently

STANDARD_INPUT: Final = 0


@click.command()
@click.argument("address", shell_complete=complete_addresses)
@click.argument("service", required=False, shell_complete=complete_services)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.001, max=hvsock.HVSOCKET_CONNECT_TIMEOUT_MAX / 1000),
    help="How long the connect may take; 2 by default.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    help="First wait so long for the service to be there.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say on standard error what is connected.")
@session_options
def connect(
    address: str,
    service: str | None,
    timeout: float | None,
    wait: float | None,
    verbose: bool,
    command: str | None,
    echo: bool,
    progress: bool,
) -> int:
    """Connect standard input and output to a service.

    ADDRESS is parent, loopback, silohost, a partition's name or a VmId; SERVICE is a name, a GUID or a
    port; or ADDRESS is both as a URL: hvsocket://ADDRESS/SERVICE, vsock://CID:PORT, or unix:PATH?hybrid=PORT for
    the guest of the VMM at PATH, with &profile=NAME (hvsock hybrid profiles). The end of standard input is passed
    on, and what comes back is printed up to the peer's own end. The exit code is 1 when the connection is reset.
    """
    check_session(command, echo, progress)
    target = address_of(address, service)
    with _connected(target, timeout, wait) as sock:
        if verbose:
            say(f"connected to {describe(sock.getpeername())}")
        if command is not None:
            return execute(sock, command)
        if echo:
            echo_back(sock)
        else:
            pipe(sock, STANDARD_INPUT, progress=progress)
    return ExitCode.OK


def _connected(target: AddressLike, timeout: float | None, wait: float | None) -> socket:
    if wait is None:
        return _connect(target, timeout)
    waiting: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if os.isatty(sys.stderr.fileno()):
        waiting = console_for_errors().status(f"waiting for {shown(target)}", spinner="line")
    with waiting:
        if not _has_broker(target):  # trying is all that there is, and the try that succeeds is the connection
            sock = connect_patiently(
                lambda: _made(target, timeout), lambda: hvsock.resolve(target), wait, retry=True
            )
            sock.settimeout(None)
            return sock
        hvsock.wait_for_service(target, wait)
    return _connect(target, timeout)


def _has_broker(target: AddressLike) -> bool:
    """Whether somebody can be asked for the service."""
    if sys.platform == "win32":
        return False
    from hvsock import names, urls

    return names.has_broker() and not urls.is_hybrid(target)


def _connect(target: AddressLike, timeout: float | None) -> socket:
    found = hvsock.resolve(target)
    sock = _made(target, timeout)
    try:
        if timeout is not None:
            sock.settimeout(timeout + ANSWER_GRACE_SECONDS)
        sock.connect(found)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _made(target: AddressLike, timeout: float | None) -> socket:
    """A socket whose connect may take that long."""
    sock = class_for(target)()
    try:
        if timeout is not None:
            milliseconds = max(1, round(timeout * 1000))
            sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, milliseconds)
    except BaseException:
        sock.close()
        raise
    return sock
