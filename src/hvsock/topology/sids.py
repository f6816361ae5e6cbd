"""Security identifiers (SIDs): who somebody is, in the words of Windows.

A SID is its text in one spelling, ``S-1-5-18``, so that equal SIDs are equal strings. Sources: MS-DTYP,
sections 2.4.2.1 (syntax), 2.4.2.4 (well-known SIDs) and 2.5.1.1 (two-letter tokens); ``S-1-22-1`` and
``S-1-22-2`` are where Samba keeps the users and groups of Unix.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NewType

from hvsock.addresses import VmId
from hvsock.errors import UsageError

Sid = NewType("Sid", str)
"""A SID in its one spelling, as :func:`parse_sid` gives it."""

EVERYONE: Final = Sid("S-1-1-0")
AUTHENTICATED_USERS: Final = Sid("S-1-5-11")
SYSTEM: Final = Sid("S-1-5-18")
ADMINISTRATORS: Final = Sid("S-1-5-32-544")
VIRTUAL_MACHINES: Final = Sid("S-1-5-83-0")
"""NT VIRTUAL MACHINE\\Virtual Machines: the group of all VMs."""

MAX_SID_CHARACTERS: Final = 190
"""Longest text of a SID: 15 sub-authorities of ten digits and a hyphen each, and what stands before them."""

_MAX_WORD: Final = 0xFFFFFFFF
_SYNTAX: Final = re.compile(r"S-1-(0x[0-9A-F]{12}|[0-9]{1,10})((?:-[0-9]{1,10}){1,15})", re.ASCII | re.IGNORECASE)
_VM: Final = "S-1-5-83-"
_GROUP: Final = "S-1-22-2-"

ALIASES: Final[dict[str, Sid]] = {
    token: Sid(sid)
    for token, sid in {
        "AA": "S-1-5-32-579",
        "AC": "S-1-15-2-1",
        "AN": "S-1-5-7",
        "AO": "S-1-5-32-548",
        "AU": AUTHENTICATED_USERS,
        "BA": ADMINISTRATORS,
        "BG": "S-1-5-32-546",
        "BO": "S-1-5-32-551",
        "BU": "S-1-5-32-545",
        "CD": "S-1-5-32-574",
        "CG": "S-1-3-1",
        "CO": "S-1-3-0",
        "CY": "S-1-5-32-569",
        "ED": "S-1-5-9",
        "ER": "S-1-5-32-573",
        "ES": "S-1-5-32-576",
        "HA": "S-1-5-32-578",
        "HI": "S-1-16-12288",
        "IS": "S-1-5-32-568",
        "IU": "S-1-5-4",
        "LS": "S-1-5-19",
        "LU": "S-1-5-32-559",
        "LW": "S-1-16-4096",
        "ME": "S-1-16-8192",
        "MP": "S-1-16-8448",
        "MS": "S-1-5-32-577",
        "MU": "S-1-5-32-558",
        "NO": "S-1-5-32-556",
        "NS": "S-1-5-20",
        "NU": "S-1-5-2",
        "OW": "S-1-3-4",
        "PO": "S-1-5-32-550",
        "PS": "S-1-5-10",
        "PU": "S-1-5-32-547",
        "RA": "S-1-5-32-575",
        "RC": "S-1-5-12",
        "RD": "S-1-5-32-555",
        "RE": "S-1-5-32-552",
        "RM": "S-1-5-32-580",
        "RU": "S-1-5-32-554",
        "SI": "S-1-16-16384",
        "SO": "S-1-5-32-549",
        "SU": "S-1-5-6",
        "SY": SYSTEM,
        "UD": "S-1-5-84-0-0-0-0-0",
        "WD": EVERYONE,
        "WR": "S-1-5-33",
    }.items()
}
"""The two-letter tokens of SDDL, and the SIDs that they stand for everywhere."""

OF_A_DOMAIN: Final = frozenset(
    ["CA", "CN", "DA", "DC", "DD", "DG", "DU", "EA", "LA", "LG", "PA", "RO", "RS", "SA"]
)
"""The tokens whose SIDs have a domain or a computer in them, which a fabric knows none of."""

_TOKENS: Final = {sid: token for token, sid in ALIASES.items()}


def parse_sid(text: str) -> Sid:
    """The SID that `text` spells: ``S-1-...``, or a two-letter token like BA.

    Raises:
        UsageError: it spells none, or one that depends on a domain.
    """
    token = text.upper() if text.isascii() else ""  # some letters outside are capitals of ASCII to upper()
    if token in ALIASES:
        return ALIASES[token]
    if token in OF_A_DOMAIN:
        raise UsageError(f"{token} is of a Windows domain or computer; write the SID itself, S-1-5-21-...")
    found = _SYNTAX.fullmatch(text) if len(text) <= MAX_SID_CHARACTERS else None
    if found is None:
        raise UsageError(f"{text[:40]!r} is no SID: write S-1-..., or a token like WD, SY, BA")
    authority = int(found[1], 16 if found[1][:2] in ("0x", "0X") else 10)
    words = [int(word) for word in found[2][1:].split("-")]
    if "x" not in found[1].lower() and authority > _MAX_WORD:
        raise UsageError(f"{text!r} is no SID: an authority above {_MAX_WORD} is written as 0x and 12 digits")
    if max(words) > _MAX_WORD:
        raise UsageError(f"{text!r} is no SID: its numbers are at most {_MAX_WORD}")
    start = str(authority) if authority <= _MAX_WORD else f"0x{authority:012X}"
    return Sid("-".join(["S-1", start, *map(str, words)]))


def format_sid(sid: Sid) -> str:
    """`sid` as SDDL writes it: the two-letter token where it has one."""
    return _TOKENS.get(sid, sid)


def user_sid(uid: int) -> Sid:
    """The SID of a Unix user."""
    return Sid(f"S-1-22-1-{uid}")


def group_sid(gid: int) -> Sid:
    """The SID of a Unix group."""
    return Sid(f"{_GROUP}{gid}")


def vm_sid(vm_id: VmId) -> Sid:
    """The SID of a VM, as Windows makes that of ``NT VIRTUAL MACHINE\\<VmId>``.

    The GUID's 16 bytes, as they lie in memory, are four little-endian words.
    """
    words = struct.unpack("<4I", vm_id.to_bytes_le())
    return Sid("-".join([f"{_VM}1", *map(str, words)]))


def may_be_a_group(sid: Sid) -> bool:
    """Whether `sid` is that of a Unix group, or that of the administrators, of whom one may be by a group."""
    return sid.startswith(_GROUP) or sid == ADMINISTRATORS


def is_of_vms(sid: Sid) -> bool:
    """Whether `sid` is that of a VM, or of the group of all VMs."""
    return sid.startswith(_VM)
