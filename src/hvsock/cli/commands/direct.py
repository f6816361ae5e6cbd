"""`hvsock direct`: OpenSSH's way into a guest, and what the host keeps of it."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from typing import Final

import click

from hvsock.cli.lazy import Entry, LazyGroup
from hvsock.cli.names import complete_partitions, peer_id_of
from hvsock.cli.outcome import CommandError, ExitCode
from hvsock.cli.output import to_terminal
from hvsock.cli.remote import STANDARD_INPUT, keys_of
from hvsock.cli.sessions import pipe
from hvsock.cli.silent import asking
from hvsock.config.files import CONFIG_VARIABLE, PROFILE_VARIABLE
from hvsock.constants import DIRECT
from hvsock.fabric import paths
from hvsock.services.predefined.direct.connecting import handed_over
from hvsock.transport import TRANSPORT_VARIABLE

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

_HERE: Final = "hvsock.cli.commands.direct"
COMMANDS: Final = {
    "ssh-config": Entry(f"{_HERE}:ssh_config", "Print what OpenSSH needs to reach a VM."),
    "proxy": Entry(f"{_HERE}:proxy", "Be the ProxyCommand of OpenSSH."),
    "forget": Entry(f"{_HERE}:forget", "Forget the host key of a VM that was made anew."),
}


_WHERE: Final = (
    paths.FOLDER_VARIABLE,
    paths.PARTITION_VARIABLE,
    TRANSPORT_VARIABLE,
    CONFIG_VARIABLE,
    PROFILE_VARIABLE,
)
"""The environment that says which VM a name means; OpenSSH may be run in another."""


@click.group(cls=LazyGroup, table=COMMANDS)
def direct() -> None:
    """Direct: OpenSSH, SFTP and keys; see also hvsock exec and hvsock shell."""


@click.command("ssh-config")
@click.argument("vm", shell_complete=complete_partitions)
def ssh_config(vm: str) -> None:
    """Print what OpenSSH needs to reach VM; put it into ~/.ssh/config, or into a file for ssh -F.

    The keys are given to the guest and taken from it, so its agent has to run.
    """
    keys = keys_of(vm)

    async def hand_over() -> str:
        sock, guest = await handed_over(peer_id_of(vm), keys)
        sock.close()
        return guest.user

    with asking(vm, DIRECT.name):
        user = asyncio.run(hand_over())
    for path in (keys.private_path, keys.known_hosts_path):
        if '"' in path or "%" in path:
            raise CommandError(f'OpenSSH cannot have the path {path}; use a fabric in a folder without " and %')
    setting = [f"{name}={value}" for name in _WHERE if (value := os.environ.get(name))]
    proxy = shlex.join([*(["env", *setting] if setting else []), "hvsock", "direct", "proxy"]).replace("%", "%%")
    click.echo(f"""Host {vm}
    User {user}
    HostKeyAlias {keys.alias}
    IdentityFile "{keys.private_path}"
    IdentitiesOnly yes
    UserKnownHostsFile "{keys.known_hosts_path}"
    StrictHostKeyChecking yes
    ProxyCommand {proxy} %n""")


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
def proxy(vm: str) -> int:
    """Hand the keys over and connect standard input and output, for OpenSSH's ProxyCommand.

    As `hvsock connect VM Direct` does, which suffices for a guest that has the key and keeps it.
    """

    async def hand_over() -> int:
        sock, _ = await handed_over(peer_id_of(vm), keys_of(vm))
        return sock.detach()

    from hvsock.sockets.chosen import socket

    with asking(vm, DIRECT.name):
        descriptor = asyncio.run(hand_over())
    with socket(fileno=descriptor) as sock:
        sock.setblocking(True)
        pipe(sock, STANDARD_INPUT, progress=False)
    return ExitCode.OK


@click.command()
@click.argument("vm", shell_complete=complete_partitions)
def forget(vm: str) -> None:
    """Forget the host key of VM, which was made anew; the key of its next connection is pinned."""
    was_there = keys_of(vm).forget()
    if to_terminal():
        click.echo(f"the host key of {vm} is forgotten" if was_there else f"there was no host key of {vm}")
