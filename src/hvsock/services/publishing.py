"""The .proto files that the package publishes: of the predefined services, and of the negotiation."""

from __future__ import annotations

import importlib
from typing import Final

from .predefined import GUEST_HALVES
from .proto import proto_text
from .service import Service, schema_of
from .session import Negotiation

MADE_BY: Final = "tools/write-protos"


def services() -> list[type[Service]]:
    """The services whose files are published; those that are bare streams have none."""
    found: list[type[Service]] = [Negotiation]
    for target in GUEST_HALVES.values():
        module, _, name = target.partition(":")
        kind = getattr(importlib.import_module(module), name)
        if issubclass(kind, Service):
            found.append(kind)
    return found


def published() -> dict[str, str]:
    """The texts of the files, by their names."""
    found = {}
    for kind in services():
        what = f"hvsock's service {kind.NAME!r}, ServiceId {kind.ID}"
        if kind is Negotiation:
            what = "What every connection of hvsock's services knows besides its own operations"
        schema = schema_of(kind)
        found[schema.name] = proto_text(schema, f"{what}. Made by {MADE_BY}.")
    return found
