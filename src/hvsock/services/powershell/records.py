"""What a pipeline gives: records of its streams, objects of PowerShell as Python values, and how it failed.

Nothing here needs psrpcore; the objects are made in :mod:`.values`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from hvsock.errors import HvsockError

MAX_TEXT_CHARACTERS: Final = 1024 * 1024
"""Most characters that the text of one object has: an object may name a part of itself again and again."""
MAX_JSON_VALUES: Final = 1_000_000
"""Most values that one object has as JSON, for the same reason."""


class Stream(Enum):
    """The streams of a pipeline."""

    OUTPUT = "output"
    ERROR = "error"
    WARNING = "warning"
    VERBOSE = "verbose"
    DEBUG = "debug"
    INFORMATION = "information"
    PROGRESS = "progress"


class State(Enum):
    """How a pipeline is."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"


class Secret(str):
    """A text that is encrypted on its way, a SecureString of PowerShell's; it does not show itself in logs."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret('...')"


class RemoteObject(Mapping[str, Any]):
    """An object of PowerShell's with properties; a mapping of them, whose names may be written in any case.

    Args:
        properties: the properties, in their order.
        types: the names of its .NET types, the most special first, as the guest has them.
        text: what it says of itself; "" where it says nothing.
    """

    __slots__ = ("_names", "_properties", "text", "types")

    def __init__(self, properties: Mapping[str, Any], types: Sequence[str] = (), text: str = "") -> None:
        self._properties = dict(properties)
        self._names = {name.casefold(): name for name in self._properties}
        self.types = tuple(types)
        self.text = text

    def __getitem__(self, name: str) -> Any:
        if name in self._properties:
            return self._properties[name]
        found = self._names.get(name.casefold()) if isinstance(name, str) else None
        if found is None:
            raise KeyError(name)
        return self._properties[found]

    def __iter__(self) -> Iterator[str]:
        return iter(self._properties)

    def __len__(self) -> int:
        return len(self._properties)

    def __str__(self) -> str:
        return text_of(self)

    def __repr__(self) -> str:
        kind = self.types[0] if self.types else "PSObject"
        return f"<{kind} {', '.join(list(self)[:8])}>"


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """An error record.

    Attributes:
        message: what it says.
        category: its category, like "ObjectNotFound".
        error_id: its FullyQualifiedErrorId.
        exception: the .NET type of its exception; "" where it is not told.
        target: the text of the object that it is about; "" for none.
        activity: the command that told it; "" where it is not told.
        trace: where in the script it came about; "" where it is not told.
    """

    message: str
    category: str = "NotSpecified"
    error_id: str = ""
    exception: str = ""
    target: str = ""
    activity: str = ""
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.activity}: {self.message}" if self.activity else self.message


@dataclass(frozen=True, slots=True)
class Information:
    """A record of the information stream.

    Attributes:
        data: what it tells, usually text.
        source: the command or script that told it.
        tags: its tags; Write-Host has PSHOST.
    """

    data: Any
    source: str = ""
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return text_of(self.data)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far something is.

    Attributes:
        activity: what is done.
        status: how it is.
        percent: how much of it is done; negative where that is not known.
        activity_id: tells one activity from others.
        parent_id: the activity that it is part of; negative for none.
        operation: what is done just now; "" where it is not told.
        seconds_left: how long it will take; negative where that is not known.
        done: whether it is the last of its activity.
    """

    activity: str
    status: str = ""
    percent: int = -1
    activity_id: int = 0
    parent_id: int = -1
    operation: str = ""
    seconds_left: int = -1
    done: bool = False

    def __str__(self) -> str:
        percent = f" {self.percent} %" if self.percent >= 0 else ""
        return f"{self.activity}: {self.status}{percent}"


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that a pipeline wrote.

    Attributes:
        stream: where.
        value: with OUTPUT, a Python value, see :func:`hvsock.services.powershell.values.to_python`; with ERROR an
            :class:`ErrorDetail`, with INFORMATION an :class:`Information`, with PROGRESS a :class:`Progress`, with
            the others a str.
    """

    stream: Stream
    value: Any

    @property
    def text(self) -> str:
        """It as text."""
        return text_of(self.value)


class ScriptError(HvsockError):
    """A script failed, by a terminating error of its own.

    Args:
        detail: the error.
    """

    def __init__(self, detail: ErrorDetail) -> None:
        super().__init__(one_line(str(detail)))
        self.detail = detail
        self.result: Result | None = None
        """What was written before it, where the whole of a pipeline was asked for."""


@dataclass(slots=True)
class Result:
    """All that a pipeline wrote.

    Attributes:
        state: COMPLETED, or STOPPED where it was stopped.
        output: its output.
        records: what it wrote to the other streams but progress, in their order.
    """

    state: State = State.RUNNING
    output: list[Any] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def of(self, stream: Stream) -> list[Any]:
        """The values of one stream."""
        return [one.value for one in self.records if one.stream is stream]

    @property
    def errors(self) -> list[ErrorDetail]:
        """The errors that did not end it."""
        return self.of(Stream.ERROR)

    def check(self) -> Result:
        """This very result, where it has no errors.

        Raises:
            ScriptError: the first error.
        """
        for error in self.errors:
            raise ScriptError(error)
        return self


def one_line(text: str) -> str:
    """`text` on one line, with nothing that a terminal would take for an order."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


