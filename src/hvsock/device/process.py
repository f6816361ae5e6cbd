"""The device as a process: its sockets, its signals, its rights."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import socket
import stat
import sys
from collections.abc import Callable
from typing import Final

from hvsock.fabric import paths
from hvsock.fabric.door import Door
from hvsock.fabric.reactor import Reactor, ending_by_signals

from . import rights
from .device import Device, Limits
from .reporting import Reports

if sys.platform != "linux":
    raise ImportError("the device needs Linux: vhost-user and the fabric are built on AF_UNIX and eventfd")

CAPABILITIES: Final = json.dumps({"type": "vsock", "features": []})
"""What --print-capabilities prints (QEMU, docs/interop/vhost-user.json)."""
OWNER_MODE: Final = 0o600
"""Mode of a socket that only its owner may connect to."""
GROUP_MODE: Final = 0o660
"""Mode of one that a group may connect to, too."""


def bound_socket(path: str, gid: int | None = None) -> socket.socket:
    """A listening socket at `path`, non-blocking; it takes the place of one that nobody has any more.

    Args:
        path: where; of any length.
        gid: the group whose members may connect, besides the owner; None for the owner alone.

    Raises:
        OSError: EADDRINUSE: somebody listens there.
    """
    folder, name = os.path.split(os.path.abspath(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        try:
            paths.at(folder, name, listener.bind)
        except OSError as error:
            # a connect to a file is refused as well
            is_socket = error.errno == errno.EADDRINUSE and stat.S_ISSOCK(os.lstat(path).st_mode)
            if not is_socket or not _is_dead(folder, name):
                raise
            os.unlink(path)
            paths.at(folder, name, listener.bind)
        if gid is not None:
            os.chown(path, -1, gid)
        os.chmod(path, OWNER_MODE if gid is None else GROUP_MODE)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _is_dead(folder: str, name: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            paths.at(folder, name, probe.connect)
        except ConnectionRefusedError:
            return True
        except OSError:
            pass
        return False


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Where a device is reached.

    Attributes:
        socket_path: where front ends connect, one after another.
        descriptor: instead of that, a socket that a front end is connected to; closed at the end.
        gid: the group whose members may connect to socket_path.
        report_path: where the counters are to be read; None for nowhere.
    """

    socket_path: str | None = None
    descriptor: int | None = None
    gid: int | None = None
    report_path: str | None = None


def serve(
    cid: int,
    folder: str,
    places: Places,
    *,
    limits: Limits,
    user: rights.User | None = None,
    on_ready: Callable[[], None],
) -> None:
    """Be the device of one VM until SIGTERM or SIGINT, or until the front end of a descriptor leaves.

    Args:
        cid: the guest's CID.
        folder: the VM's partition folder.
        places: where it is reached.
        limits: what the guest may use.
        user: who this process becomes, if it is root's; the folder becomes that user's.
        on_ready: called once front ends may connect.

    Raises:
        OSError: a path cannot be bound, or the broker refuses.
        StateError: the partition is another user's.
    """
    with contextlib.ExitStack() as stack:
        reactor = Reactor()
        stack.callback(reactor.close)
        listeners = {}
        for path, gid in ((places.report_path, None), (places.socket_path, places.gid)):
            if path is not None:
                listeners[path] = stack.enter_context(bound_socket(path, gid))
                stack.callback(_unlink, path)
        if user is not None:
            rights.give_folder(folder, user)
            folder = rights.open_folder(folder)
        limits = dataclasses.replace(limits, connections=rights.connections_that_fit(limits.connections))
        rights.give_up(user)
        device = Device(reactor, cid, folder, limits)
        stack.callback(device.close)
        if places.report_path is not None:
            stack.callback(Reports(reactor, listeners[places.report_path], device.report).close)
        if places.socket_path is not None:
            stack.callback(Door(reactor, listeners[places.socket_path], device.serve).close)
        if places.descriptor is not None:
            device.serve(socket.socket(fileno=places.descriptor), on_left=reactor.stop)
        stack.enter_context(ending_by_signals(reactor, reactor.stop))
        on_ready()
        reactor.run()


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
