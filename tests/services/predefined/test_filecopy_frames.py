"""Frames of file copy: what is packed comes back, and what is no frame of a kind is a ProtocolError."""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

assert sys.platform == "linux"

from hvsock.errors import HvsockError, NotFoundError, ProtocolError, RemoteError, UsageError
from hvsock.services.predefined.filecopy.frames import (
    HEADER,
    MAGIC,
    MAX_BODY_BYTES,
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    MAX_SIZE,
    MAX_TEXT_BYTES,
    Counts,
    Failure,
    Get,
    Have,
    Kind,
    Meta,
    Overwrite,
    Plan,
    Put,
    abort_frame,
    check_name,
    error_frame,
    error_of,
    header_of,
    hello,
    number_frame,
    number_of,
    versions_of,
    why,
)
from tests.support import sample

uint64s = st.integers(0, 2**64 - 1)
uint32s = st.integers(0, 2**32 - 1)
int64s = st.integers(-(2**63), 2**63 - 1)
names = st.binary(min_size=1, max_size=MAX_NAME_BYTES).filter(
    lambda one: b"/" not in one and b"\0" not in one and one not in (b".", b"..")
)
paths = st.binary(max_size=300)
sizes = st.integers(0, MAX_SIZE)


def body_of(data: bytes, kind: Kind) -> bytes:
    """The body of the only frame in `data`."""
    assert header_of(data) == (kind, len(data) - HEADER.size)
    return data[HEADER.size :]


@given(st.builds(Put, paths, st.sampled_from(Overwrite), st.booleans()))
def test_put_comes_back(put: Put) -> None:
    assert Put.from_body(body_of(put.to_frame(), Kind.PUT)) == put


@given(st.builds(Get, paths, st.booleans()))
def test_get_comes_back(get: Get) -> None:
    assert Get.from_body(body_of(get.to_frame(), Kind.GET)) == get


@given(st.builds(Plan, uint64s, uint64s), st.builds(Have, uint64s, uint32s), st.builds(Counts, *[uint64s] * 6))
def test_numbers_come_back(plan: Plan, have: Have, counts: Counts) -> None:
    assert Plan.from_body(body_of(plan.to_frame(), Kind.PLAN)) == plan
    assert Have.from_body(body_of(have.to_frame(), Kind.HAVE)) == have
    assert Counts.from_body(body_of(counts.to_frame(), Kind.DONE)) == counts
    assert number_of(Kind.FROM, body_of(number_frame(Kind.FROM, plan.size), Kind.FROM)) == plan.size
    assert number_of(Kind.TAIL, body_of(number_frame(Kind.TAIL, have.crc), Kind.TAIL)) == have.crc


@given(names, uint32s, int64s, sizes, st.binary(min_size=1, max_size=300).filter(lambda one: b"\0" not in one))
def test_entries_come_back(name: bytes, mode: int, mtime: int, size: int, target: bytes) -> None:
    for kind, meta in {
        Kind.FILE: Meta(name, mode, mtime, size),
        Kind.FOLDER: Meta(name, mode, mtime),
        Kind.LINK: Meta(name, mode, mtime, target=target),
    }.items():
        assert Meta.from_body(kind, body_of(meta.to_frame(kind), kind)) == meta


@settings(max_examples=sample(12, 100))
@given(paths, st.text(max_size=300))
def test_failures_come_back_as_far_as_they_fit(path: bytes, reason: str) -> None:
    for kind, longest in ((Kind.SKIPPED, MAX_NAME_BYTES), (Kind.FAILED, MAX_PATH_BYTES)):
        found = Failure.from_body(body_of(Failure(path, reason).to_frame(kind), kind))
        assert found.path == path[:longest]
        assert len(found.reason) <= MAX_TEXT_BYTES
        if len(reason.encode()) <= MAX_TEXT_BYTES:
            assert found.reason == reason


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=16).map(tuple))
def test_versions_come_back(versions: tuple[int, ...]) -> None:
    assert versions_of(body_of(hello(versions), Kind.HELLO)) == versions


def test_an_abort_has_a_bound() -> None:
    assert body_of(abort_frame("x" * 5000), Kind.ABORT) == b"x" * MAX_TEXT_BYTES


