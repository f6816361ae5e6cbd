"""How a command ends: its exit code, and the one line on standard error when something went wrong."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from enum import IntEnum

import click

from hvsock.errors import (
    DuplicateError,
    HvsockError,
    NoFabricError,
    NotFoundError,
    RefusedError,
    UsageError,
)


class ExitCode(IntEnum):
    """The exit codes of every command; `hvsock run` and `--exec` end with the code of their command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_FABRIC = 3
    NOT_ALLOWED = 4
    NOT_FOUND = 5
    IN_USE = 6
    CANNOT_EXECUTE = 126
    NO_SUCH_COMMAND = 127
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141


EXIT_CODES = """Exit codes:
    0    it is done
    1    it failed, or was refused
    2    wrong usage
    3    no broker answers
    4    not allowed
    5    not found
    6    the name, id or address is in use already
  130    interrupted
  141    standard output was closed
`run` and `connect --exec` end as their command does
(126: it cannot be executed, 127: it is not there)."""
"""The codes as `hvsock --help` lists them."""

_BY_ERRNO = {
    errno.ENETUNREACH: ExitCode.NO_FABRIC,
    errno.EACCES: ExitCode.NOT_ALLOWED,
    errno.EPERM: ExitCode.NOT_ALLOWED,
    errno.ENOENT: ExitCode.NOT_FOUND,
    errno.EADDRINUSE: ExitCode.IN_USE,
}
_BY_CLASS: tuple[tuple[type[HvsockError], ExitCode], ...] = (
    (NoFabricError, ExitCode.NO_FABRIC),
    (RefusedError, ExitCode.NOT_ALLOWED),
    (NotFoundError, ExitCode.NOT_FOUND),
    (DuplicateError, ExitCode.IN_USE),
    (UsageError, ExitCode.USAGE),
)


class CommandError(HvsockError):
    """A command failed; it says so with the code that it wants.

    Args:
        text: one line for standard error.
        code: the exit code.
    """

    def __init__(self, text: str, code: int = ExitCode.FAILED) -> None:
        super().__init__(text)
        self.code = code


def conclude(work: Callable[[], object]) -> int:
    """Run `work`; returns the exit code, after one line on standard error where it is not 0.

    Args:
        work: the command; an integer that it returns is the exit code.
    """
    try:
        result = work()
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "hvsock"
        say(f"{error.format_message()} (see: {command} --help)", command)
        return ExitCode.USAGE
    except click.ClickException as error:
        say(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _give_output_up()
        return ExitCode.OUTPUT_CLOSED
    except (HvsockError, OSError) as error:
        say(text_of(error))
        return code_of(error)
    except ImportError as error:
        if sys.platform == "linux":
            raise
        say(f"not on this system: {error}")
        return ExitCode.FAILED
    return result if isinstance(result, int) else ExitCode.OK


def code_of(error: HvsockError | OSError) -> int:
    """The exit code for `error`."""
    if isinstance(error, CommandError):
        return error.code
    for kind, code in _BY_CLASS:
        if isinstance(error, kind):
            return code
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_ERRNO.get(error.errno, ExitCode.FAILED)
    return ExitCode.FAILED


def text_of(error: BaseException) -> str:
    """What `error` says, for people."""
    if isinstance(error, OSError) and not isinstance(error, HvsockError) and error.strerror:
        about = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return f"{about}{error.strerror}"
    return str(error) or type(error).__name__


def say(text: str, who: str = "hvsock") -> None:
    """Write one line to standard error; line breaks and control characters in `text` do not get through."""
    line = " ".join(f"{who}: {text}".split())
    with contextlib.suppress(OSError):  # standard error is closed: the exit code has to do
        click.echo(printable(line), err=True)


def printable(text: str) -> str:
    """A stranger's text with everything escaped that a terminal may take for more than a character."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _give_output_up() -> None:
    """Nobody reads standard output any more: let the interpreter's last flush go nowhere."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
