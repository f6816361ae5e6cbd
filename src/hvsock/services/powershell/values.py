"""Values of PowerShell as values of Python, and back."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import psrpcore
import psrpcore.types as ps

from hvsock.errors import ProtocolError, UsageError

from .records import ErrorDetail, Information, Progress, RemoteObject, Secret

MAX_DEPTH: Final = 24
"""Levels of an object that are taken; what is deeper is taken as its text. PowerShell itself sends some two."""
FEW_VALUES: Final = 10_000
"""So many values any object may have; more only as far as its XML has bytes for them. An object may name a part of
itself again and again, and so on in that."""
_INT64: Final = range(-(2**63), 2**64)


def to_python(value: Any, size: int = 0) -> Any:
    """A value that psrpcore has read as a plain value.

    ============================================  ==========================================
    PowerShell                                    Python
    ============================================  ==========================================
    $null, bool, integers, float and double       None, bool, int, float
    string, char, version, URI, XML, script       str
    decimal, GUID, byte[]                         Decimal, UUID, bytes
    DateTime, TimeSpan                            datetime, timedelta (to the microsecond)
    SecureString                                  :class:`.records.Secret`
    arrays, lists, queues, stacks                 list
    hashtables                                    dict
    an enum                                       its name, as str
    everything else                               :class:`.records.RemoteObject`
    ============================================  ==========================================

    Args:
        value: it.
        size: the bytes of its XML.

    Raises:
        ProtocolError: it has more values than its XML has room for, or is no value.
    """
    return _Reader(max(size, FEW_VALUES)).read(value, 0)


class _Reader:
    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def read(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ProtocolError(f"the server sent an object that unfolds to more than {self._most} values")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, ps.PSSecureString):
            return Secret(value.decrypt())
        if _is_enum(value):
            return _enum_name(value)
        if isinstance(value, ps.PSChar):
            return str(value)
        for kind, convert in _PLAIN:
            if isinstance(value, kind):
                return convert(value)
        if depth >= MAX_DEPTH:
            return _own_text(value)
        if isinstance(value, ps.PSDictBase):
            return {self._key(key): self.read(one, depth + 1) for key, one in value.items()}
        if isinstance(value, ps.PSQueueBase):
            return [self.read(one, depth + 1) for one in list(value.queue)]
        if isinstance(value, list):
            return [self.read(one, depth + 1) for one in value]
        if isinstance(value, ps.PSObject):
            return self._object(value, depth)
        raise ProtocolError(f"the server sent a {type(value).__name__}, which is no value")

    def _key(self, key: Any) -> Any:
        made = self.read(key, MAX_DEPTH)
        return made if made.__hash__ is not None else str(made)

    def _object(self, value: ps.PSObject, depth: int) -> RemoteObject:
        meta = value.PSObject
        properties = {}
        for one in (*meta.adapted_properties, *meta.extended_properties):
            properties[str(one.name)] = self.read(one.get_value(value), depth + 1)
        types = [str(name).removeprefix("Deserialized.") for name in meta.type_names]
        return RemoteObject(properties, types, str(meta.to_string or ""))


_PLAIN: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (int, int),
    (float, float),
    (decimal.Decimal, decimal.Decimal),
    (bytes, bytes),
    (uuid.UUID, lambda value: uuid.UUID(int=value.int)),
    (
        dt.datetime,
        lambda value: dt.datetime(
            *(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond),
            tzinfo=value.tzinfo,
        ),
    ),
    (dt.timedelta, lambda value: _whole_microseconds(value)),
    (str, str),
    (ps.PSVersion, str),
)
"""Classes of values, and what makes a plain one of each."""


def _whole_microseconds(value: ps.PSDuration) -> dt.timedelta:
    """A duration without what Python's has no room for: towards zero, as it is counted from below."""
    up = 1 if value < dt.timedelta() and getattr(value, "nanoseconds", 0) else 0
    return dt.timedelta(value.days, value.seconds, value.microseconds + up)


def _is_enum(value: Any) -> bool:
    names = value.PSObject.type_names if isinstance(value, ps.PSObject) else ()
    return any(name.removeprefix("Deserialized.") == "System.Enum" for name in names)


def _enum_name(value: Any) -> str:
    return str(value.PSObject.to_string or getattr(value, "name", None) or int(value))


def _own_text(value: Any) -> str:
    """What an object says of itself, without looking into it."""
    meta = getattr(value, "PSObject", None)
    names = getattr(meta, "type_names", None) or [type(value).__name__]
    text = getattr(meta, "_to_string", None)  # the property itself may be as deep as the object
    return str(text or names[0])


