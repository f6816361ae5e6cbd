"""What is put otherwise for psrpcore, and that everything else stays as it is."""

from __future__ import annotations

import contextlib
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.services.powershell.clixml import readable


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            '<MS><S N="A">a</S><MS N="Set"><S N="B">b</S></MS><S N="C">c</S></MS>',
            '<MS><S N="A">a</S><Obj N="Set"><MS><S N="B">b</S></MS></Obj><S N="C">c</S></MS>',
        ),
        (
            '<MS><MS N="One"><MS N="Two" /></MS></MS>',
            '<MS><Obj N="One"><MS><Obj N="Two"><MS/></Obj></MS></Obj></MS>',
        ),
        ("<MS><MS N='a>b'></MS></MS>", "<MS><Obj N='a>b'><MS></MS></Obj></MS>"),
        (
            '<MS><Obj><MS><I32 N="x">1</I32></MS></Obj><MS N="Set"><Obj N="o"><MS /></Obj></MS></MS>',
            '<MS><Obj><MS><I32 N="x">1</I32></MS></Obj><Obj N="Set"><MS><Obj N="o"><MS /></Obj></MS></Obj></MS>',
        ),
    ],
)
def test_a_set_that_is_a_member_becomes_an_object(written: str, read: str) -> None:
    assert readable(written.encode()).decode() == read


OLD = '<B N="{}">true</B><S N="InvocationInfo_Line"></S>'


@pytest.mark.parametrize("name", ["SerializeExtendedInfo", "InformationalRecord_SerializeInvocationInfo"])
def test_a_record_does_not_tell_of_its_invocation_where_psrpcore_needs_more(name: str) -> None:
    old = OLD.format(name)
    assert readable(old.encode()) == old.replace("true", "false").encode()
    newer = old + '<B N="SerializeExtent">false</B>'
    assert readable(newer.encode()) == newer.encode()


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "<S>&lt;MS N=&quot;x&quot;&gt;</S>",
        '<Obj RefId="0"><MS><S N="MS">x</S></MS></Obj>',
        '<B N="SerializeExtendedInfo">true</B>',
        '<MSN N="x"></MSN>',
        "</MS></MS>",
    ],
)
def test_anything_else_stays_as_it_is(payload: str) -> None:
    assert readable(payload.encode()) == payload.encode()


TAGS = ('<MS N="x">', "<MS N='y>'>", "<MS>", "</MS>", '<MS N="z"/>', "<MS />", "<Obj>", "</Obj>", "t")


@given(st.lists(st.sampled_from(TAGS), max_size=12).map("".join))
def test_what_is_xml_stays_xml_and_has_no_such_set(payload: str) -> None:
    made = readable(payload.encode())
    with contextlib.suppress(ET.ParseError):
        before = ET.fromstring(payload)
        after = ET.fromstring(made)
        assert [one for one in after.iter("MS") if one.attrib] == []
        names = [one.attrib["N"] for one in before.iter("MS") if one.attrib]
        assert [one.attrib["N"] for one in after.iter("Obj") if "N" in one.attrib] == names
        assert "".join(after.itertext()) == "".join(before.itertext())