class _FullError(Exception):
    """A text is as long as it may be."""


class _Writer:
    """Text that grows up to MAX_TEXT_CHARACTERS."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = MAX_TEXT_CHARACTERS

    def add(self, text: str) -> None:
        self._parts.append(text[: self._left])
        self._left -= len(text)
        if self._left < 0:
            self._parts.append("...")
            raise _FullError

    def text(self) -> str:
        return "".join(self._parts)


def text_of(value: Any) -> str:
    """A value as text: one line for a simple value, `Name : value` lines for an object with properties.

    Nothing is done about characters that a terminal takes for orders; see :func:`one_line`.
    """
    if isinstance(value, str):
        return str(value) if type(value) is not Secret else "System.Security.SecureString"
    writer = _Writer()
    try:
        if isinstance(value, Mapping):
            _write_properties(writer, value)
        else:
            _write_inline(writer, value)
    except _FullError:
        pass
    return writer.text()


def _write_properties(writer: _Writer, value: Mapping[Any, Any]) -> None:
    if isinstance(value, RemoteObject) and value.text and not len(value):
        writer.add(value.text)
        return
    width = max((len(_word(name)) for name in value), default=0)
    first = True
    for name, one in value.items():
        writer.add(f"{'' if first else chr(10)}{_word(name):{width}} : ")
        _write_inline(writer, one)
        first = False


def _write_inline(writer: _Writer, value: Any) -> None:
    if isinstance(value, RemoteObject) and value.text:
        writer.add(value.text)
    elif isinstance(value, Mapping):
        writer.add("@{")
        for number, (name, one) in enumerate(value.items()):
            writer.add(f"{'; ' if number else ''}{_word(name)}=")
            _write_inline(writer, one)
        writer.add("}")
    elif isinstance(value, list | tuple):
        writer.add("{")
        for number, one in enumerate(value):
            writer.add(", " if number else "")
            _write_inline(writer, one)
        writer.add("}")
    else:
        writer.add(_word(value))


def _word(value: Any) -> str:
    match value:
        case None:
            return ""
        case Secret():
            return "System.Security.SecureString"
        case datetime() | date():
            return value.isoformat()
        case bytes():
            return " ".join(map(str, value))
        case _:
            return str(value)


def to_json(value: Any) -> Any:
    """A value in terms of JSON: bytes in base64, times in ISO 8601, durations in seconds, secrets not at all.

    Raises:
        HvsockError: it has more than MAX_JSON_VALUES values.
    """
    left = MAX_JSON_VALUES

    def convert(one: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise HvsockError(f"an object has more than {MAX_JSON_VALUES} values, which is too much for JSON")
        match one:
            case None | bool() | int():
                return one
            case float():
                return one if one - one == 0 else str(one)  # JSON has neither infinities nor NaN
            case Secret():
                return None
            case str():
                return str(one)
            case ErrorDetail() | Information() | Progress():
                return {name: convert(getattr(one, name)) for name in one.__slots__}
            case Mapping():
                return {_word(name): convert(part) for name, part in one.items()}
            case list() | tuple():
                return [convert(part) for part in one]
            case bytes():
                return base64.b64encode(one).decode()
            case datetime():
                return one.isoformat()
            case timedelta():
                return one.total_seconds()
            case UUID() | Decimal():
                return str(one)
            case _:
                return str(one)

    return convert(value)
