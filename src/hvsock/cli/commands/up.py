"""`hvsock up`."""

from __future__ import annotations

import contextlib
import logging
import os
import sys

import click

from hvsock.cli.names import group_id
from hvsock.cli.outcome import say
from hvsock.fabric import paths
from hvsock.fabric.broker.server import GRACE_SECONDS, serve
from hvsock.relay.keeper import Keeper

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")


@click.command()
@click.option("--admin-group", metavar="GROUP", help="The members of GROUP administer the fabric too.")
@click.option("--shared", is_flag=True, help="Let every user of this machine reach the host's sockets.")
@click.option(
    "--grace",
    metavar="SECONDS",
    type=click.FloatRange(min=0),
    default=GRACE_SECONDS,
    show_default=True,
    help="How long requests under way may take to end after SIGTERM or SIGINT; a second signal ends at once.",
)
def up(admin_group: str | None, shared: bool, grace: float) -> None:
    """Run the fabric's broker in the foreground, until SIGTERM or SIGINT.

    It serves the folder HVSOCK_DIR. Connections and listeners outlive it, and the next one finds them
    again. It runs a relay as its child while any service is forwarded (see hvsock forward). It tells
    systemd when it is ready (Type=notify).
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="hvsock: %(levelname)s: %(message)s")
    folder = paths.fabric_folder()
    with contextlib.ExitStack() as stack:

        def ready() -> None:
            say(f"the fabric is up in {folder} (process {os.getpid()})")
            keeper = Keeper(folder)
            stack.callback(keeper.stop)
            keeper.start()

        serve(
            folder,
            admin_gid=None if admin_group is None else group_id(admin_group),
            shared=shared,
            grace_seconds=grace,
            on_ready=ready,
        )
