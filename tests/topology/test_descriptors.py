"""What a security descriptor allows: entries in their order, against a model that takes each right by itself."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.topology.descriptors import FILE_ALL, AceFlag, AceType, Descriptor, Finding, check, mapped
from hvsock.topology.sddl import parse_sddl
from hvsock.topology.sids import Sid
from tests.support import sample
from tests.topology import descriptors

EXAMPLES = sample(40, 10_000)
ME: AbstractSet[Sid] = frozenset({Sid("S-1-22-1-1000"), Sid("S-1-22-2-100"), Sid("S-1-1-0")})
FEW = [*sorted(ME), Sid("S-1-5-18"), Sid("S-1-5-83-0")]


@pytest.mark.parametrize(
    ("sddl", "finding"),
    [
        ("D:P(A;;FA;;;WD)", Finding(True, 1)),
        ("D:P(A;;GA;;;WD)", Finding(True, 1)),
        ("D:P(D;;FA;;;WD)", Finding(False, 1)),
        ("D:P(A;;FA;;;SY)(A;;FA;;;BA)", Finding(False)),
        ("D:P(A;;FA;;;SY)(A;;FA;;;S-1-22-1-1000)", Finding(True, 2)),
        ("D:P(A;;FA;;;S-1-22-2-100)", Finding(True, 1)),
        ("D:P(A;;FA;;;S-1-22-1-100)", Finding(False)),
        # in the order in which they stand: an entry that allows first is not undone by a later one
        ("D:(D;;FA;;;S-1-22-2-100)(A;;FA;;;WD)", Finding(False, 1)),
        ("D:(A;;FA;;;WD)(D;;FA;;;S-1-22-2-100)", Finding(True, 1)),
        # several entries may allow it together, and a right that is denied in between is denied
        ("D:(A;;FR;;;WD)(A;;FW;;;WD)(A;;0x1f01ff;;;WD)", Finding(True, 3)),
        ("D:(A;;FR;;;WD)(D;;GR;;;WD)(A;;FA;;;WD)", Finding(True, 3)),
        ("D:(A;;FR;;;WD)(D;;GW;;;WD)(A;;FA;;;WD)", Finding(False, 2)),
        ("D:(A;;FRFWFX;;;WD)", Finding(False)),
        ("D:(A;IO;FA;;;WD)", Finding(False)),
        ("D:(D;IO;FA;;;WD)(A;OICI;FA;;;WD)", Finding(True, 2)),
        # no list at all allows everything, an empty one nothing
        ("D:NO_ACCESS_CONTROL", Finding(True)),
        ("O:SY", Finding(True)),
        ("D:", Finding(False)),
        ("D:P", Finding(False)),
    ],
)
def test_what_a_descriptor_allows(sddl: str, finding: Finding) -> None:
    assert check(parse_sddl(sddl), ME) == finding


@pytest.mark.parametrize(
    ("sddl", "known", "unknown"),
    [
        ("D:(D;;FA;;;S-1-22-2-5)(A;;FA;;;WD)", Finding(True, 2), Finding(False, 1)),
        ("D:(D;;FA;;;BA)(A;;FA;;;WD)", Finding(True, 2), Finding(False, 1)),
        ("D:(D;IO;FA;;;S-1-22-2-5)(A;;FA;;;WD)", Finding(True, 2), Finding(True, 2)),
        ("D:(A;;FA;;;WD)(D;;FA;;;S-1-22-2-5)", Finding(True, 1), Finding(True, 1)),
        ("D:(D;;FA;;;S-1-22-1-5)(D;;FA;;;SY)(A;;FA;;;WD)", Finding(True, 3), Finding(True, 3)),
        ("D:(A;;FA;;;S-1-22-2-5)(A;;FA;;;BA)", Finding(False), Finding(False)),
    ],
)
def test_who_may_be_in_any_group_is_denied_what_a_group_is(sddl: str, known: Finding, unknown: Finding) -> None:
    descriptor = parse_sddl(sddl)
    assert check(descriptor, ME) == known
    assert check(descriptor, ME, in_other_groups=True) == unknown


def test_generic_rights_stand_for_those_of_files() -> None:
    assert mapped(0x10000000) == FILE_ALL
    assert mapped(0x80000000) == 0x120089
    assert mapped(0x40000000) == 0x120116
    assert mapped(0x20000000) == 0x1200A0
    assert mapped(0xC0000001) == 0x120089 | 0x120116 | 1
    assert mapped(0x2) == 0x2


@pytest.mark.parametrize(
    ("sddl", "names"),
    [
        ("D:P(A;;FA;;;SY)(A;;FA;;;BA)", False),
        ("D:P(A;;FA;;;S-1-5-83-0)", True),
        ("D:P(A;;FA;;;SY)(D;;FA;;;S-1-5-83-1-1-2-3-4)", True),
        ("D:NO_ACCESS_CONTROL", False),
    ],
)
def test_a_descriptor_names_vms_or_not(sddl: str, names: bool) -> None:
    assert parse_sddl(sddl).names_vms is names


def model(descriptor: Descriptor, sids: AbstractSet[Sid], wanted: int) -> bool:
    """Each right by itself: the first entry that is about it decides, and none denies."""
    if descriptor.dacl is None:
        return True
    for bit in (1 << shift for shift in range(32) if wanted & 1 << shift):
        first = next(
            (
                ace.type
                for ace in descriptor.dacl.aces
                if ace.sid in sids and AceFlag.INHERIT_ONLY not in ace.flags and mapped(ace.mask) & bit
            ),
            AceType.DENY,
        )
        if first is AceType.DENY:
            return False
    return True


_masks = st.sampled_from([FILE_ALL, 0x10000000, 0x120089, 0x40000000, 0x1, 0x1F01FE, 0xE0000000, 0])


@settings(max_examples=EXAMPLES)
@given(
    descriptors.descriptors(st.sampled_from(FEW), _masks),
    st.frozensets(st.sampled_from(FEW)),
    st.sampled_from([FILE_ALL, 0x1, 0x120089, 0x120116]),
)
def test_a_check_comes_to_what_the_model_says(descriptor: Descriptor, sids: AbstractSet[Sid], wanted: int) -> None:
    finding = check(descriptor, sids, wanted)
    assert finding.allowed is model(descriptor, sids, wanted)
    if finding.ace is not None:
        assert descriptor.dacl is not None
        ace = descriptor.dacl.aces[finding.ace - 1]
        assert ace.sid in sids
        assert (ace.type is AceType.ALLOW) is finding.allowed
