"""The rules of data exchange: who writes what, and how much."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

assert sys.platform == "linux"

from hvsock.errors import RefusedError, UsageError
from hvsock.services.predefined.kvp.pools import (
    MAX_KEY_BYTES,
    MAX_LABEL_BYTES,
    MAX_SET_BYTES,
    MAX_SET_KEYS,
    MAX_VALUE_BYTES,
    Pool,
    Side,
    check_key,
    check_pairs,
    check_reader,
    check_writer,
    own_pool,
    owner_of,
    pool_of,
)

WRITERS = {
    Pool.EXTERNAL: Side.HOST,
    Pool.GUEST: Side.GUEST,
    Pool.AUTO: Side.GUEST,
    Pool.AUTO_EXTERNAL: Side.HOST,
}


@pytest.mark.parametrize("pool", Pool)
@pytest.mark.parametrize("side", Side)
def test_one_side_writes_and_the_other_acknowledges(pool: Pool, side: Side) -> None:
    allowed, refused = (check_writer, check_reader) if WRITERS[pool] is side else (check_reader, check_writer)
    allowed(pool, side)
    with pytest.raises(RefusedError, match=rf"\b{pool.word}\b"):
        refused(pool, side)


def test_the_numbers_and_words_are_the_originals() -> None:
    assert [(one.value, one.word) for one in Pool] == [
        (0, "external"),
        (1, "guest"),
        (2, "auto"),
        (3, "auto_external"),
    ]
    assert all(pool_of(one.word) is one and pool_of(one.word.upper()) is one for one in Pool)
    with pytest.raises(UsageError, match="there are external, guest, auto, auto_external"):
        pool_of("extern\x1b")
    assert [own_pool(one) for one in (Side.HOST, Side.GUEST)] == [Pool.EXTERNAL, Pool.GUEST]


@given(st.text(max_size=400))
def test_a_key_is_text_without_zeros_and_not_too_long(key: str) -> None:
    good = 0 < len(key.encode("utf-8", "replace")) <= MAX_KEY_BYTES and "\0" not in key
    if good:
        check_key(key)
        return
    with pytest.raises(UsageError):
        check_key(key)


@pytest.mark.parametrize(
    "key", ["", "\0", "a\0b", "\ud800", "x" * (MAX_KEY_BYTES + 1), "é" * (MAX_KEY_BYTES // 2 + 1)]
)
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(UsageError, match="key"):
        check_key(key)
    with pytest.raises(UsageError, match="key"):
        check_pairs({"good": b"", key: b""})


def test_how_much_is_set_at_once() -> None:
    check_pairs({"x" * MAX_KEY_BYTES: bytes(MAX_VALUE_BYTES)})
    check_pairs({str(one): b"" for one in range(MAX_SET_KEYS)})
    quarter = bytes(MAX_SET_BYTES // 4 - 1)
    check_pairs(dict.fromkeys("abcd", quarter))
    wrong: list[tuple[dict[str, bytes], str]] = [
        ({}, "nothing to set"),
        ({str(one): b"" for one in range(MAX_SET_KEYS + 1)}, "257 keys at once"),
        ({"a": bytes(MAX_VALUE_BYTES + 1)}, "copy a file instead"),
        ({**dict.fromkeys("abcd", quarter), "e": b""}, "4194305 bytes at once"),
    ]
    for pairs, text in wrong:
        with pytest.raises(UsageError, match=text):
            check_pairs(pairs)


def test_owners() -> None:
    assert owner_of(Side.HOST, "") == "host"
    assert owner_of(Side.GUEST, "back up") == "guest/back up"
    assert owner_of(Side.GUEST, "x" * MAX_LABEL_BYTES)
    for label in ("x" * (MAX_LABEL_BYTES + 1), "é" * MAX_LABEL_BYTES, "a\nb", "\x1b[2J", "\ud800"):
        with pytest.raises(UsageError, match="is no label"):
            owner_of(Side.GUEST, label)
