"""How `hvsock up` keeps a relay running, as its child, as long as the registry has a forward; and a way up.

Who wants relayed connections to outlive a restart of the broker runs `hvsock forward` as a service of its own: its
lock is seen here, and no second relay is started.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

from hvsock.errors import HvsockError
from hvsock.kept import Kept
from hvsock.registry import Registry

from . import process

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

log = logging.getLogger(__name__)


def kept_relay(folder: str) -> Kept:
    """What keeps the relay of one fabric.

    Args:
        folder: the fabric's folder.
    """
    return Kept("the relay", ("forward",), folder, lambda: _looking(folder), loses=", its connections with it")


def kept_uplink(folder: str, way: str) -> Kept:
    """What keeps the way up of one fabric.

    Args:
        folder: the fabric's folder.
        way: where it leads, as :func:`hvsock.relay.uplink.way_of` takes it.
    """

    @contextlib.contextmanager
    def always() -> Iterator[Callable[[], bool]]:
        yield lambda: True

    return Kept("the way up", ("uplink", way), folder, always, loses=", its connections with it")


@contextlib.contextmanager
def _looking(folder: str) -> Iterator[Callable[[], bool]]:
    """Tells whether there is a forward, and nobody who serves it."""
    try:
        registry = Registry(os.path.join(folder, "registry"), read_only_because="only looks")
    except HvsockError as error:
        log.error("services are not forwarded: %s", error)
        yield lambda: False
        return
    with registry:
        yield _Wanted(folder, registry)


class _Wanted:
    def __init__(self, folder: str, registry: Registry) -> None:
        self._folder = folder
        self._registry = registry
        self._version: int | None = None
        self._forwards = False
        self._complained = False

    def __call__(self) -> bool:
        try:
            version = self._registry.version()
            if version != self._version:
                self._forwards = any(entry.forward is not None for entry in self._registry.entries())
                self._version = version
                self._complained = False
            return self._forwards and not process.runs(self._folder)
        except (HvsockError, OSError) as error:
            if not self._complained:
                self._complained = True
                log.error("it cannot be told whether services are forwarded: %s", error)
            return False
