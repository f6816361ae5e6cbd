"""`hvsock exec` and `hvsock shell`."""

from __future__ import annotations

import shlex
import sys

import click

from hvsock.cli.names import complete_partitions
from hvsock.cli.remote import attend
from hvsock.errors import UsageError

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

_user = click.option("--user", metavar="USER", help="Whom to be there; by default the agent's own user.")
_timeout = click.option(
    "--timeout", metavar="SECONDS", type=click.FloatRange(min=0.001), help="How long the guest may take to answer."
)
_wait = click.option(
    "--wait", metavar="SECONDS", type=click.FloatRange(min=0), help="First wait so long for the agent to be there."
)


@click.command("exec")
@click.argument("vm", shell_complete=complete_partitions)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_user
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for the command; may be repeated.")
@click.option("--cwd", metavar="FOLDER", help="Where it runs; by default in the user's home.")
@click.option("--tty", is_flag=True, help="Give it a terminal.")
@_timeout
@_wait
def exec_(
    vm: str,
    command: tuple[str, ...],
    user: str | None,
    env: tuple[str, ...],
    cwd: str | None,
    tty: bool,
    timeout: float | None,
    wait: float | None,
) -> int:
    """Run COMMAND in a guest, by its agent: hvsock exec VM [OPTIONS] -- COMMAND...

    Input, output and signals (SIGINT, SIGTERM, SIGHUP, SIGQUIT) go through. The exit code is the command's own,
    128 and the number where a signal ended it, and 255 where it is not known. What has options of its own comes
    after `--`.
    """
    environment = {}
    for one in env:
        name, equals, value = one.partition("=")
        if not name or not equals:
            raise UsageError(f"--env {one}: write NAME=VALUE")
        environment[name] = value
    line = f"exec {shlex.join(command)}"  # a shell between would get its signals too, and end by them
    if cwd is not None:
        line = f"cd -- {shlex.quote(cwd)} && {line}"
    return attend(vm, line, user=user, environment=environment, terminal=tty, timeout=timeout, wait=wait)


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
@_user
@_timeout
@_wait
def shell(vm: str, user: str | None, timeout: float | None, wait: float | None) -> int:
    """Sit down at a shell in a guest, by its agent.

    It gets a terminal where standard input is one. The exit code is the shell's own, and 255 where it is not
    known.
    """
    return attend(vm, None, user=user, terminal=sys.stdin.isatty(), timeout=timeout, wait=wait)
