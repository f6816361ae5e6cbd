"""SIDs: one spelling each, and how those of users, groups and VMs are made."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.addresses import VmId
from hvsock.errors import UsageError
from hvsock.topology import sids
from hvsock.topology.sids import (
    ALIASES,
    OF_A_DOMAIN,
    format_sid,
    group_sid,
    is_of_vms,
    parse_sid,
    user_sid,
    vm_sid,
)
from tests.topology import descriptors


def test_the_sid_of_a_vm_is_the_one_that_windows_gives_it() -> None:
    """VmId and user of one record of a real Hyper-V worker's event log, which is public."""
    sid = vm_sid(VmId("d9e0eb0a-5b37-508e-9173-67e9ade83acf"))
    assert sid == "S-1-5-83-1-3655396106-1351506743-3915871121-3476744365"
    assert is_of_vms(sid)
    assert is_of_vms(sids.VIRTUAL_MACHINES)
    assert not is_of_vms(sids.ADMINISTRATORS)


def test_users_and_groups_have_the_sids_that_samba_gives_them() -> None:
    assert user_sid(1000) == "S-1-22-1-1000"
    assert group_sid(100) == "S-1-22-2-100"


@pytest.mark.parametrize(
    ("text", "sid"),
    [
        ("SY", "S-1-5-18"),
        ("ba", "S-1-5-32-544"),
        ("Wd", "S-1-1-0"),
        ("s-1-5-18", "S-1-5-18"),
        ("S-1-0x000000000005-0018", "S-1-5-18"),
        ("S-1-0xabcdef012345-1", "S-1-0xABCDEF012345-1"),
        ("S-1-4294967295-4294967295", "S-1-4294967295-4294967295"),
        ("S-1-5" + "-1" * 15, "S-1-5" + "-1" * 15),
    ],
)
def test_a_sid_has_one_spelling(text: str, sid: str) -> None:
    assert parse_sid(text) == sid


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no SID"),
        ("XX", "no SID"),
        ("S-1-5", "no SID"),
        ("S-2-5-18", "no SID"),
        ("S-1-5-", "no SID"),
        ("S-1-5-18 ", "no SID"),
        ("S-1-5-1\u0661", "no SID"),
        ("\u017fy", "no SID"),
        ("\u017f-1-5-18", "no SID"),
        ("S-1-5" + "-1" * 16, "no SID"),
        ("S-1-0x5-18", "no SID"),
        ("S-1-5-4294967296", "at most 4294967295"),
        ("S-1-4294967296-1", "0x and 12 digits"),
        ("S-1-5-18" * 1_000_000, "no SID"),
        *((token, "Windows domain") for token in sorted(OF_A_DOMAIN)),
    ],
)
def test_what_is_no_sid_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_sid(text)
    assert len(str(caught.value)) < 200


def test_each_token_stands_for_a_sid_of_its_own() -> None:
    assert len(set(ALIASES.values())) == len(ALIASES)
    assert not OF_A_DOMAIN & set(ALIASES)
    for token, sid in ALIASES.items():
        assert parse_sid(sid) == sid
        assert format_sid(sid) == token


@settings(max_examples=30)
@given(descriptors.sids)
def test_what_is_written_is_read_again(sid: sids.Sid) -> None:
    assert parse_sid(format_sid(sid)) == sid
    assert parse_sid(sid) == sid


@settings(max_examples=10)
@given(st.uuids(), st.uuids())
def test_two_vms_have_two_sids(one: object, other: object) -> None:
    same = vm_sid(VmId(str(one))) == vm_sid(VmId(str(other)))
    assert same is (one == other)
