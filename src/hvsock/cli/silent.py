"""Why a guest's agent does not answer, for those who asked it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from hvsock.addresses import parse_vm_id
from hvsock.errors import HvsockError, NotReadyError
from hvsock.fabric import paths
from hvsock.names import has_broker

from .names import names_by_id

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")


def why_not_up(vm: str) -> str:
    """Why a VM of `hvsock vm` cannot answer, and what to do; empty where it can, or somebody else runs it.

    Args:
        vm: its name or its VmId.
    """
    from hvsock.vm.runs import Run, State

    name = vm if parse_vm_id(vm) is None else names_by_id().get(vm.lower(), vm)
    with contextlib.suppress(HvsockError, OSError):
        state = Run(paths.fabric_folder(), name).record().state
        if state is State.STOPPED:
            return f"the VM is stopped; start it: hvsock vm start {name}"
        if state is State.PAUSED:
            return f"the VM is paused; let it go on: hvsock vm resume {name}"
    return ""


@contextlib.contextmanager
def asking(vm: str, service: str) -> Iterator[None]:
    """A context in which a VM's agent is asked.

    Args:
        vm: its name or its VmId.
        service: the integration service's name.

    Raises:
        NotReadyError: nobody serves it there; where that is known, because the VM is off or paused.
    """
    try:
        yield
    except (ConnectionRefusedError, NotReadyError, TimeoutError) as error:
        why = why_not_up(vm)
        if not why and isinstance(error, ConnectionRefusedError) and has_broker():
            why = f"no agent serves {service} in {vm}; run it there: hvsock agent"
            why += f"; see: hvsock integration list {vm}"
        if not why:
            raise
        raise NotReadyError(why) from error
