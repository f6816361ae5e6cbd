"""The VMs that this process knows without a broker.

They are those of the configuration; those that libvirt or QEMU's processes tell of, on a host of kernel vsock; and
those whose VMM's path the program gave as a URL.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from hvsock.addresses import ServiceId, VmId
from hvsock.config import files
from hvsock.config.settings import Guests, Settings, Vm, vm_id_of_path
from hvsock.errors import BusyError, HvsockError, NotFoundError

if sys.platform != "linux":
    raise ImportError("VMMs and hosts of kernel vsock run on Linux")

FRESH_SECONDS: Final = 1.0
"""How long an answer of libvirt or of /proc is good: a context id may be another VM's once its first has ended."""
MAX_PATHS: Final = 4096
"""Most paths that a process gives as URLs: it may ask for each of them by its VmId."""


class Running:
    """The guests of this host, asked for anew when the answer is old.

    Args:
        ask: gives those that run.
        clock: tells seconds.
    """

    def __init__(self, ask: Callable[[Settings], tuple[Vm, ...]], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = threading.Lock()
        self._asked: Settings | None = None
        self._until = 0.0
        self._found: tuple[Vm, ...] = ()

    def now(self, settings: Settings) -> tuple[Vm, ...]:
        """The VMs that run.

        Raises:
            HvsockError: as :func:`.sources.guests` says.
        """
        with self._lock:
            if self._asked is not settings or self._clock() >= self._until:
                self._asked = None
                self._found = self._ask(settings)
                self._asked, self._until = settings, self._clock() + FRESH_SECONDS
            return self._found


def _ask(settings: Settings) -> tuple[Vm, ...]:
    from . import sources  # here, as few hosts have guests to ask for, and XML and processes load slowly

    return sources.guests(settings)


_guests = Running(_ask, time.monotonic)
_given: dict[str, Vm] = {}
_lock = threading.Lock()


def _forked() -> None:
    global _guests, _lock  # another thread of the parent may have held a lock
    _guests, _lock = Running(_ask, time.monotonic), threading.Lock()


os.register_at_fork(after_in_child=_forked)


def vms() -> tuple[Vm, ...]:
    """All; the configuration's first.

    Raises:
        HvsockError: the configuration cannot be used, or the guests of this host cannot be asked for.
    """
    settings = files.settings()
    running = _guests.now(settings) if settings.guests not in (None, Guests.TABLE) else ()
    return (*settings.vms, *running, *list(_given.values()))


def is_host() -> bool:
    """Whether the configuration says that this machine is a host of kernel vsock."""
    return files.settings().guests is not None


def with_id(vm_id: VmId) -> Vm | None:
    """The VM with that VmId.

    Raises:
        HvsockError: as :func:`vms` says.
    """
    return next((vm for vm in vms() if vm.id == vm_id), None)


def with_cid(cid: int) -> Vm | None:
    """The VM with that context id.

    Raises:
        HvsockError: as :func:`vms` says.
    """
    return next((vm for vm in vms() if vm.cid == cid), None)


def id_of_cid(cid: int) -> VmId | None:
    """The VmId of the VM with that context id; None where nobody can tell."""
    try:
        vm = with_cid(cid)
    except HvsockError:
        return None
    return None if vm is None else vm.id


def named(name: str) -> Vm:
    """The one VM with that name, without regard to case.

    Raises:
        NotFoundError: there is none, or there are several.
        HvsockError: as :func:`vms` says.
    """
    found = [vm for vm in vms() if vm.name.casefold() == name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        raise NotFoundError(f"{len(found)} VMs are called {name!r}: give the VmId of one")
    raise NotFoundError(f"no VM is called {name!r}; {where_to_write('vms')}")


def service_named(name: str) -> ServiceId | None:
    """The service that the configuration calls so."""
    return files.settings().services.get(name.casefold())


def at_path(path: str, vmm: str | None) -> Vm:
    """The VM whose VMM is at `path`, which may be relative: the configuration's, or one from now on.

    Raises:
        BusyError: this process gave too many.
        HvsockError: as :func:`vms` says.
    """
    path = os.path.abspath(path)
    settings = files.settings()
    for vm in settings.vms:
        if vm.path == path and vmm in (None, vm.vmm):
            return vm
    made = Vm(path, vm_id_of_path(path), None, path, vmm or settings.vmm)
    with _lock:
        if path not in _given and len(_given) >= MAX_PATHS:
            raise BusyError(f"this process has {MAX_PATHS} paths of VMMs, the most")
        _given[path] = made
    return made


def is_gone(vm: Vm) -> bool:
    """Whether the program gave the VM's path as a URL once, and the folder of its VMM is not there any more."""
    return vm.path in _given and not os.path.isdir(os.path.dirname(vm.path))


def where_to_write(key: str) -> str:
    """Where a VM or a service would have to be written, for errors."""
    where = files.settings().where
    if where:
        return f"see {where}.{key}"
    paths = files.candidates()
    if os.devnull in paths:
        return f"{files.CONFIG_VARIABLE} is {os.devnull}: have it name a configuration with profiles.default.{key}"
    return f"write a configuration with profiles.default.{key}: {' or '.join(paths)}"
