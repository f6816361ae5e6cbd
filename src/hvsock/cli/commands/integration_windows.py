"""`hvsock integration` on Windows: the integration services of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hvsock.cli.names import vm_id_of
from hvsock.windows import components
from hvsock.windows.components import Component


def rows_of(vms: Sequence[str]) -> list[dict[str, Any]]:
    """The integration services of VMs, as `--json` prints them.

    Raises:
        NotFoundError, NotReadyError, RefusedError, RemoteError: as :func:`hvsock.windows.components.listed` says.
    """
    return [
        {
            "vm": vm,
            "name": one.name,
            "id": one.id,
            "enabled": one.enabled,
            "primary_status": one.primary,
            "secondary_status": one.secondary,
        }
        for vm in vms
        for one in components.listed(vm_id_of(vm))
    ]


def switch(vm: str, name: str, enabled: bool) -> Component:
    """Let a VM have an integration service, or take it from it.

    Raises:
        NotFoundError, NotReadyError, RefusedError, RemoteError: as :func:`hvsock.windows.components.set_enabled`
            says.
    """
    vm_id = vm_id_of(vm)
    found = components.find(components.listed(vm_id), name)
    components.set_enabled(vm_id, found, enabled)
    return found._replace(enabled=enabled)
