"""SDDL: security descriptors as text, as MS-DTYP, section 2.5.1.1, writes them.

Read and written are owner, group and the discretionary list with entries that allow and deny. Anything else
that the syntax has, for audits, objects, integrity labels, conditions or claims, is refused, for who passes over
an entry decides something else than its author.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from hvsock.errors import UsageError

from .descriptors import (
    FILE_ALL,
    FILE_EXECUTE,
    FILE_READ,
    FILE_WRITE,
    GENERIC_ALL,
    GENERIC_EXECUTE,
    GENERIC_READ,
    GENERIC_WRITE,
    MAX_ACES,
    MAX_MASK,
    Ace,
    AceFlag,
    AceType,
    Acl,
    AclFlag,
    Descriptor,
)
from .sids import Sid, format_sid, parse_sid

MAX_SDDL_CHARACTERS: Final = 32_768
"""Longest text that is read: twice what MAX_ACES entries take that each name a VM."""

NO_LIST: Final = "NO_ACCESS_CONTROL"
"""After ``D:``: no list at all, which allows everything."""

_WHOLE: Final = {
    "FA": FILE_ALL,
    "FR": FILE_READ,
    "FW": FILE_WRITE,
    "FX": FILE_EXECUTE,
    "KA": 0x000F003F,
    "KR": 0x00020019,
    "KW": 0x00020006,
    "KX": 0x00020019,
}
"""Words for all rights to a file or a key of the registry."""
_SINGLE: Final = {
    "GA": GENERIC_ALL,
    "GX": GENERIC_EXECUTE,
    "GW": GENERIC_WRITE,
    "GR": GENERIC_READ,
    "SD": 0x00010000,
    "RC": 0x00020000,
    "WD": 0x00040000,
    "WO": 0x00080000,
    "CC": 0x00000001,
    "DC": 0x00000002,
    "LC": 0x00000004,
    "SW": 0x00000008,
    "RP": 0x00000010,
    "WP": 0x00000020,
    "DT": 0x00000040,
    "LO": 0x00000080,
    "CR": 0x00000100,
}
"""Words for one right."""
_RIGHTS: Final = {**_WHOLE, **_SINGLE}
_WORD_OF: Final = {mask: word for word, mask in reversed(_WHOLE.items())}
_SINGLE_BITS: Final = sum(_SINGLE.values())

_REFUSED_TYPES: Final = {
    **dict.fromkeys(("OA", "OD"), "an entry for objects of a directory"),
    **dict.fromkeys(("AU", "AL", "OU", "OL"), "an entry for audits and alarms"),
    **dict.fromkeys(("XA", "XD", "ZA", "XU"), "an entry with a condition"),
    "ML": "an integrity label",
    "RA": "an attribute of a resource",
    "SP": "a central policy",
    "TL": "a trust label",
}
_SID: Final = re.compile(r"S-1-[0-9A-Fx]+(?:-[0-9]+)*|[A-Z]{2}", re.ASCII | re.IGNORECASE)
_ACL_FLAG: Final = re.compile(r"AR|AI|P", re.ASCII | re.IGNORECASE)
_NUMBER: Final = re.compile(r"0x[0-9A-F]{1,8}|[0-9]{1,11}", re.ASCII | re.IGNORECASE)
_SHOWN_CHARACTERS: Final = 24
"""How much of a text that is refused its refusal repeats."""
_FIELDS: Final = 6


def parse_sddl(text: str) -> Descriptor:
    """The security descriptor that `text` spells.

    Raises:
        UsageError: it spells none, or one with what is not supported; the text says at which character.
    """
    if len(text) > MAX_SDDL_CHARACTERS:
        raise UsageError(f"SDDL has at most {MAX_SDDL_CHARACTERS} characters, not {len(text)}")
    if not text:
        raise UsageError("SDDL is not empty: write D:(A;;FA;;;WD), or leave the descriptor out")
    if not text.isascii():  # some letters outside are capitals of ASCII to upper()
        at = next(at for at, character in enumerate(text) if not character.isascii())
        raise UsageError(f"SDDL, character {at + 1}: {text[at]!r} is not of ASCII, as all of SDDL is")
    return _Reader(text).descriptor()


def format_sddl(descriptor: Descriptor) -> str:
    """`descriptor` as text, with the shortest words that there are."""
    text = ""
    for letter, sid in (("O", descriptor.owner), ("G", descriptor.group)):
        text += "" if sid is None else f"{letter}:{format_sid(sid)}"
    if descriptor.dacl is None:
        return f"{text}D:{NO_LIST}"
    flags = "".join(flag for flag in AclFlag if flag in descriptor.dacl.flags)
    return f"{text}D:{flags}{''.join(map(format_ace, descriptor.dacl.aces))}"


def format_ace(ace: Ace) -> str:
    """One entry as text, with its parentheses."""
    flags = "".join(flag for flag in AceFlag if flag in ace.flags)
    return f"({ace.type};{flags};{_format_rights(ace.mask)};;;{format_sid(ace.sid)})"


def _format_rights(mask: int) -> str:
    if mask in _WORD_OF:
        return _WORD_OF[mask]
    if mask and not mask & ~_SINGLE_BITS:
        return "".join(word for word, bit in _SINGLE.items() if mask & bit)
    return f"0x{mask:x}"


class _Reader:
    """Reads one text from its start to its end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def descriptor(self) -> Descriptor:
        owner = self._sid() if self._takes("O:") else None
        group = self._sid() if self._takes("G:") else None
        dacl = self._acl() if self._takes("D:") else None
        if self._is_next("S:"):
            self._refuse("the system list S: (audits, integrity labels) is not supported; leave it out")
        if self._at < len(self._text):
            self._refuse(f"expected O:, G: and D:, each once and in this order, not {self._shown(self._at)}")
        return Descriptor(dacl, owner, group)

    def _acl(self) -> Acl | None:
        if self._takes(NO_LIST):
            return None
        flags = set()
        while found := _ACL_FLAG.match(self._text, self._at):
            flags.add(AclFlag(found[0].upper()))
            self._at = found.end()
        aces: list[Ace] = []
        while self._is_next("("):
            if len(aces) == MAX_ACES:
                self._refuse(f"a list has at most {MAX_ACES} entries")
            aces.append(self._ace())
        return Acl(tuple(aces), frozenset(flags))

    def _ace(self) -> Ace:
        start = self._at
        end = self._text.find(")", start)
        if end < 0:
            self._refuse("an entry ends with ), and this one does not")
        fields = self._text[start + 1 : end].split(";")
        at = [start + 1]
        for field in fields:
            at.append(at[-1] + len(field) + 1)
        word = fields[0].upper()
        if word in _REFUSED_TYPES:
            self._refuse(f"{word} is {_REFUSED_TYPES[word]}, which is not supported; write A or D", at[0])
        if word not in tuple(AceType):
            self._refuse(f"an entry begins with A (allow) or D (deny), not {self._shown(at[0])}", at[0])
        if len(fields) != _FIELDS:
            self._refuse(f"an entry has six fields, type;flags;rights;;;SID, and this one has {len(fields)}")
        if fields[3] or fields[4]:
            self._refuse("an entry for an object's GUID is not supported", at[3] if fields[3] else at[4])
        flags = self._ace_flags(fields[1], at[1])
        mask = self._mask(fields[2], at[2])
        try:
            sid = parse_sid(fields[5])
        except UsageError as error:
            self._refuse(str(error), at[5])
        self._at = end + 1
        return Ace(AceType(word), mask, sid, flags)

    def _ace_flags(self, text: str, at: int) -> frozenset[AceFlag]:
        flags = set()
        for start in range(0, len(text), 2):
            word = text[start : start + 2].upper()
            if word in ("SA", "FA"):
                self._refuse(f"the flag {word} is for audits, which are not supported", at + start)
            if word not in tuple(AceFlag):
                self._refuse(f"an entry's flags are OI, CI, NP, IO, ID, not {self._shown(at + start)}", at + start)
            flags.add(AceFlag(word))
        return frozenset(flags)

    def _mask(self, text: str, at: int) -> int:
        if text[:1].isdigit():
            if not _NUMBER.fullmatch(text):
                self._refuse("rights as a number are 0x and up to 8 digits, a decimal or an octal number", at)
            base = 16 if text[:2] in ("0x", "0X") else 8 if text[0] == "0" else 10
            if base == 8 and not set(text) <= set("01234567"):
                self._refuse("a number that begins with 0 is octal", at)
            mask = int(text, base)
            if mask > MAX_MASK:
                self._refuse("rights are 32 bits", at)
            return mask
        mask = 0
        for start in range(0, len(text), 2):
            word = text[start : start + 2].upper()
            if word not in _RIGHTS:
                self._refuse(f"no rights are called {self._shown(at + start)}; FA is all of them", at + start)
            mask |= _RIGHTS[word]
        return mask

    def _sid(self) -> Sid:
        found = _SID.match(self._text, self._at)
        try:
            sid = parse_sid(found[0] if found else self._text[self._at : self._at + 2])
        except UsageError as error:
            self._refuse(str(error))
        assert found is not None, "what is no SID was refused"
        self._at = found.end()
        return sid

    def _is_next(self, word: str) -> bool:
        return self._text[self._at : self._at + len(word)].upper() == word

    def _takes(self, word: str) -> bool:
        if not self._is_next(word):
            return False
        self._at += len(word)
        return True

    def _shown(self, at: int) -> str:
        rest = self._text[at : at + _SHOWN_CHARACTERS]
        return repr(rest) if rest else "the end of the text"

    def _refuse(self, why: str, at: int | None = None) -> NoReturn:
        raise UsageError(f"SDDL, character {(self._at if at is None else at) + 1}: {why}")
