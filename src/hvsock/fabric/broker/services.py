"""The registry as the broker sees it: looked at for every request, and never waited for."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Final

from hvsock.addresses import ServiceId, VmId
from hvsock.errors import HvsockError
from hvsock.registry import Registry, ServiceEntry
from hvsock.registry.database import FILE_NAME, GLANCE_TIMEOUT_MS, JOURNAL_SUFFIX
from hvsock.topology.access import Defaults, Service

log = logging.getLogger(__name__)

SETTLED_NANOSECONDS: Final = 50_000_000
"""Age of a file's last change from which on the next one has another time: kernels count in ticks of 10 ms."""
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
        for line in self._registry.displaced:
            log.warning("%s", line)
        self._path = os.path.join(folder, FILE_NAME)
        self._unchanged: tuple[int, int, int] | None = None
        self._entries: list[ServiceEntry] | None = None
        self._complained_at: float | None = None
        try:
            self.by_id: Mapping[ServiceId, Service] = self._registry.services()
            self.defaults: Defaults = self._registry.known_defaults()
        except BaseException:
            self._registry.close()
            raise

    def close(self) -> None:
        """Close the registry. Calling this twice is fine."""
        self._registry.close()

    def look(self, now: float) -> Mapping[ServiceId, Service]:
        """The services as they are `now`; also kept in ``by_id``, with ``defaults``."""
        mark = self._mark()
        if mark is not None and mark == self._unchanged:
            return self.by_id
        started = time.monotonic()
        settled = mark is not None and time.time_ns() - mark[0] > SETTLED_NANOSECONDS and not self._being_written()
        try:
            services = self._registry.services()
        except HvsockError as error:
            if self._complained_at is None or now - self._complained_at >= COMPLAINT_SECONDS:
                self._complained_at = now
                log.error("the services stay as they were: %s", error)
            return self.by_id
        if services is not self.by_id:
            self.by_id = services
            self.defaults = self._registry.known_defaults()
            self._entries = None
        # a registry that is locked answers with what it last knew, after it has waited
        answered = time.monotonic() - started < GLANCE_TIMEOUT_MS / 1000
        self._unchanged = mark if settled and answered else None
        return services

    def _mark(self) -> tuple[int, int, int] | None:
        """What a commit changes about the file; asked for each connect, as SQLite takes ten times as long."""
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _being_written(self) -> bool:
        """Whether a commit may be under way whose writes are in the file already."""
        return os.path.exists(self._path + JOURNAL_SUFFIX)

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
