"""`hvsock pwsh`: PowerShell in a guest."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import sys
from typing import Final

import click

from hvsock.cli.names import complete_partitions, peer_id_of
from hvsock.cli.outcome import ExitCode
from hvsock.cli.output import json_option
from hvsock.cli.powershell import Console, Conversation, run_script
from hvsock.constants import VM_SESSION_SERVICE
from hvsock.errors import UsageError
from hvsock.services.powershell.client import SESSION_SECONDS, connect
from hvsock.services.powershell.handshake import Credentials
from hvsock.sockets.helpers import wait_for_service

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

MAX_PASSWORD_BYTES: Final = 4096
"""Longest password file that is read."""
MAX_SCRIPT_BYTES: Final = 16 * 1024 * 1024
"""Longest script that is read."""


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@click.option("-c", "--command", "script", metavar="SCRIPT", help="Run SCRIPT and end; - for standard input.")
@click.option(
    "-f", "--file", "file", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Run a script file."
)
@click.option("--user", metavar="USER", help="Whom to be there: USER, DOMAIN\\USER or USER@DOMAIN.")
@click.option(
    "--password-file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Where the password is, on its first line; - for standard input. Without it, the terminal is asked.",
)
@click.option("--key", is_flag=True, help="Be let in as USER by this host's key of the VM, without a password.")
@click.option("--configuration", metavar="NAME", default="", help="A session configuration of the guest.")
@click.option("--require-authentication", is_flag=True, help="Refuse guests that speak the older version.")
@click.option("--container", is_flag=True, help="VM is a container, which asks nobody for credentials.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.001),
    default=SESSION_SECONDS,
    help="How long the session may take to begin.",
)
@click.option(
    "--wait", metavar="SECONDS", type=click.FloatRange(min=0), help="First wait so long for the guest to serve it."
)
@json_option
def pwsh(
    vm: str,
    script: str | None,
    file: str | None,
    user: str | None,
    password_file: str | None,
    key: bool,
    configuration: str,
    require_authentication: bool,
    container: bool,
    timeout: float,
    wait: float | None,
    as_json: bool,
) -> int:
    """PowerShell in VM, without a network: one script, or line by line at a terminal.

    Without --user, the guest lets this host in by its key, as the agent's own user. Output goes to standard
    output, as the guest formats it or, with --json, one object on a line; errors and warnings go to standard
    error. The exit code is that of the script's `exit`, 1 where there was an error, else 0. Ctrl-C stops
    the script.
    """
    _check_script(script, file, password_file)
    _check_credentials(user, password_file, key, container, configuration)
    text = _script(script, file)
    if wait is not None:
        wait_for_service((str(peer_id_of(vm)), VM_SESSION_SERVICE.id), wait)
    credentials = None
    if user is not None and not key:
        credentials = Credentials.of(user, _password(user, vm, password_file))
    console = Console(as_json=as_json)
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        pool = runner.run(
            stack.enter_async_context(
                connect(
                    vm,
                    credentials,
                    user=user if key else None,
                    configuration=configuration,
                    host=console,
                    timeout=timeout,
                    require_authentication=require_authentication,
                    container=container,
                )
            )
        )
        try:
            if text is None:
                return Conversation(runner, pool, console, vm, as_json=as_json).hold()
            runner.run(run_script(pool, console, text, as_json=as_json))
        finally:
            runner.run(stack.aclose())
    if console.code is not None:
        return console.code
    return ExitCode.FAILED if console.has_errors else ExitCode.OK


def _check_script(script: str | None, file: str | None, password_file: str | None) -> None:
    if script is not None and file is not None:
        raise click.UsageError("-c and -f exclude each other")
    if password_file == "-" and (script == "-" or (script is None and file is None)):
        raise click.UsageError("standard input cannot have the password and the script")


def _check_credentials(
    user: str | None, password_file: str | None, key: bool, container: bool, configuration: str
) -> None:
    if key and password_file is not None:
        raise click.UsageError("--key and --password-file exclude each other")
    if password_file is not None and user is None:
        raise click.UsageError("--password-file needs --user")
    if container and (user is not None or key or configuration):
        raise click.UsageError("a container asks for no credentials and has no configurations")


def _script(script: str | None, file: str | None) -> str | None:
    """The text of the script; None for a conversation at a terminal."""
    if script is not None and script != "-":
        return script
    if file is not None:
        with open(file, "rb") as opened:
            return _text(opened.read(MAX_SCRIPT_BYTES + 1), file)
    if script is None and sys.stdin.isatty():
        return None
    return _text(sys.stdin.buffer.read(MAX_SCRIPT_BYTES + 1), "standard input")


def _text(data: bytes, where: str) -> str:
    if len(data) > MAX_SCRIPT_BYTES:
        raise UsageError(f"the script in {where} has more than {MAX_SCRIPT_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"the script in {where} is not UTF-8; save it as that") from None


def _password(user: str, vm: str, file: str | None) -> str:
    if file is None:
        if not sys.stdin.isatty():
            raise UsageError("a password is needed: be at a terminal, or give --password-file, or --key")
        return getpass.getpass(f"Password of {user} in {vm}: ")
    if file == "-":
        data = sys.stdin.buffer.readline(MAX_PASSWORD_BYTES + 1)
    else:
        with open(file, "rb") as opened:
            data = opened.readline(MAX_PASSWORD_BYTES + 1)
    if len(data) > MAX_PASSWORD_BYTES:
        raise UsageError(f"the password has more than {MAX_PASSWORD_BYTES} bytes")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError("the password is not UTF-8") from None
