"""`hvsock uplink`."""

from __future__ import annotations

import logging
import os
import sys

import click

from hvsock.availability import VSOCK_DEVICE
from hvsock.cli.loglines import LogLines
from hvsock.cli.outcome import say
from hvsock.fabric import paths
from hvsock.hybrid.listening import is_served
from hvsock.notify import notify
from hvsock.relay.uplink import UNIX, VSOCK, serve, way_of

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


@click.command()
@click.argument("way", metavar="vsock|unix:FOLDER")
def uplink(way: str) -> None:
    """Be the way up of the fabric on this machine, which is a VM or a container itself, until SIGTERM or SIGINT.

    What its host connects to on PARENT, and its containers with HVSOCKET_CONTAINER_PASSTHRU, goes to the machine's
    own parent: by AF_VSOCK, or as the partition of an outer fabric whose folder is bind-mounted here.
    `hvsock up --uplink` runs this by itself; what is to outlive the broker runs it as a service of its own.
    """
    logging.basicConfig(level=logging.INFO, handlers=[LogLines()])

    def ready() -> None:
        say(f"the way up is {way} (process {os.getpid()})")
        if (missing := _missing_on(way)) is not None:
            say(f"it leads nowhere yet: {missing}")
        notify("READY=1")

    serve(way_of(way), ready)


def _missing_on(way: str) -> str | None:
    """What is not there that a way needs; None where all is. It may come later."""
    if way == VSOCK:
        return None if os.path.exists(VSOCK_DEVICE) else f"there is no {VSOCK_DEVICE}; as root: modprobe vsock"
    folder = way.removeprefix(UNIX)
    if os.path.isdir(folder):
        up = is_served(folder, paths.STREAM_SOCKET)
        return None if up else f"no broker answers in {folder}; bind-mount a partition's, of a fabric that is up"
    return f"there is no folder {folder}; bind-mount that of this machine's partition there"
