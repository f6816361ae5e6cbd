"""Whoever runs a pipeline, as its script sees them: the *host* of PowerShell, which writes and asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hvsock.errors import HvsockError, NotReadyError

from .records import Progress, Secret

DEFAULT_SIZE: Final = (120, 50)
"""Columns and rows of a host that has no terminal, as PowerShell's own."""


class HostGoneError(HvsockError):
    """Nobody is there any more to write to; raised by a host, it ends the pipeline where its records are read."""


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that a script asks for in a prompt.

    Attributes:
        name: its name, under which the answer goes back.
        label: what to show for it; "" for its name.
        help: what may be shown about it.
        type: the .NET type that is wanted, like "String" or "SecureString".
        default: what is meant where nothing is answered; None for nothing.
    """

    name: str
    label: str = ""
    help: str = ""
    type: str = "String"
    default: Any = None

    @property
    def is_secret(self) -> bool:
        """Whether the answer is to be a :class:`.records.Secret`, and not to be shown."""
        return self.type == "SecureString"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several things that a script lets its host choose from.

    Attributes:
        label: what to show for it, without the mark of its key.
        key: the letter that chooses it; "" for none.
        help: what may be shown about it.
    """

    label: str
    key: str = ""
    help: str = ""


class Host:
    """A host that writes nothing and answers nothing; a subclass overrides what it can do.

    A method that raises makes the script's own call fail, with the text of the exception as its error; but
    :class:`HostGoneError` ends the pipeline. Methods of one pipeline are called one at a time, in the order of
    what the pipeline wrote.
    """

    def size(self) -> tuple[int, int]:
        """Columns and rows, once when the pool is opened and whenever a script asks."""
        return DEFAULT_SIZE

    async def write(self, text: str) -> None:
        """Write text as it is; a line has its end."""

    async def write_error(self, text: str) -> None:
        """Write a line, without its end, of a stream that is not the output: "error", "debug" and so on."""

    async def progress(self, progress: Progress) -> None:
        """Show how far something is."""

    async def read_line(self) -> str:
        """A line from whoever sits there, without its end."""
        raise NotReadyError(_NOBODY)

    async def read_secret(self) -> Secret:
        """A line that is not shown."""
        raise NotReadyError(_NOBODY)

    async def prompt(self, caption: str, message: str, fields: Sequence[Field]) -> dict[str, Any]:
        """Ask for some fields, by default line by line; the answers by the fields' names."""
        for line in (caption, message):
            if line:
                await self.write(f"{line}\n")
        answers: dict[str, Any] = {}
        for one in fields:
            await self.write(f"{one.label or one.name}: ")
            answer = await self.read_secret() if one.is_secret else await self.read_line()
            answers[one.name] = one.default if one.default is not None and not answer else answer
        return answers

    async def credential(self, caption: str, message: str, user: str, target: str) -> tuple[str, Secret]:
        """Ask for a user and a password; `user` is the one to offer, or "", `target` what it is for, or ""."""
        for line in (caption, message):
            if line:
                await self.write(f"{line}\n")
        if not user:
            await self.write("User: ")
            user = await self.read_line()
        await self.write(f"Password for user {user}: ")
        return user, await self.read_secret()

    async def choose(self, caption: str, message: str, choices: Sequence[Choice], default: int) -> int:
        """Let somebody choose, by default by a letter or a label; the index of the choice.

        Args:
            caption: a title, or "".
            message: the question, or "".
            choices: what there is.
            default: the index that is meant by an empty answer; negative for none.
        """
        for line in (caption, message):
            if line:
                await self.write(f"{line}\n")
        shown = "  ".join(f"[{one.key}] {one.label}" if one.key else one.label for one in choices)
        offer = f" (default is {choices[default].key or choices[default].label!r})" if default >= 0 else ""
        while True:
            await self.write(f"{shown}{offer}: ")
            answer = (await self.read_line()).strip().casefold()
            if not answer and default >= 0:
                return default
            for index, one in enumerate(choices):
                if answer and answer in (one.key.casefold(), one.label.casefold()):
                    return index

    async def exit(self, code: int) -> None:
        """The script says `exit`; it ends by itself."""


_NOBODY: Final = "nobody is there to answer: this session has no terminal"
