"""The words of hybrid sockets, cut anywhere and followed by anything."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.addresses import ServiceId
from hvsock.constants import VSOCK_PORT_MAX
from hvsock.errors import NotFoundError, ProtocolError, UsageError
from hvsock.hybrid.handshake import (
    FIRST_NUMBER,
    LAST_NUMBER,
    MAX_ANSWER_BYTES,
    QUOTED_BYTES,
    Accepted,
    Asked,
    Line,
    Refused,
    answer_line,
    listener_paths,
    next_number,
    parse_answer,
    parse_request,
    quoted,
    request_line,
    service_of,
)
from hvsock.hybrid.profiles import (
    CLOUD_HYPERVISOR,
    FIRECRACKER,
    HVSOCK,
    LIBKRUN,
    OPENVMM,
    PROFILES,
    VHOST_DEVICE,
    Profile,
    profile_named,
)

PORT = ServiceId.from_port(52)
GUID = ServiceId("999e53d4-3d5c-4c3e-8779-bed06ec056e1")

WITH_HANDSHAKE = [one for one in PROFILES.values() if one.has_handshake]
with_handshake = pytest.mark.parametrize("profile", WITH_HANDSHAKE, ids=lambda one: one.name)
profiles = st.sampled_from(WITH_HANDSHAKE)
ports_alone = pytest.mark.parametrize(
    "profile", [FIRECRACKER, CLOUD_HYPERVISOR, VHOST_DEVICE], ids=lambda p: p.name
)
ports = st.integers(0, VSOCK_PORT_MAX)


def read(pieces: list[bytes], longest: int) -> tuple[bytes, bool, bytes]:
    """A line out of pieces: its text, whether it is whole, and what was left for the stream."""
    line, rest = Line(longest), b""
    for piece in pieces:
        rest += piece[line.feed(piece) :]
    return line.text, line.is_whole, rest


def outcome(pieces: list[bytes], longest: int) -> tuple[bytes, bool, bytes] | str:
    """The same, or why it is none."""
    try:
        return read(pieces, longest)
    except ProtocolError as error:
        return str(error)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces."""
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


# -- lines


@given(st.binary(max_size=60), st.lists(st.integers(0, 99)), st.integers(1, 40))
def test_any_cut_gives_the_same_line_and_the_same_rest(data: bytes, places: list[int], longest: int) -> None:
    whole = outcome([data], longest)
    assert outcome(cut(data, places), longest) == whole
    if not isinstance(whole, str):
        text, is_whole, rest = whole
        assert b"\n" not in text
        assert text + b"\n" * is_whole + rest == data


def test_what_follows_the_line_is_left() -> None:
    assert read([b"OK 5", b"2\nhel", b"lo\n"], 32) == (b"OK 52", True, b"hello\n")


def test_a_line_has_a_bound_which_the_line_feed_counts_for() -> None:
    assert read([b"12345678\n"], 9) == (b"12345678", True, b"")
    for pieces in ([b"123456789"], [b"123456789\n"], [b"1234", b"5678", b"9"], [b"1"] * 9):
        with pytest.raises(ProtocolError, match="more than 9 bytes"):
            read(pieces, 9)


# -- requests


@given(profiles, ports)
def test_a_port_that_is_asked_for_is_what_is_understood(profile: Profile, port: int) -> None:
    line = request_line(ServiceId.from_port(port), profile)
    assert line == f"CONNECT {port}\n".encode()
    assert len(line) <= profile.longest_request
    assert parse_request(line[:-1], profile) == Asked(ServiceId.from_port(port), False)


@pytest.mark.parametrize("profile", [HVSOCK, OPENVMM], ids=lambda one: one.name)
def test_a_guid_that_is_asked_for_is_what_is_understood(profile: Profile) -> None:
    line = request_line(GUID, profile)
    assert line == f"CONNECT {GUID}\n".encode()
    assert len(line) == profile.longest_request
    assert parse_request(line[:-1], profile) == Asked(GUID, True)
    assert parse_request(line[:-1].upper(), profile) == Asked(GUID, True)


@ports_alone
def test_who_takes_ports_alone_is_not_asked_for_guids(profile: Profile) -> None:
    with pytest.raises(UsageError, match="ports alone"):
        request_line(GUID, profile)
    with pytest.raises(ProtocolError, match="ports alone"):
        parse_request(b"CONNECT " + GUID.encode(), profile)


def test_who_has_no_handshake_is_not_asked() -> None:
    with pytest.raises(UsageError, match="a socket of its own"):
        request_line(PORT, LIBKRUN)


