"""The registry of services: what GuestCommunicationServices is on Windows, as a file in the fabric's folder.

- :mod:`.entries`, :mod:`.forwards`: what a registered service is, and what may be registered;
- :mod:`.merging`: what an import makes of the services that are there;
- :mod:`.store`: the registry itself, safe against kill -9 and against several writers;
- :mod:`.database`, :mod:`.rows`, :mod:`.values`: the SQLite file underneath, and what is in its tables;
- :mod:`.formats`: the registry as a ``.reg`` file, as a PowerShell script and as JSON.

:class:`Registry` is loaded at its first use, since it brings in sqlite3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .entries import KEEP, MAX_SERVICES, ServiceEntry, ServiceName
from .merging import Imported

if TYPE_CHECKING:
    from .store import Registry

__all__ = ["KEEP", "MAX_SERVICES", "Imported", "Registry", "ServiceEntry", "ServiceName"]


def __getattr__(name: str) -> Any:
    if name == "Registry":
        from .store import Registry

        return Registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
