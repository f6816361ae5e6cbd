"""The registry as the broker sees it: looked at for every request, and never waited for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import HvsockError
from hvsock.registry import Registry, ServiceEntry
from hvsock.topology.access import Service

log = logging.getLogger(__name__)

COMPLAINT_SECONDS: Final = 10.0
"""Pause between two lines in the log about a registry that cannot be read."""


class Services:
    """The services in the registry in `folder`.

    A registry that cannot be read any more leaves the services as they were, with a line in the log.

    Raises:
        StateError: the registry cannot be read to begin with.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._registry = Registry(folder)
        self._entries: list[ServiceEntry] | None = None
        self._complained_at: float | None = None
        try:
            self.by_id: Mapping[ServiceId, Service] = self._registry.services()
        except BaseException:
            self._registry.close()
            raise

    def close(self) -> None:
        """Close the registry. Calling this twice is fine."""
        self._registry.close()

    def look(self, now: float) -> Mapping[ServiceId, Service]:
        """The services as they are `now`; also kept in ``by_id``."""
        try:
            services = self._registry.services()
        except HvsockError as error:
            if self._complained_at is None or now - self._complained_at >= COMPLAINT_SECONDS:
                self._complained_at = now
                log.error("the services stay as they were: %s", error)
            return self.by_id
        if services is not self.by_id:
            self.by_id = services
            self._entries = None
        return services

    def real(self, service_id: ServiceId) -> ServiceId:
        """The service that a ServiceId means: a port alias of the template stands for its service."""
        port = service_id.port
        if port is None or service_id in self.by_id:
            return service_id
        try:
            return self._registry.alias(port) or service_id
        except HvsockError:
            return service_id

    def find(self, text: str) -> ServiceId:
        """The service that `text` means, as :meth:`Registry.find` says.

        Raises:
            NotFoundError: there is none.
            StateError: the registry cannot be read.
        """
        return self._registry.find(text).id

    def entries(self) -> list[ServiceEntry]:
        """All services, by name, as they were at the last look.

        Raises:
            StateError: the registry cannot be read.
        """
        if self._entries is None:
            self._entries = self._registry.entries()
        return self._entries

    def forget_vm(self, vm_id: VmId) -> None:
        """Drop every setting for a partition that was removed.

        Writers of the registry wait for each other, for seconds if need be, so this happens in a thread of
        its own; a line in the log says so if it fails.
        """
        threading.Thread(target=self._forget_vm, args=(vm_id,), name="hvsock-forget-vm").start()

    def _forget_vm(self, vm_id: VmId) -> None:
        try:
            with Registry(self._folder) as registry:
                registry.forget_vm(vm_id)
        except HvsockError as error:
            log.error("settings of services for the removed partition %s stay: %s", vm_id, error)
