"""`hvsock service enable`, `disable` and `access`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from hvsock.cli.commands.service import entry_value, key_argument, print_entry
from hvsock.cli.names import complete_partitions, group_id, open_registry, user_id, vm_id_of
from hvsock.cli.output import json_option, print_json, to_terminal
from hvsock.errors import NotFoundError, UsageError


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
        defaults = registry.defaults()
    if as_json:
        print_json(entry_value(entry, defaults))
    elif to_terminal() and enabled is None and defaults is None:
        click.echo(f"{entry.name} is left to the default of {vm}")
    elif to_terminal():
        now = "enabled" if entry.service().settings_for(vm_id).enabled else "disabled"
        click.echo(f"{entry.name} is {now} for {'all VMs' if vm is None else vm}")


def access_options(function: Any) -> Any:
    """The options that say who may bind and connect; what they change comes as `changes`, for the registry.

    The command raises click.UsageError where one of them means nothing, or both ways to say who may are there.
    """

    @functools.wraps(function)
    def gathered(
        *,
        bind: tuple[str, ...],
        bind_sddl: str | None,
        connect: tuple[str, ...],
        connect_sddl: str | None,
        wildcard_binds: bool | None,
        reset: bool,
        **others: Any,
    ) -> Any:
        changes: dict[str, Any] = dict.fromkeys(("bind", "connect", "wildcard_binds")) if reset else {}
        for name, who, sddl in (("bind", bind, bind_sddl), ("connect", connect, connect_sddl)):
            if who and sddl is not None:
                raise click.UsageError(f"--{name} and --{name}-sddl both say who may {name}: give one of them")
            if who:
                changes[name] = allowed(name, who)
            if sddl is not None:
                changes[name] = _descriptor(name, sddl)
        if wildcard_binds is not None:
            changes["wildcard_binds"] = wildcard_binds
        return function(changes=changes, **others)

    wildcards = click.option(
        "--wildcard-binds/--no-wildcard-binds", default=None, help="Whether listeners on any and children count."
    )
    reset = click.option("--reset", is_flag=True, help="First take back what was said here about access.")
    return _who_options("bind")(_who_options("connect")(wildcards(reset(gathered))))


def _who_options(name: str) -> Callable[[Any], Any]:
    """The two options that say who may bind, or connect."""
    who = click.option(
        f"--{name}",
        metavar="WHO",
        multiple=True,
        help=f"Who may {name}: user:NAME, group:NAME, everyone, or owner for nobody else. Repeatable.",
    )
    sddl = click.option(
        f"--{name}-sddl", metavar="SDDL", help=f"Instead: a security descriptor that says who may {name}."
    )
    return lambda function: who(sddl(function))


@click.command()
@key_argument
@vm_option
@access_options
@json_option
def access(key: str, vm: str | None, changes: dict[str, Any], as_json: bool) -> None:
    """Say who may bind and connect: users and groups besides the owner, root and the admin group, or by SDDL.

    A security descriptor decides alone, over the owner too: where nothing is said, D:P(A;;FA;;;SY)(A;;FA;;;BA)
    holds. Users are S-1-22-1-UID in it, groups S-1-22-2-GID, root is SY, and who administers the fabric is BA.
    Without options the command shows what holds. Only processes of the host are checked for their user.
    """
    if sys.platform == "win32":
        raise AssertionError("the table of commands has it on Linux alone")
    with open_registry() as registry:
        vm_id = None if vm is None else vm_id_of(vm)
        entry = registry.change_settings(key, vm_id, **changes) if changes else registry.find(key)
        defaults = registry.defaults()
    print_entry(entry, defaults, as_json)


def _descriptor(option: str, sddl: str) -> Any:
    from hvsock.topology.sddl import parse_sddl

    try:
        return parse_sddl(sddl)
    except UsageError as error:
        raise click.BadParameter(str(error), param_hint=f"--{option}-sddl") from None


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
