"""Lines of PSRP: what goes out is read back, in any cuts, and what is no line of this peer's is refused."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.errors import ProtocolError
from hvsock.services.powershell.framing import (
    ERROR_PREFIXES,
    MAX_FRAGMENT_BYTES,
    MAX_LINE_BYTES,
    POOL,
    SHOWN_CHARACTERS,
    Decoder,
    Element,
    Kind,
    Role,
)

PIPELINE = UUID("5c2a1d8e-0f3b-4b7e-9d55-1c6f0e2a9b10")


def read(role: Role, pieces: Sequence[bytes], *, ended: bool = False) -> tuple[list[Element], str | None]:
    """What a decoder makes of `pieces`, and the error that it ended with."""
    decoder, found = Decoder(role), list[Element]()
    try:
        for piece in pieces:
            decoder.receive(piece)
            found.extend(decoder.elements())
        if ended:
            decoder.receive_end()
            found.extend(decoder.elements())
    except ProtocolError as error:
        return found, str(error)
    return found, None


def refusal(role: Role, line: bytes) -> str:
    """Why a line is refused."""
    found, error = read(role, [line + b"\n"])
    assert found == []
    assert error is not None
    assert "\n" not in error
    return error


def element(kind: Kind, target: UUID = PIPELINE) -> Element:
    return Element(kind, target)


# -- as PowerShell writes them

SERVER_LINES = [
    (b"<Data Stream='Default' PSGuid='%b'>aGVsbG8=</Data>", Element(Kind.DATA, PIPELINE, b"hello")),
    (b"<Data Stream='PromptResponse' PSGuid='%b'>aGVsbG8=</Data>", Element(Kind.DATA, PIPELINE, b"hello", True)),
    (b"<DataAck PSGuid='%b' />", element(Kind.DATA_ACK)),
    (b"<CommandAck PSGuid='%b' />", element(Kind.COMMAND_ACK)),
    (b"<CloseAck PSGuid='%b' />", element(Kind.CLOSE_ACK)),
    (b"<SignalAck PSGuid='%b' />", element(Kind.SIGNAL_ACK)),
]
CLIENT_LINES = [
    *SERVER_LINES[:2],
    (b"<Command PSGuid='%b' />", element(Kind.COMMAND)),
    (b"<Close PSGuid='%b' />", element(Kind.CLOSE)),
    (b"<Signal PSGuid='%b' />", element(Kind.SIGNAL)),
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("role", list(Role), ids=lambda one: one.value)
def test_lines_as_powershell_writes_them(role: Role, end: bytes) -> None:
    lines = SERVER_LINES if role is Role.SERVER else CLIENT_LINES
    for line, expected in lines:
        whole = line % str(PIPELINE).encode()
        assert read(role, [whole + end]) == ([expected], None)
        assert read(role, [whole.replace(b"'", b'"') + end]) == ([expected], None)
        assert read(role, [(line % str(PIPELINE).upper().encode()) + end]) == ([expected], None)
        assert expected.line() == whole + b"\n"


def test_the_pool_is_the_guid_of_zeros() -> None:
    assert Element(Kind.CLOSE).line() == b"<Close PSGuid='00000000-0000-0000-0000-000000000000' />\n"
    assert Element(Kind.CLOSE).target == POOL


def test_an_empty_line_ends_a_client_and_is_nothing_of_a_server() -> None:
    assert read(Role.CLIENT, [b"\n"]) == ([Element(Kind.END)], None)
    assert read(Role.CLIENT, [b"\r\n"]) == ([Element(Kind.END)], None)
    assert Element(Kind.END).line() == b"\n"
    assert read(Role.SERVER, [b"\n", Element(Kind.DATA_ACK).line()]) == ([Element(Kind.DATA_ACK)], None)


def test_a_byte_order_mark_may_stand_before_the_first_line_only() -> None:
    line = Element(Kind.DATA_ACK).line()
    assert read(Role.SERVER, [b"\xef\xbb\xbf" + line]) == ([Element(Kind.DATA_ACK)], None)
    found, error = read(Role.SERVER, [line, b"\xef\xbb\xbf" + line])
    assert (len(found), error is None) == (1, False)


@pytest.mark.parametrize("prefix", ERROR_PREFIXES)
def test_errors_of_a_server_are_lines_of_text(prefix: bytes) -> None:
    text = "the user “x” may\x1b[31m not"
    found, error = read(Role.SERVER, [prefix + text.encode() + b"\n"])
    assert error is None
    assert [one.kind for one in found] == [Kind.ERROR]
    assert found[0].text == "the user “x” may?[31m not"
    assert "none of PSRP's" in refusal(Role.CLIENT, prefix + b"hello")


def test_an_error_of_several_lines_goes_out_as_one() -> None:
    sent = Element(Kind.ERROR, data=b"first\r\nsecond")
    assert sent.line().count(b"\n") == 1
    assert [one.text for one in read(Role.SERVER, [sent.line()])[0]] == ["first second"]


def test_nuls_may_stand_before_a_servers_first_line_only() -> None:
    line = Element(Kind.DATA_ACK).line()
    assert read(Role.SERVER, [b"\0\0", b"\0" + line]) == ([Element(Kind.DATA_ACK)], None)
    assert "none of PSRP's" in refusal(Role.CLIENT, b"\0" + Element(Kind.CLOSE).line()[:-1])
    found, error = read(Role.SERVER, [line, b"\0" + line])
    assert (len(found), error is None) == (1, False)


# -- what is refused

HOSTILE = [
    b"hello",
    b"<",
    b"<Data>",
    b"<Data Stream='Default' PSGuid='x'>aGVsbG8=</Data>",
    b"<Data Stream='Default'>aGVsbG8=</Data>",
    b"<Data PSGuid='%b' Stream='Default' Extra='1'>aGVsbG8=</Data>" % str(PIPELINE).encode(),
    b"<Data Stream='Other' PSGuid='%b'>aGVsbG8=</Data>" % str(PIPELINE).encode(),
    b"<Data Stream='Default' PSGuid='%b'>aGVs&#98;8=</Data>" % str(PIPELINE).encode(),
    b"<Data Stream='Default' PSGuid='%b'><![CDATA[aGVsbG8=]]></Data>" % str(PIPELINE).encode(),
    b"<Data Stream='Default' PSGuid='%b'>a</Data>" % str(PIPELINE).encode(),
    b"<Data Stream='Default' PSGuid='%b'>aGVsbG8=</Data><DataAck/>" % str(PIPELINE).encode(),
    b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><Data>&b;</Data>",
    b"<?xml version='1.0'?>",
    b"<DataAck PSGuid='%b'></DataAck>" % str(PIPELINE).encode(),
    b"<Frob PSGuid='%b' />" % str(PIPELINE).encode(),
    b" " + Element(Kind.DATA, PIPELINE, b"x").line()[:-1],
    "<DataAck PSGuid='\u0966\u09660000-0000-0000-0000-000000000000' />".encode(),
    b"x" + b"\x00" * 40,
    b"\xff\xfe<\x00D\x00",
]


@pytest.mark.parametrize("role", list(Role), ids=lambda one: one.value)
@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_line_is_refused(role: Role, line: bytes) -> None:
    assert f"the {role.value} sent" in refusal(role, line)


@pytest.mark.parametrize("kind", [Kind.COMMAND, Kind.CLOSE, Kind.SIGNAL], ids=lambda one: one.value)
def test_neither_peer_says_what_is_the_others(kind: Kind) -> None:
    assert "not for it to send" in refusal(Role.SERVER, element(kind).line()[:-1])
    assert "not for it to send" in refusal(Role.CLIENT, element(kind.ack).line()[:-1])
    assert "not for it to send" in refusal(Role.CLIENT, element(Kind.DATA_ACK).line()[:-1])


def test_the_pool_is_neither_signalled_nor_a_command() -> None:
    assert "Signal for the runspace pool" in refusal(Role.CLIENT, Element(Kind.SIGNAL).line()[:-1])
    assert "Command with the GUID" in refusal(Role.CLIENT, Element(Kind.COMMAND).line()[:-1])


def test_a_line_is_bounded() -> None:
    head = len(Element(Kind.DATA).line()) - 1
    most = Element(Kind.DATA, data=b"x" * ((MAX_LINE_BYTES - head) // 4 * 3))
    assert MAX_LINE_BYTES - 4 < len(most.line()) - 1 <= MAX_LINE_BYTES
    assert read(Role.SERVER, [most.line()]) == ([most], None)
    too_long = b"<" * (MAX_LINE_BYTES + 1)
    for pieces in ([too_long], [too_long, b"\n"], [too_long[:-1], b"<"], [too_long + b"\n"]):
        found, error = read(Role.SERVER, pieces)
        assert (found, error) == ([], f"the server sent a line of more than {MAX_LINE_BYTES} bytes")
    assert len(base64.b64encode(b"x" * MAX_FRAGMENT_BYTES)) < MAX_LINE_BYTES


def test_an_error_shows_little_of_what_came() -> None:
    error = refusal(Role.SERVER, b"\x1b[2J" + b"x" * 5000)
    assert len(error) < SHOWN_CHARACTERS + 80
    assert error.isprintable()


def test_an_end_in_the_midst_of_a_line_is_an_error() -> None:
    line = Element(Kind.DATA_ACK).line()
    assert read(Role.SERVER, [line], ended=True) == ([Element(Kind.DATA_ACK)], None)
    found, error = read(Role.SERVER, [line, line[:10]], ended=True)
    assert found == [Element(Kind.DATA_ACK)]
    assert error == "the connection ended in the midst of a line: <DataAck P"


def test_errors_and_ends_have_no_acknowledgement() -> None:
    for kind in (Kind.ERROR, Kind.END, Kind.DATA_ACK):
        with pytest.raises(ValueError, match="Ack"):
            _ = kind.ack


# -- any cut gives the same

targets = st.one_of(st.just(POOL), st.just(PIPELINE), st.uuids())
data_elements = st.builds(Element, st.just(Kind.DATA), targets, st.binary(max_size=300), st.booleans())
server_elements = st.one_of(
    data_elements,
    st.builds(
        Element, st.sampled_from([Kind.DATA_ACK, Kind.COMMAND_ACK, Kind.CLOSE_ACK, Kind.SIGNAL_ACK]), targets
    ),
    st.builds(
        Element,
        st.just(Kind.ERROR),
        data=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])).map(str.encode),
    ),
)
client_elements = st.one_of(
    data_elements,
    st.builds(Element, st.just(Kind.CLOSE), targets),
    st.builds(Element, st.sampled_from([Kind.COMMAND, Kind.SIGNAL]), st.uuids().filter(lambda one: one != POOL)),
    st.just(Element(Kind.END)),
)
by_role = st.one_of(
    st.tuples(st.just(Role.SERVER), st.lists(server_elements, max_size=8)),
    st.tuples(st.just(Role.CLIENT), st.lists(client_elements, max_size=8)),
)


def cut(stream: bytes, at: Sequence[int]) -> list[bytes]:
    """`stream` in pieces."""
    places = sorted({one % (len(stream) + 1) for one in at})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


cuts = st.lists(st.integers(0, 10_000), max_size=20)


@given(by_role, cuts)
def test_no_cut_changes_what_is_read(sent: tuple[Role, list[Element]], at: list[int]) -> None:
    role, elements = sent
    stream = b"".join(one.line() for one in elements)
    assert read(role, cut(stream, at), ended=True) == (elements, None)
    assert read(role, [bytes([one]) for one in stream], ended=True) == (elements, None)


@given(by_role, st.binary(max_size=80), st.integers(0, 8), cuts)
def test_no_cut_changes_where_garbage_ends_it(
    sent: tuple[Role, list[Element]], garbage: bytes, place: int, at: list[int]
) -> None:
    role, elements = sent
    lines = [one.line() for one in elements]
    lines.insert(min(place, len(lines)), garbage)
    stream = b"".join(lines)
    assert read(role, cut(stream, at), ended=True) == read(role, [stream], ended=True)


@given(st.sampled_from(list(Role)), st.binary(max_size=400))
def test_anything_is_read_or_refused(role: Role, stream: bytes) -> None:
    read(role, [stream], ended=True)
