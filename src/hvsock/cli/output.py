"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

F = TypeVar("F", bound=Callable[..., Any])

_GAP: Final = "  "


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: its heading.
        right: whether it is aligned to the right, as numbers are.
        fold: whether its texts may take several lines in a narrow terminal.
    """

    title: str
    right: bool = False
    fold: bool = False


class Table(NamedTuple):
    """A table.

    Attributes:
        columns: its columns.
        rows: the texts, as many in each row as there are columns.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]


def json_option(function: F) -> F:
    """The option `--json` of a command."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def to_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Print `value` as JSON; on one line where asked, for a stream of values."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=None if one_line else 2))


def print_table(table: Table) -> None:
    """Print `table`: drawn by rich on a terminal, in plain aligned columns anywhere else."""
    if to_terminal():
        from rich.console import Console

        Console().print(drawn(table))
    else:
        click.echo("\n".join(plain(table)))


def plain(table: Table) -> list[str]:
    """`table` as lines of text, in columns that are aligned also where characters are wide."""
    lines = [[column.title for column in table.columns], *table.rows]
    widths = [max(_width(line[index]) for line in lines) for index in range(len(table.columns))]
    shown = []
    for line in lines:
        cells = []
        for column, width, text in zip(table.columns, widths, line, strict=True):
            blanks = " " * (width - _width(text))
            cells.append(blanks + text if column.right else text + blanks)
        shown.append(_GAP.join(cells).rstrip())
    return shown


def drawn(table: Table, *, title: str | None = None) -> RenderableType:
    """`table` for rich."""
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title, title_justify="left")
    for column in table.columns:
        made.add_column(
            Text(column.title, style="bold"),
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
        )
    for row in table.rows:
        made.add_row(*[Text(cell) for cell in row])
    return made


def console_for_errors() -> Console:
    """A console on standard error, for progress."""
    from rich.console import Console

    return Console(stderr=True)


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def can_print(text: str) -> bool:
    """Whether standard output can show `text` as it is."""
    encoding = getattr(sys.stdout, "encoding", None) or getattr(sys.__stdout__, "encoding", None)
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def mark(ok: bool, needed: bool = True) -> str:
    """A check mark or a cross, in letters where standard output has none; "-" for what is not there nor needed."""
    if not ok and not needed:
        return "-"
    if can_print("\u2713\u2717"):
        return "\u2713" if ok else "\u2717"
    return "ok" if ok else "NO"


def time_text(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size_text(number: float) -> str:
    """A number of bytes for people, like ``1.5 MiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        del units[0]
    return f"{number:.0f} B" if units[0] == "B" else f"{number:.1f} {units[0]}"


def duration_text(seconds: float) -> str:
    """A duration for people, like ``3 h 20 min``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def joined(texts: Iterable[str], empty: str = "-") -> str:
    """`texts` in one cell."""
    return ", ".join(texts) or empty