@pytest.mark.parametrize("line", [b"connect 52", b"Connect  52\r", b" CONNECT\t0000000052 "])
def test_requests_may_be_written_as_the_vmms_take_them(line: bytes) -> None:
    assert parse_request(line, FIRECRACKER) == Asked(PORT, False)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"CONNECT", b"CONNECT ", b"CONNECT52", b"52", b"GET / HTTP/1.1", b"CONNECT 52 53", b"\xff\x00"),
        *(b"CONNECT -1", b"CONNECT +1", b"CONNECT 4294967296", b"CONNECT 00000000052", b"CONNECT 0x34"),
        *(b"CONNECT x", b"CONNECT 5_2", b"CONNECT {%s}" % GUID.encode(), b"CONNECT \xd9\xa1"),
    ],
)
@with_handshake
def test_what_is_no_request_says_so(profile: Profile, line: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_request(line, profile)
    assert str(caught.value).isprintable()


# -- answers


@given(profiles, ports, st.integers(FIRST_NUMBER, LAST_NUMBER))
def test_each_answers_a_port_in_its_own_way(profile: Profile, port: int, number: int) -> None:
    line = answer_line(Asked(ServiceId.from_port(port), False), number, profile)
    repeats = profile in (HVSOCK, VHOST_DEVICE)
    assert line == f"OK {port if repeats else number}\n".encode()
    assert parse_answer(line[:-1]) == Accepted(port if repeats else number)


def test_who_is_asked_by_guid_answers_with_one() -> None:
    assert answer_line(Asked(GUID, True), FIRST_NUMBER, HVSOCK) == f"OK {GUID}\n".encode()
    channel = ServiceId.from_port(FIRST_NUMBER)
    line = answer_line(Asked(GUID, True), FIRST_NUMBER, OPENVMM)
    assert line == f"OK {channel}\n".encode()
    assert parse_answer(line[:-1]) == Accepted(channel)


def test_numbers_begin_anew_after_the_last() -> None:
    assert next_number(FIRST_NUMBER) == FIRST_NUMBER + 1
    assert next_number(LAST_NUMBER - 1) == LAST_NUMBER
    assert next_number(LAST_NUMBER) == FIRST_NUMBER


@pytest.mark.parametrize("line", [b"ERR no such port", b"ok 52", b"OKAY 52", b"HTTP/1.1 400 Bad Request\r"])
def test_other_words_are_a_refusal(line: bytes) -> None:
    assert parse_answer(line) == Refused(quoted(line))


@pytest.mark.parametrize(
    "line",
    [b"", b" ", b"OK", b"OK ", b"OK x", b"OK -1", b"OK 1 2", b"OK 4294967296", b"\x00", b"ERR \xff", b"A\rB"],
)
def test_what_is_no_answer_says_so(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="an answer is like 'OK 52'"):
        parse_answer(line)


@given(st.binary(max_size=MAX_ANSWER_BYTES))
def test_no_answer_raises_anything_else(line: bytes) -> None:
    try:
        text = str(parse_answer(line))
    except ProtocolError as error:
        text = str(error)
    assert text.isprintable()


def test_what_is_repeated_in_errors_is_short_and_printable() -> None:
    assert quoted(b"a" * QUOTED_BYTES) == f"'{'a' * QUOTED_BYTES}'"
    assert quoted(b"a" * (QUOTED_BYTES + 1)) == f"'{'a' * QUOTED_BYTES}'..."
    assert quoted(b"\x1b[31m\xff") == r"'\x1b[31m\xff'"


# -- listeners


def test_where_listeners_are() -> None:
    template = str(PORT)
    assert listener_paths("/run/v", PORT, FIRECRACKER) == ("/run/v_52",)
    assert listener_paths("/run/v", PORT, OPENVMM) == ("/run/v_52", f"/run/v_{template}")
    assert listener_paths("/run/v", GUID, OPENVMM) == (f"/run/v_{GUID}",)
    assert listener_paths("/run/v", GUID, LIBKRUN) == ("/run/v",)
    with pytest.raises(UsageError, match="ports alone"):
        listener_paths("/run/v", GUID, VHOST_DEVICE)


def test_which_service_a_file_is_a_listener_of() -> None:
    assert service_of("v_52", "v", FIRECRACKER) == PORT
    assert service_of(f"v_{PORT}", "v", OPENVMM) == PORT
    assert service_of(f"v_{GUID}", "v", HVSOCK) == GUID


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        *((name, HVSOCK) for name in ("v", "v_", "v_x", "w_52", "v_052", "v_0x34", "v_52_1", "v_4294967296")),
        (f"v_{str(GUID).upper()}", HVSOCK),
        (f"v_{GUID}", FIRECRACKER),
        (f"v_{PORT}", FIRECRACKER),
        ("v_52", LIBKRUN),
    ],
)
def test_other_files_are_no_listeners(name: str, profile: Profile) -> None:
    assert service_of(name, "v", profile) is None


# -- profiles


def test_profiles_have_names() -> None:
    for name, profile in PROFILES.items():
        assert profile_named(name.upper()) is profile
        assert profile.note
    with pytest.raises(NotFoundError, match="firecracker"):
        profile_named("qemu")
