"""The relay as a process: one for each fabric that follows its registry, or one with forwards of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from hvsock import transport, urls
from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_PARENT, VmId
from hvsock.errors import NoFabricError, RefusedError, StateError
from hvsock.fabric import paths
from hvsock.fabric.reactor import Reactor, ending_by_signals
from hvsock.machines import known
from hvsock.registry import Registry
from hvsock.registry.forwards import Forward
from hvsock.sockets.helpers import create_server
from hvsock.sockets.patience import AddressLike
from hvsock.transport import Transport

from .following import BACKLOG, HOST_BINDINGS, Follower, Registered
from .relay import DESCRIPTORS_PER_CONNECTION, MAX_CONNECTIONS, Listening, Relay

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

LOCK_FILE: Final = "relay.lock"
"""In the fabric's folder, locked by the relay that follows its registry."""
LOCK_SECONDS: Final = 1.0
"""How long a relay that starts waits for that lock, which others hold for a moment to look whether one runs."""
LOCK_PAUSE_SECONDS: Final = 0.01
SPARE_DESCRIPTORS: Final = 256
"""Descriptors for anything but connections, the listeners among them."""


def serve_registry(folder: str, on_ready: Callable[[], None]) -> None:
    """Serve the forwards in the registry on the host, and follow its changes, until SIGTERM or SIGINT.

    Connections and listeners outlive the broker, and this process outlives it, too.

    Args:
        folder: the fabric's folder.
        on_ready: called once it is the fabric's relay.

    Raises:
        NoFabricError: there is no fabric in that folder.
        RefusedError: this user may not run its relay.
        StateError: another relay follows that registry, or it cannot be read.
    """
    where = os.path.join(folder, "registry")
    if not os.path.isdir(where):
        raise NoFabricError(f"there is no fabric in {folder}; start one with: hvsock up")
    with (
        _locked(folder),
        _relay() as (reactor, relay),
        Registry(where, read_only_because="the relay changes nothing") as registry,
    ):
        follower = Follower(Registered(registry), paths.host_folder(folder), reactor, relay)
        follower.start()
        try:
            on_ready()
            reactor.run()
        finally:
            follower.stop()


def serve(forwards: Mapping[str, Forward], on_ready: Callable[[], None]) -> None:
    """Serve `forwards` in the partition that this process speaks for, until SIGTERM or SIGINT.

    On the host they are for its children and for local programs, in any other partition for its parent.

    Args:
        forwards: by service, as its name, GUID or port, or a ``unix:`` URL.
        on_ready: called once all of them can be connected to.

    Raises:
        HvsockError: a service's name is not known, or nobody who knows answers.
        OSError: a service cannot be listened on.
    """
    with _relay() as (reactor, relay):
        for name, forward in forwards.items():
            for address in _addresses_of(name):
                relay.add(Listening(name, create_server(address, backlog=BACKLOG), forward))
        on_ready()
        reactor.run()


def _addresses_of(name: str) -> list[AddressLike]:
    """Where a service is listened on in this partition."""
    if urls.is_hybrid(name):
        return [name]
    bindings: tuple[VmId, ...] = (HV_GUID_PARENT,)
    if transport.chosen() is Transport.HYBRID or known.is_host():
        bindings = (HV_GUID_CHILDREN,)
    elif transport.chosen() is Transport.FABRIC and paths.speaks_for_host(paths.fabric_folder()):
        bindings = HOST_BINDINGS
    return [(vm_id, name) for vm_id in bindings]


def runs(folder: str) -> bool:
    """Whether a relay follows the registry of the fabric in `folder`.

    Raises:
        OSError: the lock cannot be looked at.
    """
    descriptor = os.open(os.path.join(folder, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    path = os.path.join(folder, LOCK_FILE)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError:
        raise RefusedError(f"this user may not open {path}: the fabric's owner runs its relay") from None
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    pid = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
                    raise StateError(f"a relay of {folder} runs already (process {pid})") from None
                time.sleep(LOCK_PAUSE_SECONDS)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _relay() -> Iterator[tuple[Reactor, Relay]]:
    """A relay that SIGTERM and SIGINT end."""
    reactor = Reactor()
    try:
        relay = Relay(reactor, connections_that_fit())
        try:
            with ending_by_signals(reactor, reactor.stop):
                yield reactor, relay
        finally:
            relay.close()
    finally:
        reactor.close()


def connections_that_fit() -> int:
    """How many connections the descriptors are enough for that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(1, min(MAX_CONNECTIONS, (soft - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION))
