"""`hvsock up`: one broker as a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
from collections.abc import Callable
from typing import Final

from hvsock.fabric.reactor import ending_by_signals
from hvsock.notify import notify

from .broker import Broker
from .folder import FabricFolder

if sys.platform != "linux":
    raise ImportError("the broker needs Linux")

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5.0
"""Default time that requests under way have to end after SIGTERM or SIGINT."""


def serve(
    path: str,
    *,
    admin_gid: int | None = None,
    shared: bool = False,
    grace_seconds: float = GRACE_SECONDS,
    on_ready: Callable[[], None] | None = None,
) -> None:
    """Run a broker in the foreground until SIGTERM or SIGINT; a second signal forces the end.

    Tells systemd when it is ready and when it stops, where $NOTIFY_SOCKET is set (sd_notify(3)).

    Args:
        path: the fabric's folder.
        admin_gid: see :class:`.folder.FabricFolder`.
        shared: see :class:`.folder.FabricFolder`.
        grace_seconds: time that requests under way have to end.
        on_ready: called once the control sockets are there.

    Raises:
        StateError: another broker runs there, or a file of the fabric cannot be used.
        OSError: a control socket of the host cannot be made.
    """
    raise_descriptor_limit()
    folder = FabricFolder(path, admin_gid=admin_gid, shared=shared)
    try:
        broker = Broker(folder)
    except BaseException:
        folder.close()
        raise
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if stopping:
            broker.stop()
        else:
            stopping = True
            broker.reactor.call_from_thread(lambda: broker.stop_gently(grace_seconds))
            notify("STOPPING=1")

    try:
        with ending_by_signals(broker.reactor, stop):
            if on_ready is not None:
                on_ready()
            notify(f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving {folder.path}")
            broker.run()
    finally:
        broker.close()


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
