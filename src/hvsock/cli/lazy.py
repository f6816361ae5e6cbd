"""Groups of commands that import a command when it is called, so that `--help` costs next to nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from .outcome import CommandError

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
        on_windows: the names of those that are there on Windows, too; None for all.
    """

    def __init__(
        self, *args: Any, table: Mapping[str, Entry], on_windows: AbstractSet[str] | None = None, **keywords: Any
    ) -> None:
        super().__init__(*args, context_settings=HELP_OPTIONS, **keywords)
        self.table = table
        self.on_windows = on_windows

    def _there(self) -> dict[str, Entry]:
        """The commands that this system has."""
        if sys.platform != "win32" or self.on_windows is None:
            return dict(self.table)
        return {name: entry for name, entry in self.table.items() if name in self.on_windows}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self._there())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, imported; None where there is none.

        Raises:
            CommandError: Windows has no such command.
        """
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        there = self._there()
        if cmd_name not in there:
            raise CommandError(
                f"there is no {ctx.command_path} {cmd_name} on Windows (docs/windows.md says why); "
                f"what there is: {', '.join(there)}"
            )
        module, _, name = entry.target.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command), entry.target
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, out of the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._there().items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The commands that begin with `incomplete`, and the options."""
        commands = [
            CompletionItem(name, help=entry.help)
            for name, entry in self._there().items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]
