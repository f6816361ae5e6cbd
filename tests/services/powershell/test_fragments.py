"""Messages of PSRP: put together from fragments in any cuts, bounded, with nothing that a parser may not see."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psrpcore import ClientRunspacePool, ServerRunspacePool

from hvsock.errors import ProtocolError
from hvsock.services.powershell import fragments
from hvsock.services.powershell.fragments import MAX_UNFINISHED, Message, Reassembly, check_xml, message_of
from hvsock.services.powershell.framing import POOL, Role

PIPELINE = UUID("5c2a1d8e-0f3b-4b7e-9d55-1c6f0e2a9b10")
RUNSPACES = UUID("11111111-2222-3333-4444-555555555555")
START, END = 1, 2


def message(payload: bytes, target: UUID = PIPELINE, kind: int = 0x00041004, destination: int = 1) -> bytes:
    return struct.pack("<II", destination, kind) + RUNSPACES.bytes_le + target.bytes_le + payload


def fragment(object_id: int, number: int, flags: int, data: bytes) -> bytes:
    return struct.pack(">QQBI", object_id, number, flags, len(data)) + data


def in_fragments(object_id: int, data: bytes, size: int) -> list[bytes]:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    last = len(parts) - 1
    return [
        fragment(object_id, number, (START if number == 0 else 0) | (END if number == last else 0), part)
        for number, part in enumerate(parts)
    ]


def read(pieces: Sequence[bytes], role: Role = Role.SERVER) -> list[Message]:
    made = Reassembly(role)
    return [one for piece in pieces for one in made.receive(piece)]


def refusal(*pieces: bytes, role: Role = Role.SERVER) -> str:
    with pytest.raises(ProtocolError) as caught:
        read(pieces, role)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_message_says_what_it_is() -> None:
    (found,) = read(in_fragments(7, message(b"\xef\xbb\xbf<S>hello</S>"), 50))
    assert (found.object_id, found.kind, found.pool, found.target) == (7, 0x00041004, RUNSPACES, PIPELINE)
    assert found.payload == b"<S>hello</S>"
    assert read([found.fragment]) == [found]


def test_what_psrpcore_sends_is_read() -> None:
    client, server = ClientRunspacePool(), ServerRunspacePool()
    client.open()
    sizes = []
    for size in (22, 100, 32 * 1024):
        client, server = ClientRunspacePool(), ServerRunspacePool()
        client.open()
        made, messages = Reassembly(Role.CLIENT), list[Message]()
        while (sent := client.data_to_send(size)) is not None:
            messages += made.receive(sent.data)
        assert [one.kind for one in messages] == [0x00010002, 0x00010004]
        assert {one.target for one in messages} == {POOL}
        sizes.append([len(one.payload) for one in messages])
        assert server.state.name == "BeforeOpen"
    assert sizes[0] == sizes[1] == sizes[2]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0!?"), max_size=200)
messages = st.builds(message, texts.map(lambda one: b"<" + one.encode()), st.sampled_from([POOL, PIPELINE]))


@given(st.lists(messages, max_size=5), st.integers(1, 60), st.lists(st.integers(0, 5000), max_size=12))
def test_no_cut_changes_what_is_read(sent: list[bytes], size: int, at: list[int]) -> None:
    stream = b"".join(part for number, one in enumerate(sent) for part in in_fragments(number, one, size))
    places = sorted({one % (len(stream) + 1) for one in at})
    pieces = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    expected = [message_of(number, one, Role.SERVER) for number, one in enumerate(sent)]
    assert read(pieces) == expected
    assert read([bytes([one]) for one in stream]) == expected


@given(st.binary(max_size=200))
def test_anything_is_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        read([data])


def test_messages_may_come_in_between() -> None:
    """A host call goes ahead of the output of its pipeline, and pipelines write as they like."""
    long, short = (
        in_fragments(1, message(b"<S>" + b"x" * 100 + b"</S>"), 60),
        in_fragments(2, message(b"<Nil/>"), 60),
    )
    found = read([long[0], *short, *long[1:]])
    assert [one.object_id for one in found] == [2, 1]


def test_streams_are_cut_apart_from_each_other() -> None:
    made = Reassembly(Role.SERVER)
    one, two = fragment(1, 0, START | END, message(b"<Nil/>")), fragment(2, 0, START | END, message(b"<S>x</S>"))
    assert list(made.receive(one[:30], PIPELINE)) == []
    assert [found.object_id for found in made.receive(two, PIPELINE, True)] == [2]
    assert [found.object_id for found in made.receive(one[30:], PIPELINE)] == [1]


def test_what_a_closed_pipeline_left_is_forgotten() -> None:
    made = Reassembly(Role.SERVER)
    whole = fragment(1, 0, START | END, message(b"<Nil/>"))
    assert list(made.receive(whole[:30], PIPELINE)) == []
    made.forget(PIPELINE)
    assert len(list(made.receive(whole, PIPELINE))) == 1


def test_fragments_out_of_their_order_are_refused() -> None:
    one, two, three = in_fragments(1, message(b"<S>" + b"x" * 100 + b"</S>"), 60)
    assert "is not due" in refusal(two)
    assert "is not due" in refusal(one, three)
    assert "begins in its midst" in refusal(one, one)
    assert "begins in its midst" in refusal(fragment(1, 3, START, b"x"))
    assert "is not due" in refusal(one, two, three, three)
    assert "is empty" in refusal(one, fragment(1, 1, 0, b""))


def test_messages_are_for_who_reads_them() -> None:
    assert "no header" in refusal(fragment(1, 0, START | END, b"<Nil/>"))
    assert "destination 2" in refusal(fragment(1, 0, START | END, message(b"", destination=2)))
    to_server = fragment(1, 0, START | END, message(b"", destination=2))
    assert len(read([to_server], Role.CLIENT)) == 1
    assert "the client sent" in refusal(fragment(1, 0, START | END, message(b"")), role=Role.CLIENT)


def test_objects_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    too_large = struct.pack(">QQBI", 1, 0, START, 0xFFFFFFFF)
    assert "more than 64 MiB" in refusal(too_large)
    monkeypatch.setattr(fragments, "MAX_MESSAGE_BYTES", 1000)
    part = b"x" * 400
    assert "more than" in refusal(*(fragment(1, n, START if n == 0 else 0, part) for n in range(3)))
    assert "more than" in refusal(*(fragment(n, 0, START, part) for n in range(3)))
    done = message(b"<S>" + b"x" * 400 + b"</S>")
    assert len(read([fragment(n, 0, START | END, done) for n in range(10)])) == 10


def test_objects_at_once_are_bounded() -> None:
    assert "at once" in refusal(*(fragment(number, 0, START, b"x") for number in range(MAX_UNFINISHED + 1)))
    made = Reassembly(Role.SERVER)
    for number in range(MAX_UNFINISHED):
        assert list(made.receive(b"x", UUID(int=number))) == []
    with pytest.raises(ProtocolError, match="more than"):
        list(made.receive(b"x", PIPELINE))


@pytest.mark.parametrize(
    "payload",
    [
        b"<!DOCTYPE x [<!ENTITY a 'aaaa'>]><S>&a;</S>",
        b"<?xml version='1.0' encoding='cp037'?>",
        b"<S><![CDATA[x]]></S>",
        b"<S><!-- x --></S>",
        b"<S><?x?></S>",
        "<S>x</S>".encode("utf-16"),
        "<S>x</S>".encode("utf-16-le"),
        b"<S>\xff</S>",
        b" <S/>",
        b"S",
        b"\xef\xbb\xbf<S/>",
    ],
    ids=range(11),
)
def test_declarations_and_other_encodings_are_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        check_xml(payload, Role.SERVER)
    refusal(fragment(1, 0, START | END, message(b"\xef\xbb\xbf" + payload)))
