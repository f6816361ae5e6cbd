"""Notices to the devices of VMs: connections that they hold and that may not go on are reset at once.

The registry is changed by any process, without a word to the broker. So while there is a device, the broker
looks at the registry by itself, besides with each request.
"""

from __future__ import annotations

import socket
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from hvsock.addresses import ServiceId
from hvsock.fabric import messages, paths
from hvsock.fabric.messages import Notice, NoticeKind
from hvsock.topology.access import Service

if sys.platform != "linux":
    raise ImportError("the broker needs Linux: devices listen on AF_UNIX sockets")

if TYPE_CHECKING:
    from .broker import Broker
    from .listeners import Listener

LOOK_SECONDS: Final = 0.5
"""Pause between two looks at the registry; each is one stat of its file while nothing changes."""
RETRY_SECONDS: Final = 0.02
"""Pause before notices that found the backlog of their device full are tried again."""


class Notices:
    """What the devices are told.

    Args:
        broker: the broker, whose services and listeners are there already.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._services = broker.services.by_id
        self._late: OrderedDict[tuple[Listener, Notice], None] = OrderedDict()
        self._looks = False

    def start(self) -> None:
        """Tell devices what changed while there was no broker, as far as that shows, and :meth:`watch`."""
        for listener in self._broker.listeners.take_orphans():
            self.cancel_all(listener)
        self._cancel([service.id for service in self._services.values() if _off_somewhere(service)])
        self.watch()

    def watch(self) -> None:
        """Look at the registry now and then, as long as there are devices. Calling this twice is fine."""
        if not self._looks and self._broker.listeners.devices:
            self._looks = True
            self._broker.reactor.after(LOOK_SECONDS, self._look)

    def services_changed(self, services: Mapping[ServiceId, Service]) -> None:
        """What is registered is `services` now: tell each device what its VM may not use any more."""
        before, self._services = self._services, services
        self._cancel([service.id for service in before.values() if services.get(service.id) != service])

    def cancel_all(self, listener: Listener) -> None:
        """Forget the listener of a device whose partition was removed, and tell the device."""
        self._broker.listeners.forget(listener)
        self._post(listener, Notice(NoticeKind.CANCEL_ALL))

    def _look(self) -> None:
        self._looks = False
        self._broker.look()
        for listener in list(self._broker.listeners.devices.values()):
            if not self._broker.listeners.alive(listener):
                self._gone(listener)
        self.watch()

    def _cancel(self, service_ids: Iterable[ServiceId]) -> None:
        for vm_id, listener in list(self._broker.listeners.devices.items()):
            for service_id in service_ids:
                service = self._services.get(service_id)
                if service is None or not service.settings_for(vm_id).enabled:
                    self._post(listener, Notice(NoticeKind.CANCEL_SERVICE, service_id))

    def _post(self, listener: Listener, notice: Notice) -> None:
        """Send a notice, or try again later; the socket of a listener that was forgotten is unlinked then."""
        listeners = self._broker.listeners
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as courier:
                paths.at(listeners.folder, listener.id.hex(), courier.connect)
                courier.send(notice.pack() + messages.DONE)
        except (ConnectionRefusedError, FileNotFoundError, BrokenPipeError, ConnectionResetError):
            self._gone(listener)
        except OSError:  # EAGAIN: the backlog is full; or descriptors are short
            if not self._late:
                self._broker.reactor.after(RETRY_SECONDS, self._retry)
            self._late[listener, notice] = None
            return
        if notice.kind is NoticeKind.CANCEL_ALL:
            listeners.unlink(listener)

    def _retry(self) -> None:
        late, self._late = self._late, OrderedDict()
        for listener, notice in late:
            self._post(listener, notice)

    def _gone(self, listener: Listener) -> None:
        self._broker.listeners.remove(listener)
        self._broker.waiting.wake(listener)


def _off_somewhere(service: Service) -> bool:
    """Whether a service is disabled, for all VMs or for one."""
    return any(settings.enabled is False for settings in (service.settings, *service.per_vm.values()))
