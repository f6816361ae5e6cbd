"""`hvsock up`."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

import click

from hvsock.cli.names import group_id
from hvsock.cli.outcome import say
from hvsock.fabric import paths
from hvsock.fabric.broker.server import GRACE_SECONDS, serve
from hvsock.kept import Kept
from hvsock.relay.keeper import kept_relay, kept_uplink
from hvsock.relay.uplink import way_of
from hvsock.vm.runs import running_names

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")


def kept_timesync(folder: str) -> Kept:
    """What keeps `hvsock timesync --keep` running while a VM of the fabric in `folder` does."""

    @contextlib.contextmanager
    def looking() -> Iterator[Callable[[], bool]]:
        yield lambda: bool(running_names(folder))

    return Kept("time synchronisation", ("timesync", "--keep"), folder, looking, until_unwanted=True)


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
@click.option(
    "--timesync/--no-timesync",
    default=True,
    show_default=True,
    help="Keep the clocks of VMs of `hvsock vm` right.",
)
@click.option(
    "--uplink",
    metavar="WAY",
    help="For a VM or a container: its own parent is reached by vsock, or by unix:FOLDER of its partition.",
)
def up(admin_group: str | None, shared: bool, grace: float, timesync: bool, uplink: str | None) -> None:
    """Run the fabric's broker in the foreground, until SIGTERM or SIGINT.

    It serves the folder HVSOCK_DIR. Connections and listeners outlive it, and the next one finds them
    again. It runs a relay as its child while any service is forwarded (see hvsock forward), and another that
    keeps the clocks of VMs right while any runs (see hvsock timesync), and with --uplink a third, the way to this
    machine's own parent (see hvsock uplink). It tells systemd when it is ready (Type=notify).
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="hvsock: %(levelname)s: %(message)s")
    folder = paths.fabric_folder()
    if uplink is not None:
        way_of(uplink)  # says what is wrong with it
    with contextlib.ExitStack() as stack:

        def ready() -> None:
            say(f"the fabric is up in {folder} (process {os.getpid()})")
            keep = [kept_relay(folder), *([kept_timesync(folder)] if timesync else [])]
            for kept in (*keep, *([] if uplink is None else [kept_uplink(folder, uplink)])):
                stack.callback(kept.stop)
                kept.start()

        serve(
            folder,
            admin_gid=None if admin_group is None else group_id(admin_group),
            shared=shared,
            grace_seconds=grace,
            on_ready=ready,
        )
