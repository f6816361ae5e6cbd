"""What the registry wants to be forwarded, to whom, and how a relay's listeners follow that.

This part waits for the broker and for files, so it has a thread of its own and the connections are never held up.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from hvsock.addresses import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, ServiceId, VmId, describe_vm_id
from hvsock.errors import HvsockError
from hvsock.registry.forwards import Forward
from hvsock.sockets.helpers import create_server
from hvsock.topology.access import Defaults

from .relay import Listening

if sys.platform != "linux":
    raise ImportError("the relay needs Linux: it is built on epoll")

if TYPE_CHECKING:
    from hvsock.fabric.reactor import Reactor
    from hvsock.registry import Registry, ServiceEntry

    from .relay import Relay

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.4
"""Pause between two looks at the registry: a change counts within a second, and a look takes some 10 µs."""
BACKLOG: Final = 128
"""Connections of one listener that may wait to be accepted."""
HOST_BINDINGS: Final = (HV_GUID_CHILDREN, HV_GUID_LOOPBACK)
"""Who reaches a service of the host: its VMs and containers, and local programs."""


class Binding(NamedTuple):
    """Where a listener is bound.

    Attributes:
        vm_id: whom it is for.
        service_id: the service.
    """

    vm_id: VmId
    service_id: ServiceId


class Wanted(NamedTuple):
    """What is to be forwarded at one binding.

    Attributes:
        name: the service's name.
        forward: where.
    """

    name: str
    forward: Forward


def wanted(entries: Iterable[ServiceEntry], defaults: Defaults) -> dict[Binding, Wanted]:
    """Where the host has to listen for the forwards among `entries`.

    A service that is off for all and on for some VMs is listened on for each of these by its VmId, as the broker
    refuses CHILDREN then; so it is for VMs that may not be served by a wildcard.
    """
    found = {}
    for entry in entries:
        if entry.forward is None:
            continue
        service = entry.service(defaults)
        in_general = service.settings_for(None)
        vms = [
            vm_id
            for vm_id in dict.fromkeys((*entry.per_vm, *filter(None, defaults)))
            if (one := service.settings_for(vm_id)).enabled and not (in_general.enabled and one.wildcard_binds)
        ]
        for vm_id in (*(HOST_BINDINGS if in_general.enabled else ()), *vms):
            found[Binding(vm_id, entry.id)] = Wanted(entry.name, entry.forward)
    return found


class Registered:
    """What the registry wants; to be asked again and again.

    Args:
        registry: what is looked at, by whoever asks.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._wanted: Mapping[Binding, Wanted] = {}
        self._version: int | None = None

    def __call__(self) -> Mapping[Binding, Wanted] | None:
        """What is wanted now; None where that cannot be told."""
        try:
            version = self._registry.version()
            if version != self._version:
                self._wanted = wanted(self._registry.entries(), self._registry.defaults())
                self._version = version
        except HvsockError as error:
            if self._version is not None:  # else this was said already
                log.error("the forwards stay as they were: %s", error)
                self._version = None
            return None
        return self._wanted


class Follower:
    """Keeps a relay's listeners as somebody wants them.

    What cannot be listened on is tried again at each look; the log says why, once for each reason.

    Args:
        find: says what is wanted, or None for no change; called by the thread alone once that was started.
        folder: the folder of the partition that listens.
        reactor: that of the relay.
        relay: what gets the listeners.
        pause: seconds between two looks.
    """

    def __init__(
        self,
        find: Callable[[], Mapping[Binding, Wanted] | None],
        folder: str,
        reactor: Reactor,
        relay: Relay,
        pause: float = LOOK_SECONDS,
    ) -> None:
        self._find = find
        self._folder = folder
        self._pause = pause
        self._reactor = reactor
        self._relay = relay
        self._there: dict[Binding, Listening] = {}
        self._reasons: dict[Binding, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hvsock-relay-follower", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no more; waits for a look under way. The listeners stay the relay's."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self.look()
            if self._stop.wait(self._pause):
                return

    def look(self) -> None:
        """Look once, and do what is wanted."""
        found = self._find()
        if found is None:
            return
        for binding in [one for one in self._there if one not in found]:
            self._drop(binding)
        for binding in [one for one in self._reasons if one not in found]:
            del self._reasons[binding]
        for binding, one in found.items():
            listening = self._there.get(binding)
            if listening is None:
                self._listen(binding, one)
            elif listening.forward != one.forward or listening.name != one.name:
                listening.name, listening.forward = one.name, one.forward
                log.info("%r is forwarded to %s now, for %s", one.name, one.forward, describe_vm_id(binding.vm_id))

    def _listen(self, binding: Binding, one: Wanted) -> None:
        where = describe_vm_id(binding.vm_id)
        try:
            sock = create_server(binding, backlog=BACKLOG, partition=self._folder)
        except OSError as error:
            reason = error.strerror or str(error)
            if self._reasons.get(binding) != reason:
                self._reasons[binding] = reason
                log.warning("%r is not forwarded for %s: %s", one.name, where, reason)
            return
        self._reasons.pop(binding, None)
        listening = Listening(one.name, sock, one.forward)
        self._there[binding] = listening
        self._reactor.call_from_thread(lambda: self._relay.add(listening))
        log.info("%r is forwarded to %s, for %s", one.name, one.forward, where)

    def _drop(self, binding: Binding) -> None:
        listening = self._there.pop(binding)
        self._reactor.call_from_thread(lambda: self._relay.remove(listening))
        log.info("%r is not forwarded any more, for %s", listening.name, describe_vm_id(binding.vm_id))
