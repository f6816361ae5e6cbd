"""The command `hvsock`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from hvsock._version import __version__

from .lazy import Entry, LazyGroup
from .outcome import EXIT_CODES, conclude

PROGRAM: Final = "hvsock"
COMPLETION_VARIABLE: Final = "_HVSOCK_COMPLETE"
"""Environment variable by which the scripts of `hvsock completion` ask for completions."""

_IN: Final = "hvsock.cli.commands"
COMMANDS: Final = {
    "up": Entry(f"{_IN}.up:up", "Run the fabric's broker in the foreground."),
    "status": Entry(f"{_IN}.status:status", "Show partitions, services and their counters."),
    "doctor": Entry(f"{_IN}.doctor:doctor", "Check the environment, or why a connection works or not."),
    "selftest": Entry(f"{_IN}.selftest:selftest", "Check this machine's transport from end to end."),
    "service": Entry(f"{_IN}.service:service", "Register, list, enable, disable, export services."),
    "partition": Entry(f"{_IN}.partition:partition", "Create, remove and list partitions."),
    "device": Entry(f"{_IN}.device:device", "Be the virtio socket device of one VM, for QEMU."),
    "vm": Entry(f"{_IN}.vm:vm", "Run real virtual machines as partitions."),
    "run": Entry(f"{_IN}.run:run", "Run a command whose sockets live in a partition."),
    "listen": Entry(f"{_IN}.listen:listen", "Take connections: standard input and output, --exec, --echo."),
    "connect": Entry(f"{_IN}.connect:connect", "Connect: standard input and output, --exec, --echo."),
    "forward": Entry(f"{_IN}.forward:forward", "Make services of existing servers, by a relay."),
    "uplink": Entry(f"{_IN}.uplink:uplink", "Be the way up: to the parent of a fabric's host."),
    "hybrid": Entry(f"{_IN}.hybrid:hybrid", "Speak the hybrid sockets of Firecracker and its kin."),
    "nbd": Entry(f"{_IN}.nbd:nbd", "Disks that a service serves, by the kernel's NBD client."),
    "agent": Entry(f"{_IN}.agent:agent", "Serve the guest half of the integration services."),
    "integration": Entry(f"{_IN}.integration:integration", "List, enable, disable a VM's integration services."),
    "heartbeat": Entry(f"{_IN}.heartbeat:heartbeat", "Show how VMs are; in a VM, tell how a program is."),
    "timesync": Entry(f"{_IN}.timesync:timesync", "Measure and set a VM's clock."),
    "cp": Entry(f"{_IN}.cp:cp", "Copy files to a VM, and from one."),
    "exec": Entry(f"{_IN}.exec:exec_", "Run a command in a guest, by its agent."),
    "shell": Entry(f"{_IN}.exec:shell", "Sit down at a shell in a guest, by its agent."),
    "pwsh": Entry(f"{_IN}.pwsh:pwsh", "PowerShell in a guest: a script, or a conversation."),
    "direct": Entry(f"{_IN}.direct:direct", "OpenSSH and SFTP into a guest, and their keys."),
    "kvp": Entry(f"{_IN}.kvp:kvp", "Keys and values between host and guest."),
    "shutdown": Entry(f"{_IN}.shutdown:shutdown", "Shut a VM down, reboot or hibernate it, from within."),
    "vss": Entry(f"{_IN}.vss:vss", "Freeze a guest's file systems, for backups of its disks."),
    "guid": Entry(f"{_IN}.guid:guid", "Print a new GUID, and copy it if asked."),
    "demo": Entry(f"{_IN}.demo:demo", "Walk through everything once, in a fabric of its own."),
    "completion": Entry(f"{_IN}.completion:completion", "Print the completion script of a shell."),
}
ON_WINDOWS: Final = frozenset(
    {"doctor", "selftest", "service", "listen", "connect", "integration", "guid", "completion"}
)

_HELP: Final = """Hyper-V sockets on every machine: services by GUID, sockets by (VmId, ServiceId).

A name may stand wherever a GUID does. VmIds are also written as parent, children, loopback, any and
silohost, and services as ports.
"""
_EPILOG: Final = f"""HVSOCK_DIR is the fabric's folder, and HVSOCK_PARTITION the folder of the partition that
a process speaks for (default: the host's). HVSOCK_TRANSPORT is fabric, vsock (for Linux guests) or hybrid (for
Firecracker and its kin); HVSOCK_CONFIG is a TOML file that may say so too, and HVSOCK_PROFILE one of its profiles.

\b
{EXIT_CODES}
"""


class Root(LazyGroup):
    """The command itself."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **__: Any) -> Any:
        """Run the command and exit.

        Args:
            args: the arguments; by default those of the process.
            prog_name: what help calls the command.
        """
        name = prog_name or PROGRAM
        arguments = list(sys.argv[1:] if args is None else args)
        sys.exit(int(conclude(lambda: self._run(name, arguments))))

    def _run(self, name: str, arguments: list[str]) -> object:
        if instruction := os.environ.get(COMPLETION_VARIABLE):
            from click.shell_completion import shell_complete

            return shell_complete(self, {}, name, COMPLETION_VARIABLE, instruction)
        with self.make_context(name, arguments) as context:
            return self.invoke(context)


@click.group(PROGRAM, cls=Root, table=COMMANDS, on_windows=ON_WINDOWS, help=_HELP, epilog=_EPILOG)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """See :data:`_HELP`."""


def main() -> None:
    """Run the command `hvsock` and exit."""
    _open_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    cli.main(prog_name=PROGRAM)


def _open_standard_descriptors() -> None:
    """Put the null device where a standard descriptor is closed, so that no socket gets its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
