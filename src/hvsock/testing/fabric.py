"""A whole fabric for one test: no daemon, no hypervisor, nothing left behind."""

from __future__ import annotations

import sys

from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux: its connections are descriptors passed over AF_UNIX")

__all__ = ["EmbeddedFabric", "PartitionHandle", "fabric"]


def fabric(folder: str | None = None) -> EmbeddedFabric:
    """A fabric in this process, as a context manager.

    ::

        with fabric() as made:
            service = made.register("HV Socket Demo")
            guest = made.create_partition("web01")
            listener = hvsock.create_server(("children", service.id), partition=made.host.folder)
            connection = hvsock.create_connection(("parent", service.id), partition=guest.folder)

    Args:
        folder: the fabric's folder; a temporary one, removed at the end, by default.
    """
    return EmbeddedFabric(folder)
