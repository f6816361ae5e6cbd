"""`hvsock uplink`."""

from __future__ import annotations

import logging
import os
import sys

import click

from hvsock.cli.loglines import LogLines
from hvsock.cli.outcome import say
from hvsock.notify import notify
from hvsock.relay.uplink import serve, way_of

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
        notify("READY=1")

    serve(way_of(way), ready)
