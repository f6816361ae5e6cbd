"""What a VM connects to on its host: the sockets beside the VMM's path, as long as somebody listens there.

In the fabric a listener is there or is not, so a socket that nobody has any more is none: the VM gets the refusal
that it would get of a VMM. This part looks at files and waits for nothing else.
"""

from __future__ import annotations

import logging
import os
import stat
import sys
import time
from collections.abc import Mapping
from typing import Final

from hvsock.addresses import ServiceId, VmId, describe_service_id
from hvsock.fabric.paths import MAX_SUN_PATH_BYTES
from hvsock.registry.forwards import Forward
from hvsock.relay.following import Binding, Wanted

from .handshake import listener_paths, service_of
from .listening import is_served
from .profiles import Profile

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.1
"""Pause between two looks: so late may a new listener be seen. A look takes some 10 µs where nothing changed."""
YOUNG_SECONDS: Final = 1.0
"""A folder that changed within that time is read again, as its time is kept by ticks."""
MAX_LISTENERS: Final = 256
"""Most services that are listened on for a VM."""


class Beside:
    """The listeners beside a path; to be asked again and again.

    A socket counts if it belongs to this user, to root, or to the owner of the folder: in a folder like /tmp
    anybody else may make one as well.

    Args:
        path: the path that programs of the host connect to.
        vm_id: the VM.
        profile: the VMM whose ways it has.
    """

    def __init__(self, path: str, vm_id: VmId, profile: Profile) -> None:
        self._path = os.path.abspath(path)
        self._folder, self._base = os.path.split(self._path)
        self._vm_id = vm_id
        self._profile = profile
        self._names: dict[str, ServiceId] = {}
        self._changed: int | None = None
        self._complained = False
        self._left_out: set[str] = set()

    def __call__(self) -> Mapping[Binding, Wanted] | None:
        """Where connections of the VM go now; None where that cannot be told."""
        try:
            changed = os.stat(self._folder).st_mtime_ns
            if changed != self._changed or abs(time.time_ns() - changed) < YOUNG_SECONDS * 1e9:
                self._names = self._look()
                self._changed = changed
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.error("the listeners stay as they were: %s: %s", self._folder, error.strerror)
            return None
        self._complained = False
        found: dict[Binding, Wanted] = {}
        for name, service in self._names.items():
            binding = Binding(self._vm_id, service)
            path = os.path.join(self._folder, name)
            first = listener_paths(self._path, service, self._profile)[0]
            if (binding not in found or path == first) and is_served(self._folder, name):
                found[binding] = Wanted(describe_service_id(service), Forward(path))
        return found

    def _look(self) -> dict[str, ServiceId]:
        owners = {os.geteuid(), 0, os.stat(self._folder).st_uid}
        found: dict[str, ServiceId] = {}
        left_out: set[str] = set()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                service = service_of(entry.name, self._base, self._profile)
                if service is None or not _is_socket_of(entry, owners):
                    continue
                if len(os.fsencode(entry.path)) > MAX_SUN_PATH_BYTES:
                    left_out.add(f"{entry.path} is too long a path for a socket")
                elif len(found) == MAX_LISTENERS:
                    left_out.add(f"{self._path} has more than {MAX_LISTENERS} listeners; others are left out")
                else:
                    found[entry.name] = service
        for why in left_out - self._left_out:
            log.warning("%s", why)
        self._left_out = left_out
        return found


def _is_socket_of(entry: os.DirEntry[str], owners: set[int]) -> bool:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISSOCK(status.st_mode) and status.st_uid in owners
