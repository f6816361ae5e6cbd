"""What a pipeline is to run."""

from __future__ import annotations

from typing import Any

from hvsock.errors import UsageError


class Command:
    """A command with its arguments, which reach it as values: no text is put together, so none has to be quoted.

    ::

        Command("Get-ChildItem", "/tmp", Recurse=True)

    Args:
        name: the command; a cmdlet, function, alias or program.
        arguments: values for parameters by their place.
        parameters: values for parameters by their name; True for a switch.

    Raises:
        UsageError: there is no name.
    """

    is_script = False

    def __init__(self, name: str, /, *arguments: Any, **parameters: Any) -> None:
        if not name.strip():
            raise UsageError("a command has no name")
        self.name = name
        self.arguments = arguments
        self.parameters = parameters

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class Script(Command):
    """A script, with arguments for its `param(...)` or `$args`.

    Args:
        name: its text.
        arguments: values for parameters by their place.
        parameters: values for parameters by their name.
    """

    is_script = True


def commands_of(what: tuple[Command | str, ...]) -> tuple[Command, ...]:
    """The commands of a pipeline, of which each takes the output of the one before; a str is a script.

    Raises:
        UsageError: there is none.
    """
    if not what:
        raise UsageError("a pipeline needs a script or a command")
    return tuple(one if isinstance(one, Command) else Script(one) for one in what)
