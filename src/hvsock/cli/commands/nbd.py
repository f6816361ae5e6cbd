"""`hvsock nbd`."""

from __future__ import annotations

import logging
import os
import sys

import click

import hvsock
from hvsock.cli.lazy import HELP_OPTIONS
from hvsock.cli.loglines import LogLines
from hvsock.cli.names import complete_addresses, complete_services
from hvsock.cli.outcome import say
from hvsock.nbd import process
from hvsock.nbd.handshake import Ability, Export
from hvsock.notify import notify

if sys.platform != "linux":
    raise ImportError("NBD devices are Linux's")


@click.group(context_settings=HELP_OPTIONS)
def nbd() -> None:
    """Disks that a service serves by NBD, as qemu-nbd, nbdkit and nbd-server do."""


@nbd.command()
@click.argument("address", shell_complete=complete_addresses)
@click.argument("service", shell_complete=complete_services)
@click.argument("device", type=click.Path())
@click.option(
    "--export", metavar="NAME", default="", help="Which of the server's exports; by default its default."
)
@click.option("--read-only", is_flag=True, help="Let nobody write to it.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.IntRange(1, 3600),
    default=process.ANSWER_SECONDS,
    show_default=True,
    help="How long the server may take for a block; then the disk is given up, with I/O errors.",
)
@click.option(
    "--wait",
    metavar="SECONDS",
    type=click.FloatRange(min=0.001),
    help="Try again for so long until the service is there.",
)
def attach(
    address: str, service: str, device: str, export: str, read_only: bool, timeout: int, wait: float | None
) -> None:
    """Be the disk DEVICE, like /dev/nbd0, until SIGTERM or SIGINT.

    ADDRESS is parent, loopback, silohost, a partition's name or a VmId; SERVICE is a name, a GUID or a port. The
    kernel's own client reads and writes the disk, and this command passes on what it says. It takes root and the
    kernel's module nbd. Unmount the disk before ending this. When the server is gone, so is the disk: all that
    uses it gets I/O errors, and the exit code is 1. It tells systemd when the disk is there (Type=notify).
    """
    logging.basicConfig(level=logging.INFO, handlers=[LogLines()])
    connection = hvsock.create_connection((address, service), wait, retry=wait is not None)

    def ready(found: Export) -> None:
        how = ", read-only" if read_only or Ability.READ_ONLY in found.abilities else ""
        say(f"{device} is there: {found.size} bytes{how} (process {os.getpid()})")
        notify("READY=1")

    process.serve(connection, device, ready, export=export, read_only=read_only, seconds=timeout)
