"""Groups of commands that import a command when it is called, so that `--help` costs next to nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

HELP_OPTIONS: Final = {"help_option_names": ["-h", "--help"]}
"""Settings of every command."""


class Entry(NamedTuple):
    """A command that is not imported yet.

    Attributes:
        target: ``module:name`` of the :class:`click.Command`.
        help: what the group's help says about it.
    """

    target: str
    help: str


class LazyGroup(click.Group):
    """A group whose commands are named in a table.

    Args:
        table: the commands by name, in the order in which help lists them.
    """

    def __init__(self, *args: Any, table: Mapping[str, Entry], **keywords: Any) -> None:
        super().__init__(*args, context_settings=HELP_OPTIONS, **keywords)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, imported; None where there is none."""
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command), entry.target
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, out of the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The commands that begin with `incomplete`, and the options."""
        commands = [
            CompletionItem(name, help=entry.help)
            for name, entry in self.table.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]