def to_powershell(value: Any, depth: int = 0) -> Any:
    """A value of Python for psrpcore to write; what :func:`to_python` gives is taken back.

    Raises:
        UsageError: there is no such value in PowerShell.
    """
    if depth > MAX_DEPTH:
        raise UsageError(f"a value for PowerShell is more than {MAX_DEPTH} levels deep, or holds itself")
    match value:
        case ps.PSObject() | None | bool() | bytes() | uuid.UUID() | dt.datetime():
            return value
        case dt.timedelta():
            return _duration(value)
        case float():
            if value != value:
                raise UsageError("a NaN cannot be sent to PowerShell")
            return ps.PSDouble(value)
        case decimal.Decimal():
            if not value.is_finite():
                raise UsageError(f"PowerShell has no decimal {value}")
            return ps.PSDecimal(format(value, "f"))
        case Secret():
            return ps.PSSecureString(str(value))
        case str():
            return str(value)
        case int():
            if value not in _INT64:
                raise UsageError(f"{value} is too large a number for PowerShell")
            return _integer(value)
        case RemoteObject():
            made = ps.PSCustomObject()
            for name, one in value.items():
                ps.add_note_property(made, name, to_powershell(one, depth + 1), force=True)
            return made
        case Mapping():
            return {to_powershell(key, depth + 1): to_powershell(one, depth + 1) for key, one in value.items()}
        case list() | tuple() | set() | frozenset():
            return [to_powershell(one, depth + 1) for one in value]
        case _:
            raise UsageError(f"PowerShell has no value for a {type(value).__name__}; give text, numbers or lists")


def _integer(value: int) -> Any:
    if -(2**31) <= value < 2**31:
        return ps.PSInt(value)
    return ps.PSInt64(value) if value < 2**63 else ps.PSUInt64(value)


def _duration(value: dt.timedelta) -> ps.PSDuration:
    """A duration for psrpcore 0.3.1, which writes 30 s as 3: it takes off zeros before the point, too.

    A tenth of a microsecond more gives it something to stop at, and is less than Python's own durations have.
    """
    days, seconds, microseconds = abs(value).days, abs(value).seconds, abs(value).microseconds
    tick = 100 if not microseconds and seconds % 60 and not seconds % 10 else 0
    nanoseconds = (days * 86400 + seconds) * 1_000_000_000 + microseconds * 1000 + tick
    return ps.PSDuration(nanoseconds=nanoseconds if value >= dt.timedelta() else -nanoseconds)


def has_secret(value: Any, depth: int = 0) -> bool:
    """Whether there is a secret in a value of Python, for which both sides need a key."""
    if depth > MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return any(has_secret(one, depth + 1) for one in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(has_secret(one, depth + 1) for one in value)
    return isinstance(value, Secret)


def error_detail(record: Any) -> ErrorDetail:
    """An error record that psrpcore has read."""
    if record is None:
        return ErrorDetail("it does not say why")
    exception = record.Exception
    types = exception.PSObject.type_names if isinstance(exception, ps.PSObject) else []
    category = record.CategoryInfo
    target = record.TargetObject
    return ErrorDetail(
        message=_message(record, exception),
        category=_enum_name(category.Category),
        error_id=str(record.FullyQualifiedErrorId or ""),
        exception=str(types[0]).removeprefix("Deserialized.") if types else "",
        target="" if target is None else _own_text(target) if not isinstance(target, str) else str(target),
        activity=str(category.Activity or ""),
        trace=str(record.ScriptStackTrace or ""),
    )


def _message(record: Any, exception: Any) -> str:
    if record.ErrorDetails is not None and record.ErrorDetails.Message:
        return str(record.ErrorDetails.Message)
    return str(getattr(exception, "Message", None) or _own_text(exception))


def information(event: psrpcore.InformationRecordEvent, size: int = 0) -> Information:
    """A record of the information stream that psrpcore has read."""
    record: Any = event.record
    if not hasattr(record, "MessageData"):  # as the specification has it, with the properties of the type itself
        record = event._ps_object
    data = record.MessageData
    if isinstance(data, ps.PSObject) and _is_host_message(data):
        data = getattr(data, "Message", None)
    tags = [str(one) for one in record.Tags or ()]
    return Information(to_python(data, size), str(record.Source or ""), tuple(tags))


def _is_host_message(data: Any) -> bool:
    names = (str(name).removeprefix("Deserialized.") for name in data.PSObject.type_names)
    return "System.Management.Automation.HostInformationMessage" in names


def progress(record: Any) -> Progress:
    """A progress record that psrpcore has read."""
    return Progress(
        activity=str(record.Activity or ""),
        status=str(record.StatusDescription or ""),
        percent=int(record.PercentComplete),
        activity_id=int(record.ActivityId),
        parent_id=int(record.ParentActivityId),
        operation=str(record.CurrentOperation or ""),
        seconds_left=int(record.SecondsRemaining),
        done=record.RecordType is ps.ProgressRecordType.Completed,
    )
