"""Security descriptors, and what they allow to whom.

The check is that of Windows (MS-DTYP, section 2.5.3.2): the entries of the list are read in the order in
which they stand, each for what no earlier one decided; what no entry allows is denied. A descriptor without a
list allows everything to everybody, one with an empty list nothing to anybody.

Which rights a bind and a connect ask for on Windows is documented nowhere; every descriptor that is known has
FA (or GA, which is the same here). So both ask for all of FA: an entry that allows less is not enough by itself,
and one that denies any part of it denies.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Final, NamedTuple

from .sids import Sid, is_of_vms, may_be_a_group

FILE_ALL: Final = 0x001F01FF
"""FA: every right there is; what a bind and a connect ask for."""
FILE_READ: Final = 0x00120089
FILE_WRITE: Final = 0x00120116
FILE_EXECUTE: Final = 0x001200A0
GENERIC_ALL: Final = 0x10000000
GENERIC_EXECUTE: Final = 0x20000000
GENERIC_WRITE: Final = 0x40000000
GENERIC_READ: Final = 0x80000000
MAX_MASK: Final = 0xFFFFFFFF

MAX_ACES: Final = 256
"""Most entries of one list; each check reads them all."""

_GENERIC: Final = (
    (GENERIC_ALL, FILE_ALL),
    (GENERIC_READ, FILE_READ),
    (GENERIC_WRITE, FILE_WRITE),
    (GENERIC_EXECUTE, FILE_EXECUTE),
)


class AceType(StrEnum):
    """What an entry does; the value is its word in SDDL."""

    ALLOW = "A"
    DENY = "D"


class AceFlag(StrEnum):
    """How an entry is inherited; the value is its word in SDDL. Only INHERIT_ONLY matters to a check."""

    OBJECT_INHERIT = "OI"
    CONTAINER_INHERIT = "CI"
    NO_PROPAGATE = "NP"
    INHERIT_ONLY = "IO"
    INHERITED = "ID"


class AclFlag(StrEnum):
    """How a list is inherited; the value is its word in SDDL. None matters to a check."""

    PROTECTED = "P"
    AUTO_INHERIT_REQUIRED = "AR"
    AUTO_INHERITED = "AI"


class Ace(NamedTuple):
    """One entry of a list (access control entry).

    Attributes:
        type: whether it allows or denies.
        mask: the rights, as bits; generic ones stand for those of files.
        sid: whose.
        flags: how it is inherited.
    """

    type: AceType
    mask: int
    sid: Sid
    flags: frozenset[AceFlag] = frozenset()


class Acl(NamedTuple):
    """A list of entries, in their order (access control list)."""

    aces: tuple[Ace, ...] = ()
    flags: frozenset[AclFlag] = frozenset()


class Descriptor(NamedTuple):
    """A security descriptor.

    Attributes:
        dacl: the list that says who may do what; None for no list, which allows everything.
        owner: whose it is; no check asks for it.
        group: the same; kept as it came.
    """

    dacl: Acl | None
    owner: Sid | None = None
    group: Sid | None = None

    @property
    def names_vms(self) -> bool:
        """Whether an entry is about a VM or about all of them, so that it is asked for guests too."""
        return self.dacl is not None and any(is_of_vms(ace.sid) for ace in self.dacl.aces)


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        allowed: whether all rights that were asked for are allowed.
        ace: which entry of the list decided, counted from 1; None where none did.
    """

    allowed: bool
    ace: int | None = None


def mapped(mask: int) -> int:
    """`mask` with its generic rights replaced by what they stand for."""
    for generic, rights in _GENERIC:
        if mask & generic:
            mask = mask & ~generic | rights
    return mask


def check(
    descriptor: Descriptor, sids: AbstractSet[Sid], wanted: int = FILE_ALL, *, in_other_groups: bool = False
) -> Finding:
    """Whether `descriptor` allows all rights in `wanted` to somebody who is all of `sids`.

    Args:
        descriptor: the descriptor.
        sids: who asks.
        wanted: the rights, as bits.
        in_other_groups: whether who asks may be in groups that `sids` lacks: each entry that denies something
            to a group is about them then.
    """
    if descriptor.dacl is None:
        return Finding(True)
    missing = wanted
    for number, ace in enumerate(descriptor.dacl.aces, start=1):
        if AceFlag.INHERIT_ONLY in ace.flags:
            continue
        maybe = in_other_groups and ace.type is AceType.DENY and may_be_a_group(ace.sid)
        if ace.sid not in sids and not maybe:
            continue
        mask = mapped(ace.mask)
        if ace.type is AceType.ALLOW:
            missing &= ~mask
            if not missing:
                return Finding(True, number)
        elif mask & missing:
            return Finding(False, number)
    return Finding(False)
