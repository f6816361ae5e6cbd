"""What `hvsock doctor` looks at; every check runs, whatever the one before found."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from hvsock import transport
from hvsock.errors import UsageError

from . import fabric, hybrid, hyperv, machine, vms, vsock
from .check import Check, Group

__all__ = ["GROUPS", "Check", "Finding", "Group", "examine", "headed"]

GROUPS: Final = (machine.GROUP, fabric.GROUP, vsock.GROUP, hybrid.GROUP, hyperv.GROUP, vms.GROUP)
"""All there are, in the order in which they are shown."""


class Finding(NamedTuple):
    """What one check found.

    Attributes:
        group: the name of its group.
        needed: whether the chosen transport needs it; else nothing is wrong where it is missing.
        check: what it found.
    """

    group: str
    needed: bool
    check: Check

    def to_json(self) -> dict[str, Any]:
        """Itself as JSON takes it."""
        return {"group": self.group, "needed": self.needed, **self.check._asdict()}


def examine() -> list[Finding]:
    """What all checks found, group by group; where no transport is chosen, a check of the machine says why."""
    try:
        chosen = transport.chosen()
    except UsageError:
        chosen = None
    found = []
    for group in GROUPS:
        is_chosen = group.name == chosen
        needed = group.always_needed or is_chosen
        found += [Finding(group.name, needed, check()) for check in group.checks]
        if is_chosen:
            found += [Finding(group.name, True, check()) for check in group.when_chosen]
            found += [Finding(group.name, False, check()) for check in group.of_use_when_chosen]
        found += [Finding(group.name, False, check()) for check in group.optional]
    return found


def headed(findings: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Findings as JSON takes them, group by group, each with its heading."""
    for group, members in itertools.groupby(findings, key=lambda one: str(one["group"])):
        found = list(members)
        note = "" if any(one["needed"] for one in found) else " (not needed here)"
        yield f"{group}{note}:", found
