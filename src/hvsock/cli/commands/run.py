"""`hvsock run`."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import click

from hvsock.cli.names import complete_partitions, folder_of
from hvsock.cli.outcome import CommandError, ExitCode
from hvsock.fabric import paths
from hvsock.transport import TRANSPORT_VARIABLE, Transport

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--partition",
    "name",
    metavar="NAME",
    required=True,
    shell_complete=complete_partitions,
    help="The partition: its name or VmId, or host.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(name: str, command: tuple[str, ...]) -> NoReturn:
    """Run COMMAND, whose Hyper-V sockets live in the partition NAME.

    It gets HVSOCK_PARTITION, HVSOCK_DIR and HVSOCK_TRANSPORT, takes the place of this process, and so its exit
    code is the command's own.
    """
    environ = {
        **os.environ,
        paths.FOLDER_VARIABLE: paths.fabric_folder(),
        paths.PARTITION_VARIABLE: folder_of(name),
        TRANSPORT_VARIABLE: Transport.FABRIC,  # whatever the configuration says to others
    }
    sys.stdout.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a command would inherit that
    try:
        os.execvpe(command[0], command, environ)
    except OSError as error:
        import shutil

        if isinstance(error, FileNotFoundError | NotADirectoryError) or (
            os.sep not in command[0] and shutil.which(command[0]) is None  # a folder in PATH may not be entered
        ):
            raise CommandError(f"there is no command {command[0]!r}", ExitCode.NO_SUCH_COMMAND) from None
        raise CommandError(f"cannot run {command[0]!r}: {error.strerror}", ExitCode.CANNOT_EXECUTE) from None
