"""`hvsock service enable`, `disable` and `access`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from hvsock.cli.commands.service import entry_value, key_argument, print_entry
from hvsock.cli.names import complete_partitions, group_id, open_registry, user_id, vm_id_of
from hvsock.cli.output import json_option, print_json, to_terminal
from hvsock.errors import NotFoundError


def vm_option(function: Any) -> Any:
    """The option `--vm`."""
    return click.option(
        "--vm", metavar="VM", shell_complete=complete_partitions, help="For this VM alone: its name or VmId."
    )(function)


def _reset_option(function: Any) -> Any:
    return click.option(
        "--reset", is_flag=True, help="Take back what was set here: the level below decides again."
    )(function)


@click.command()
@key_argument
@vm_option
@_reset_option
@json_option
def enable(key: str, vm: str | None, reset: bool, as_json: bool) -> None:
    """Enable a service, for all VMs or for one."""
    _set_enabled(key, vm, None if reset else True, as_json)


@click.command()
@key_argument
@vm_option
@_reset_option
@json_option
def disable(key: str, vm: str | None, reset: bool, as_json: bool) -> None:
    """Disable a service, for all VMs or for one.

    New connections to it are refused; those under way between two local processes go on.
    """
    _set_enabled(key, vm, None if reset else False, as_json)


def _set_enabled(key: str, vm: str | None, enabled: bool | None, as_json: bool) -> None:
    with open_registry() as registry:
        vm_id = None if vm is None else vm_id_of(vm)
        entry = registry.set_enabled(key, enabled, vm_id)
    if as_json:
        print_json(entry_value(entry))
    elif to_terminal():
        now = "enabled" if entry.service().settings_for(vm_id).enabled else "disabled"
        click.echo(f"{entry.name} is {now} for {'all VMs' if vm is None else vm}")


def who_option(name: str) -> Callable[[Any], Any]:
    """The option that says who may bind, or connect."""
    return click.option(
        f"--{name}",
        metavar="WHO",
        multiple=True,
        help=f"Who may {name}: user:NAME, group:NAME, everyone, or owner for nobody else. Repeatable.",
    )


@click.command()
@key_argument
@vm_option
@who_option("bind")
@who_option("connect")
@click.option(
    "--wildcard-binds/--no-wildcard-binds", default=None, help="Whether listeners on any and children count."
)
@click.option("--reset", is_flag=True, help="First take back what was said here about access.")
@json_option
def access(
    key: str,
    vm: str | None,
    bind: tuple[str, ...],
    connect: tuple[str, ...],
    wildcard_binds: bool | None,
    reset: bool,
    as_json: bool,
) -> None:
    """Say which users and groups may bind and connect, besides the owner, root and the admin group.

    Without options it shows what holds. Only processes of the host are checked for their user.
    """
    from hvsock.registry.entries import KEEP

    unchanged = None if reset else KEEP
    allowed_bind = allowed("bind", bind) if bind else unchanged
    allowed_connect = allowed("connect", connect) if connect else unchanged
    with open_registry() as registry:
        vm_id = None if vm is None else vm_id_of(vm)
        if reset or bind or connect or wildcard_binds is not None:
            entry = registry.change_settings(
                key,
                vm_id,
                bind=allowed_bind,
                connect=allowed_connect,
                wildcard_binds=unchanged if wildcard_binds is None else wildcard_binds,
            )
        else:
            entry = registry.find(key)
    print_entry(entry, as_json)


def allowed(option: str, texts: tuple[str, ...]) -> Any:
    """Who is meant by the values of `--bind` or `--connect`.

    Raises:
        click.BadParameter: one of them means nobody.
    """
    from hvsock.topology.access import Allowed

    everyone, uids, gids = False, set(), set()
    for text in texts:
        kind, colon, name = text.partition(":")
        try:
            if text == "everyone":
                everyone = True
            elif kind == "user" and colon:
                uids.add(user_id(name))
            elif kind == "group" and colon:
                gids.add(group_id(name))
            elif text != "owner":
                raise click.BadParameter(
                    f"{text!r} is none of user:NAME, group:NAME, everyone, owner", param_hint=f"--{option}"
                )
        except NotFoundError as error:
            raise click.BadParameter(str(error), param_hint=f"--{option}") from None
    return Allowed(everyone, frozenset(uids), frozenset(gids))
