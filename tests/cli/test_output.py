"""Tables, and words for numbers."""

from __future__ import annotations

import pytest

from hvsock.cli.output import Column, Table, duration_text, mark, plain, size_text, time_text


def test_a_plain_table_is_aligned_where_characters_are_wide_or_have_no_width() -> None:
    table = Table(
        [Column("NAME"), Column("COUNT", right=True), Column("LAST")],
        [("\u4f60\u597d", "1", "a"), ("e\u0301tude", "1000", "b"), ("", "", "")],
    )
    assert plain(table) == [
        "NAME   COUNT  LAST",
        "\u4f60\u597d       1  a",
        "e\u0301tude   1000  b",
        "",
    ]


def test_a_plain_table_without_rows_is_its_heading() -> None:
    assert plain(Table([Column("A"), Column("B")], [])) == ["A  B"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (256 << 20, "256.0 MiB"),
        (3 << 40, "3.0 TiB"),
        (5 << 50, "5120.0 TiB"),
    ],
)
def test_sizes(number: int, text: str) -> None:
    assert size_text(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3661, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_times_are_iso_8601_in_utc() -> None:
    assert time_text(1_769_860_800.9) == "2026-01-31T12:00:00Z"


def test_marks_are_different() -> None:
    assert mark(True) != mark(False)
