"""SDDL: what is read, what is written, and what is refused where."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvsock.errors import UsageError
from hvsock.topology.descriptors import MAX_ACES, Ace, AceFlag, AceType, Acl, AclFlag, Descriptor
from hvsock.topology.sddl import MAX_SDDL_CHARACTERS, format_sddl, parse_sddl
from hvsock.topology.sids import ADMINISTRATORS, EVERYONE, SYSTEM, Sid, vm_sid
from tests.support import sample
from tests.topology import descriptors
from tests.topology.world import vm_id

EXAMPLES = sample(30, 5_000)
ALLOW, DENY = AceType.ALLOW, AceType.DENY


def test_the_descriptors_of_the_original_are_read() -> None:
    """The default of a VM in hcsshim, and the one that denies everybody."""
    assert parse_sddl("D:P(A;;FA;;;SY)(A;;FA;;;BA)") == Descriptor(
        Acl((Ace(ALLOW, 0x1F01FF, SYSTEM), Ace(ALLOW, 0x1F01FF, ADMINISTRATORS)), frozenset({AclFlag.PROTECTED}))
    )
    assert parse_sddl("D:P(D;;FA;;;WD)").dacl == Acl(
        (Ace(DENY, 0x1F01FF, EVERYONE),), frozenset({AclFlag.PROTECTED})
    )


def test_owner_group_flags_and_rights_are_read() -> None:
    descriptor = parse_sddl("o:bag:s-1-5-18d:ArpAI(a;OicinpIOid;GRcc;;;S-1-5-21-1-2-3-500)")
    assert descriptor.owner == ADMINISTRATORS
    assert descriptor.group == SYSTEM
    assert descriptor.dacl is not None
    assert descriptor.dacl.flags == frozenset(AclFlag)
    assert descriptor.dacl.aces == (Ace(ALLOW, 0x80000001, Sid("S-1-5-21-1-2-3-500"), frozenset(AceFlag)),)
    assert format_sddl(descriptor) == "O:BAG:SYD:PARAI(A;OICINPIOID;GRCC;;;S-1-5-21-1-2-3-500)"


@pytest.mark.parametrize(
    ("rights", "mask"),
    [
        ("", 0),
        ("0", 0),
        ("FA", 0x1F01FF),
        ("FRFW", 0x12019F),
        ("KA", 0xF003F),
        ("GAGRGWGX", 0xF0000000),
        ("0x1F01ff", 0x1F01FF),
        ("017", 15),
        ("4294967295", 0xFFFFFFFF),
        ("CCDCLCSWRPWPDTLOCRSDRCWDWO", 0xF01FF),
    ],
)
def test_rights_are_words_or_a_number(rights: str, mask: int) -> None:
    dacl = parse_sddl(f"D:(A;;{rights};;;WD)").dacl
    assert dacl is not None
    assert dacl.aces[0].mask == mask


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("D:(A;;0x1f01ff;;;S-1-1-0)", "D:(A;;FA;;;WD)"),
        ("D:(A;;;;;WD)", "D:(A;;0x0;;;WD)"),
        ("D:(A;;0x100200;;;WD)", "D:(A;;0x100200;;;WD)"),
        ("D:(A;;KX;;;WD)", "D:(A;;KR;;;WD)"),
        ("D:P", "D:P"),
        ("D:", "D:"),
        ("O:BA", "O:BAD:NO_ACCESS_CONTROL"),
        ("D:NO_ACCESS_CONTROL", "D:NO_ACCESS_CONTROL"),
    ],
)
def test_what_is_read_is_written_in_one_way(text: str, written: str) -> None:
    assert format_sddl(parse_sddl(text)) == written


def test_no_list_and_an_empty_list_are_two_things() -> None:
    assert parse_sddl("O:BA").dacl is None
    assert parse_sddl("D:NO_ACCESS_CONTROL").dacl is None
    assert parse_sddl("D:").dacl == Acl()


@settings(max_examples=EXAMPLES)
@given(descriptors.descriptors(descriptors.sids))
def test_what_is_written_is_read_again(descriptor: Descriptor) -> None:
    text = format_sddl(descriptor)
    assert parse_sddl(text) == descriptor
    assert parse_sddl(text.lower()) == descriptor


@pytest.mark.parametrize(
    ("text", "character", "why"),
    [
        ("x", 1, "expected O:, G: and D:"),
        ("D:P (A;;FA;;;WD)", 4, "expected O:"),
        ("D:D:", 3, "expected O:"),
        ("D:O:BA", 3, "expected O:"),
        ("D:(A;;FA;;;WD)x", 15, "not 'x'"),
        ("O:", 3, "no SID"),
        ("O:ZZ", 3, "no SID"),
        ("O:S-1-5D:", 3, "no SID"),
        ("O:BAG:LA", 7, "Windows domain"),
        ("S:(AU;SA;FA;;;WD)", 1, "system list"),
        ("D:(A;;FA;;;WD)S:(ML;;NW;;;LW)", 15, "system list"),
        ("D:(A;;FA;;;WD", 3, "an entry ends with"),
        ("D:(", 3, "an entry ends with"),
        ("D:()", 4, "begins with A"),
        ("D:(Z;;FA;;;WD)", 4, "begins with A"),
        ("D:(A;;FA;;WD)", 3, "this one has 5"),
        ("D:(A;;FA;;;WD;x)", 3, "this one has 7"),
        ("D:(OA;;FA;;;WD)", 4, "objects of a directory"),
        ("D:(AU;SA;FA;;;WD)", 4, "audits"),
        ('D:(XA;;FA;;;WD;(@User.a=="b"))', 4, "a condition"),
        ("D:(RA;;;;;WD;x)", 4, "attribute of a resource"),
        ("D:(SP;;;;;S-1-17-1)", 4, "central policy"),
        ("D:(A;;FA;bf967aba-0de6-11d0-a285-00aa003049e2;;WD)", 10, "GUID"),
        ("D:(A;;FA;;bf967aba-0de6-11d0-a285-00aa003049e2;WD)", 11, "GUID"),
        ("D:(A;SA;FA;;;WD)", 6, "for audits"),
        ("D:(A;OIX;FA;;;WD)", 8, "flags are OI, CI"),
        ("D:(A;;FAF;;;WD)", 9, "no rights are called"),
        ("D:(A;;-1;;;WD)", 7, "no rights are called"),
        ("D:(A;;0x;;;WD)", 7, "0x and up to 8 digits"),
        ("D:(A;;0x123456789;;;WD)", 7, "0x and up to 8 digits"),
        ("D:(A;;08;;;WD)", 7, "octal"),
        ("D:(A;;4294967296;;;WD)", 7, "32 bits"),
        ("D:(A;;\u0661;;;WD)", 7, "is not of ASCII"),
        ("D:(A;;FA;;;\u017fY)", 12, "is not of ASCII"),
        ("O:\u017fY", 3, "is not of ASCII"),
        ("D:A\u0131", 4, "is not of ASCII"),
        ("D:(A;;FA;;;)", 12, "no SID"),
        ("D:(A;;FA;;;S-1-5-99999999999)", 12, "no SID"),
        ("D:" + "(A;;FA;;;WD)" * (MAX_ACES + 1), 3 + 12 * MAX_ACES, f"at most {MAX_ACES}"),
    ],
)
def test_what_is_no_sddl_is_refused_with_its_place(text: str, character: int, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_sddl(text)
    assert str(caught.value).startswith(f"SDDL, character {character}: ")
    assert len(str(caught.value)) < 200


def test_a_text_without_an_end_is_not_read() -> None:
    with pytest.raises(UsageError, match="at most"):
        parse_sddl("D:" + "(" * MAX_SDDL_CHARACTERS)
    with pytest.raises(UsageError, match="leave the descriptor out"):
        parse_sddl("")


def test_the_longest_list_of_vms_can_be_read() -> None:
    aces = tuple(Ace(ALLOW, 0x1F01FF, vm_sid(vm_id(number | 0xF0000000))) for number in range(MAX_ACES))
    descriptor = Descriptor(Acl(aces))
    assert parse_sddl(format_sddl(descriptor)) == descriptor


@settings(max_examples=EXAMPLES)
@given(st.lists(st.sampled_from([*"OGDSAP:;()x0-1", "S-1-5-18", "WD", "FA", "(A;;FA;;;WD)", "D:"])).map("".join))
@example("D:(A;;FA;;;WD)")
def test_any_text_is_read_or_refused(text: str) -> None:
    """And what is read is written as something that says the same."""
    with contextlib.suppress(UsageError):
        descriptor = parse_sddl(text)
        assert parse_sddl(format_sddl(descriptor)) == descriptor
