"""The device as a process: its sockets, its signals, and what it gives up before it serves a guest."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import logging
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

from hvsock.fabric.reactor import Reactor

from .device import Device, Limits
from .reporting import Reports

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

log = logging.getLogger(__name__)

CAPABILITIES: Final = json.dumps({"type": "vsock", "features": []})
"""What --print-capabilities prints (QEMU, docs/interop/vhost-user.json)."""
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_DUMPABLE: Final = 4
DESCRIPTORS_PER_CONNECTION: Final = 2
"""A connection's socket and its end mark."""
SPARE_DESCRIPTORS: Final = 256
"""For the queues, the front end, couriers and connects under way."""


def bound_socket(path: str) -> socket.socket:
    """A listening socket at `path`, for its owner alone; it takes the place of one that nobody has any more.

    Raises:
        OSError: EADDRINUSE: somebody listens there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_dead(path):
                raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _is_dead(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def give_up_rights(limits: Limits) -> None:
    """Keep what a device needs: descriptors, but no new privileges, files, processes or core files."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0):
            log.warning("prctl %d: %s", option, os.strerror(ctypes.get_errno()))
    wanted = DESCRIPTORS_PER_CONNECTION * limits.connections + SPARE_DESCRIPTORS
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    if count < wanted:
        log.warning("%d descriptors are allowed, enough for %d connections", count, count // 2)


def serve(
    cid: int,
    folder: str,
    *,
    socket_path: str | None = None,
    descriptor: int | None = None,
    report_path: str | None = None,
    limits: Limits,
    on_ready: Callable[[], None],
) -> None:
    """Be the device of one VM until SIGTERM or SIGINT, or until the front end of `descriptor` leaves.

    Args:
        cid: the guest's CID.
        folder: the VM's partition folder.
        socket_path: where front ends connect, one after another.
        descriptor: instead of that, a socket that a front end is connected to; closed at the end.
        report_path: where the counters are to be read.
        limits: what the guest may use.
        on_ready: called once front ends may connect.

    Raises:
        OSError: a path cannot be bound, or the broker refuses.
    """
    with contextlib.ExitStack() as stack:
        reactor = Reactor()
        stack.callback(reactor.close)
        device = Device(reactor, cid, folder, limits)
        stack.callback(device.close)
        if report_path is not None:
            stack.callback(Reports(reactor, bound_socket(report_path), device.report).close)
        if socket_path is not None:
            listener = stack.enter_context(bound_socket(socket_path))
            stack.callback(_unlink, socket_path)
            reactor.watch(listener.fileno(), select.EPOLLIN, lambda events: _accept(listener, device))
        if descriptor is not None:
            device.serve(socket.socket(fileno=descriptor), on_left=reactor.stop)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: reactor.stop())
        give_up_rights(limits)
        on_ready()
        reactor.run()


def _accept(listener: socket.socket, device: Device) -> None:
    with contextlib.suppress(BlockingIOError):
        front_end, _ = listener.accept()
        device.serve(front_end)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