@pytest.mark.parametrize("kind", Kind)
def test_no_body_is_longer_than_its_kind_may_have(kind: Kind) -> None:
    most = MAX_BODY_BYTES[kind]
    assert header_of(HEADER.pack(kind, most)) == (kind, most)
    for length in (most + 1, 2**32 - 1):
        with pytest.raises(ProtocolError, match=f"a {kind.name} of {length} bytes; {most} are the most"):
            header_of(HEADER.pack(kind, length))


@pytest.mark.parametrize("number", [0, 20, 255])
def test_kinds_that_there_are_not(number: int) -> None:
    with pytest.raises(ProtocolError, match=f"the unknown kind {number}"):
        header_of(b"xx" + HEADER.pack(number, 0), 2)


META = struct.Struct("!IqQ")
WRONG: list[tuple[Callable[[bytes], Any], bytes]] = [
    (versions_of, b""),
    (versions_of, MAGIC),
    (versions_of, MAGIC + b"\0"),
    (versions_of, b"SSH-2.0-OpenSSH"),
    (Put.from_body, b"\0"),
    (Put.from_body, b"\x03\0/x"),
    (Get.from_body, b""),
    (Plan.from_body, bytes(15)),
    (Plan.from_body, bytes(17)),
    (Have.from_body, bytes(13)),
    (Counts.from_body, bytes(47)),
    (Failure.from_body, b"\0"),
    (Failure.from_body, b"\0\x05abcd"),
    (error_of, b"\0"),
    (lambda body: number_of(Kind.FROM, body), bytes(7)),
    (lambda body: number_of(Kind.TAIL, body), bytes(8)),
    (lambda body: Meta.from_body(Kind.FILE, body), bytes(19)),
    (lambda body: Meta.from_body(Kind.FILE, body), META.pack(0, 0, MAX_SIZE + 1) + b"x"),
    (lambda body: Meta.from_body(Kind.FOLDER, body), META.pack(0, 0, 1) + b"x"),
    (lambda body: Meta.from_body(Kind.LINK, body), META.pack(0, 0, 0) + b"\0\x01x"),
    (lambda body: Meta.from_body(Kind.LINK, body), META.pack(0, 0, 0) + b"\0\x01xa\0b"),
    (lambda body: Meta.from_body(Kind.LINK, body), META.pack(0, 0, 0) + b"\0\x01x" + b"t" * (MAX_PATH_BYTES + 1)),
    (lambda body: Meta.from_body(Kind.LINK, body), META.pack(0, 0, 0) + b"\0\x09x"),
]


@pytest.mark.parametrize(("read", "body"), WRONG)
def test_bodies_that_are_none(read: Callable[[bytes], Any], body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read(body)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"a/b", b"../a", b"a\0", b"x" * 256])
@pytest.mark.parametrize("kind", [Kind.FILE, Kind.FOLDER])
def test_names_that_lead_elsewhere(name: bytes, kind: Kind) -> None:
    with pytest.raises(ProtocolError, match="for a name"):
        check_name(name)
    with pytest.raises(ProtocolError, match="for a name"):
        Meta.from_body(kind, META.pack(0, 0, 0) + name)


@given(st.binary(max_size=60))
def test_any_error_is_one(body: bytes) -> None:
    if len(body) < 5:
        return
    assert isinstance(error_of(body), (HvsockError, OSError))


def test_errors_keep_what_they_are() -> None:
    no_entry = error_of(body_of(error_frame(OSError(errno.ENOENT, "No such file", "/a/b")), Kind.ERROR))
    assert isinstance(no_entry, OSError)
    assert (no_entry.errno, no_entry.strerror) == (errno.ENOENT, "/a/b: No such file")
    missing = error_of(body_of(error_frame(NotFoundError("none")), Kind.ERROR))
    assert type(missing) is NotFoundError

    class OwnError(UsageError):
        pass

    assert type(error_of(body_of(error_frame(OwnError("x")), Kind.ERROR))) is RemoteError
    assert type(error_of(b"\xff\0\0\0\0x")) is RemoteError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(2, "No such file", b"/\xff"), "/\\xff: No such file"),
        (OSError(2, "No such file"), "No such file"),
        (OSError("told so"), "told so"),
        (OSError(), "OSError"),
        (UsageError("no"), "no"),
    ],
)
def test_errors_for_people(error: OSError | HvsockError, text: str) -> None:
    assert why(error) == text
