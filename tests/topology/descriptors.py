"""Strategies for SIDs and security descriptors."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from hypothesis import strategies as st

from hvsock.topology.descriptors import MAX_MASK, Ace, AceFlag, AceType, Acl, AclFlag, Descriptor
from hvsock.topology.sids import ALIASES, Sid, parse_sid

_F = TypeVar("_F", bound=StrEnum)

_authorities = ["5", "22", "4294967295", "0x000100000000", "0xFFFFFFFFFFFF"]
sids: st.SearchStrategy[Sid] = st.sampled_from(sorted(ALIASES.values())) | st.builds(
    lambda authority, words: parse_sid("-".join(["S-1", authority, *map(str, words)])),
    st.sampled_from(_authorities),
    st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=15),
)
masks = st.integers(0, MAX_MASK) | st.sampled_from([0x1F01FF, 0x120089, 0x10000000, 0xC0000000, 0x3, 0xF003F])


def descriptors(
    of: st.SearchStrategy[Sid], masks: st.SearchStrategy[int] = masks
) -> st.SearchStrategy[Descriptor]:
    """Descriptors about the SIDs that `of` gives."""
    aces = st.builds(Ace, st.sampled_from(AceType), masks, of, _some(AceFlag))
    acls = st.builds(Acl, st.lists(aces, max_size=5).map(tuple), _some(AclFlag))
    return st.builds(Descriptor, st.none() | acls, st.none() | of, st.none() | of)


def _some(flags: type[_F]) -> st.SearchStrategy[frozenset[_F]]:
    """Any of these flags; one draw, as many sets of few members take their time."""
    members = tuple(flags)
    return st.integers(0, (1 << len(members)) - 1).map(
        lambda bits: frozenset(flag for place, flag in enumerate(members) if bits & 1 << place)
    )
