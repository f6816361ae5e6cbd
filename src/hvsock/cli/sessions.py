"""What `hvsock listen` and `hvsock connect` do with a connection."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from hvsock.addresses import describe_service_id, describe_vm_id
from hvsock.errors import UsageError

from .output import console_for_errors, size_text

if sys.platform == "win32":
    from hvsock.windows import names

    from .pump_threads import INTERRUPT_SECONDS, Pump, execute_over_pipes
else:
    from hvsock import names

    from .pump import Pump

if TYPE_CHECKING:
    import socket as _stdlib

    from hvsock.addresses import Address
    from hvsock.sockets.chosen import socket
    from hvsock.sockets.patience import AddressLike

ECHO_BYTES: Final = 256 * 1024
"""Bytes that an echo takes at once: what a connection holds with the kernel's default sizes, and some more."""
PEER_VMID: Final = "HVSOCK_PEER_VMID"
"""Environment variable of commands run by --exec: the VmId of the peer."""
PEER_SERVICE: Final = "HVSOCK_PEER_SERVICE"
"""Environment variable of commands run by --exec: the ServiceId of the peer's address."""
PROGRESS_PER_SECOND: Final = 4
"""How often the line of --progress is drawn."""
SHUT_WR: Final = 1


def session_options(function: Any) -> Any:
    """The options that say what a connection is for."""
    for option in (
        click.option("--progress", is_flag=True, help="Show on standard error how much went through."),
        click.option("--echo", is_flag=True, help="Send back what comes in."),
        click.option(
            "--exec",
            "command",
            metavar="CMD",
            help="Run CMD by the shell; the connection is its input and output.",
        ),
    ):
        function = option(function)
    return function


def address_of(address: str, service: str | None) -> AddressLike:
    """An address on the command line: its two halves, or a URL of any kind.

    Raises:
        click.UsageError: a half is missing.
        UsageError: it is a URL with a mistake.
    """
    if service is not None:
        return address, service
    if ":" not in address:
        raise click.UsageError("Missing argument 'SERVICE': its name, GUID or port.")
    names.parse(address)
    return address


def shown(address: AddressLike) -> str:
    """An address as it was written."""
    return address if isinstance(address, str) else " ".join(address)


def check_session(command: str | None, echo: bool, progress: bool) -> None:
    """Refuse options that exclude each other.

    Raises:
        click.UsageError: two of them.
    """
    if command is not None and echo:
        raise click.UsageError("--exec and --echo exclude each other")
    if progress and (command is not None or echo):
        raise click.UsageError("--progress is for standard input and output, not for --exec and --echo")
    if command is not None and not command.strip():
        raise UsageError("the command of --exec is empty")


def pipe(sock: _stdlib.socket, source: int | None, *, progress: bool = False) -> None:
    """Standard input (or nothing) to `sock`, and `sock` to standard output; see :meth:`Pump.run`."""
    sys.stdout.flush()
    pump = Pump(sock, source, sys.stdout.fileno())
    with _progress(pump) if progress else contextlib.nullcontext():
        pump.run()


@contextlib.contextmanager
def _progress(pump: Pump) -> Iterator[None]:
    import time

    from rich.live import Live
    from rich.text import Text

    started = time.monotonic()

    def line() -> Text:
        seconds = max(time.monotonic() - started, 0.001)
        rate = size_text((pump.sent + pump.received) / seconds)
        return Text(f"sent {size_text(pump.sent)}, received {size_text(pump.received)}, {rate}/s, {seconds:.0f} s")

    with Live(get_renderable=line, console=console_for_errors(), refresh_per_second=PROGRESS_PER_SECOND):
        yield


def echo_back(sock: socket) -> None:
    """Send back everything that comes, up to the end of stream, and then end the own one.

    Raises:
        ConnectionError: the connection was reset, or the peer left before it took everything.
    """
    buffer = memoryview(bytearray(ECHO_BYTES))
    while count := sock.recv_into(buffer):
        sock.sendall(buffer[:count])
    with contextlib.suppress(OSError):  # the peer is gone
        sock.shutdown(SHUT_WR)


def execute(sock: socket, command: str) -> int:
    """Run `command` by the shell with `sock` as its standard input and output; returns its exit code.

    `sock` is closed here as soon as the command has it, so that the peer sees an end when the command ends. On
    Windows the command has pipes, as programs cannot read such a socket there.
    """
    import subprocess  # here, as most sessions run no command

    peer = sock.getpeername()
    environ = {**os.environ, PEER_VMID: str(peer.vm_id), PEER_SERVICE: str(peer.service_id)}
    if sys.platform == "win32":
        return execute_over_pipes(sock, command, environ)
    process = subprocess.Popen(command, shell=True, stdin=sock.fileno(), stdout=sock.fileno(), env=environ)
    sock.close()
    code = process.wait()
    return 128 - code if code < 0 else code


def accept(server: socket) -> tuple[socket, Address]:
    """Wait for a connection; on Windows in short pieces, since Ctrl-C does not interrupt an accept there."""
    if sys.platform == "win32":
        server.settimeout(INTERRUPT_SECONDS)
        while True:
            with contextlib.suppress(TimeoutError):
                return server.accept()
    return server.accept()


def describe(address: Address) -> str:
    """An address for people."""
    return f"{describe_vm_id(address.vm_id)} {describe_service_id(address.service_id)}"
