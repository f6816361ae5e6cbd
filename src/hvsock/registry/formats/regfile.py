r"""The registry as a ``.reg`` file, as regedit of Windows writes and takes it.

Written: "Windows Registry Editor Version 5.00", UTF-16LE with a byte order mark, lines ended by CR LF, one
key with the value ElementName for each service. Read: what regedit takes, in any of its encodings. A file
that came from elsewhere may say anything, so what is not about services is passed over, what is about
services and cannot be meant is refused with its line, and nothing takes more than linear time.

Source: "How to add, modify, or delete registry subkeys and values by using a .reg file" (Microsoft support).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from hvsock.errors import DuplicateError, UsageError
from hvsock.registry.entries import (
    MAX_SERVICES,
    ServiceEntry,
    ServiceName,
    check_service_id,
    check_service_name,
    quoted,
)

from . import ELEMENT_NAME, GUEST_COMMUNICATION_SERVICES

HEADER: Final = "Windows Registry Editor Version 5.00"
OLD_HEADER: Final = "REGEDIT4"
MAX_REG_BYTES: Final = 64 << 20
"""Longest file that is read: a full registry with the longest names takes a third."""

_KEY: Final = rf"HKEY_LOCAL_MACHINE\{GUEST_COMMUNICATION_SERVICES}"
_KEY_FOLDED: Final = _KEY.lower()

_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_NAME: Final = re.compile(r'"((?:[^"\\\r\n]|\\[^\r\n])*+)"')
_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL)  # lines and all, as regedit writes them
_REST: Final = re.compile(r"[ \t]*(?:;[^\r\n]*)?(?=[\r\n]|\Z)")
_HEX: Final = re.compile(r"hex(?:\(([0-9a-f]{1,8})\))?:", re.IGNORECASE)
_CONTINUED: Final = re.compile(r"\\[ \t]*(?:;[^\r\n]*)?(?:\r\n|\r|\n)[ \t]*")
_HEX_LINE: Final = re.compile(r"[^\r\n;\\]*+")
_HEX_BYTES: Final = re.compile(r"(?:[0-9a-f]{1,2}(?:,[0-9a-f]{1,2})*+)?,?\Z", re.IGNORECASE)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)


class RegFile(NamedTuple):
    """What a ``.reg`` file says about services.

    Attributes:
        services: the services, in the file's order.
        notes: what was passed over, one line each; empty when nothing was.
    """

    services: tuple[ServiceName, ...]
    notes: tuple[str, ...]


def dump_reg(services: Iterable[ServiceEntry], *, inbox: bool = False) -> bytes:
    """The file that registers `services` on Windows.

    Args:
        services: what to register, in this order.
        inbox: whether in-box services are among it; of those, every Windows host has the VM Session Services.
    """
    lines = [HEADER, ""]
    for entry in services:
        if inbox or not entry.inbox:
            name = entry.name.replace("\\", "\\\\").replace('"', '\\"')
            lines += [rf"[{_KEY}\{entry.id}]", f'"{ELEMENT_NAME}"="{name}"', ""]
    return codecs.BOM_UTF16_LE + "\r\n".join([*lines, ""]).encode("utf-16-le")


def load_reg(data: bytes) -> RegFile:
    """The services in a ``.reg`` file.

    Args:
        data: the file, of version 5.00 or REGEDIT4: UTF-16 (either order), UTF-8 with a byte order mark, or
            ASCII.

    Raises:
        UsageError: no ``.reg`` file, or one that asks for what an import does not do; one line says where.
        DuplicateError: a service is there twice.
    """
    if len(data) > MAX_REG_BYTES:
        raise UsageError(f"the file has {len(data)} bytes; at most {MAX_REG_BYTES} are read")
    return _Reader(_decoded(data)).read()


def _decoded(data: bytes) -> str:
    mark, encoding = _encoding(data)
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + len(_LINE_END.findall(data[len(mark) :][: error.start].decode(encoding, "replace")))
        hint = "; save the file as UTF-16 or as UTF-8 with a byte order mark" if encoding == "ascii" else ""
        raise UsageError(f"line {line}: not {encoding.upper()}{hint}") from None


def _encoding(data: bytes) -> tuple[bytes, str]:
    for mark, encoding in (
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF8, "utf-8"),
    ):
        if data.startswith(mark):
            return mark, encoding
    return b"", "utf-16-le" if data[1:2] == b"\0" else "ascii"


class _Reader:
    """One pass over the text of a file."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._old = False
        self._services: dict[str, ServiceName] = {}
        self._service: str | None = None  # the GUID whose key the following values belong to
        self._service_line = 0
        self._other_keys = 0
        self._other_values = 0

    def read(self) -> RegFile:
        self._read_header()
        while self._at < len(self._text):
            first = self._text[self._at]
            if first in " \t\r\n":
                self._at += 1
            elif first == ";":
                self._take_line()
            elif first == "[":
                self._read_key()
            else:
                self._read_value()
        self._end_service()
        notes = []
        if self._other_keys:
            notes.append(f"passed over {_count(self._other_keys, 'key')} that is no key of a service")
        if self._other_values:
            notes.append(f"passed over {_count(self._other_values, 'value')} other than {ELEMENT_NAME}")
        return RegFile(tuple(self._services.values()), tuple(notes))

    def _read_header(self) -> None:
        header = self._take_line().strip()
        if header not in (HEADER, OLD_HEADER):
            raise UsageError(f'line 1: not a .reg file: it begins with {quoted(header)}, not with "{HEADER}"')
        self._old = header == OLD_HEADER

    def _read_key(self) -> None:
        self._end_service()
        start = self._at
        line = self._take_line()
        end = line.rfind("]")
        if end < 0:
            raise self._error(f"a key without its closing bracket: {quoted(line)}", start)
        folded = line[1:end].strip().lower()
        delete = folded.startswith("-")
        folded = folded.removeprefix("-").strip()
        if folded.startswith("hklm\\"):
            folded = folded.replace("hklm", "hkey_local_machine", 1)
        inside = folded == _KEY_FOLDED or folded.startswith(_KEY_FOLDED + "\\")
        if delete and (inside or _KEY_FOLDED.startswith(folded + "\\")):
            raise self._error("deletes keys of services, which an import does not do: unregister them", start)
        name = folded[len(_KEY_FOLDED) + 1 :]
        if not inside or not name or "\\" in name:
            self._other_keys += folded != _KEY_FOLDED
            return
        if name.startswith("{"):
            raise self._error(f"{quoted(name)} is in braces; the keys of services are bare GUIDs", start)
        try:
            self._service = check_service_id(name)
        except UsageError as error:
            raise self._error(str(error), start) from None
        if self._service in self._services:
            raise DuplicateError(f"line {self._line_of(start)}: {self._service} is there twice")
        if len(self._services) >= MAX_SERVICES:
            raise self._error(f"more than {MAX_SERVICES} services, the most that a registry holds", start)
        self._service_line = self._line_of(start)

    def _end_service(self) -> None:
        if self._service is not None and self._service not in self._services:
            raise UsageError(f"line {self._service_line}: {self._service} has no {ELEMENT_NAME}")
        self._service = None

    def _read_value(self) -> None:
        start = self._at
        if self._text[start] == "@":
            name: str | None = "@"
            self._at += 1
        else:
            name = self._take(_NAME)
        if name is None or not self._take_equals():
            if self._service is not None:
                raise self._error(f"not understood: {quoted(self._take_line())}", start)
            self._take_line()  # as regedit does
            return
        mine = self._service is not None and name.lower() == ELEMENT_NAME.lower()
        if not mine:
            self._other_values += self._service is not None
            self._skip_data(start)
            return
        text = self._take_text(start)
        if self._service in self._services:
            raise DuplicateError(f"line {self._line_of(start)}: a second {ELEMENT_NAME} of {self._service}")
        try:
            service_id = check_service_id(str(self._service))
            self._services[service_id] = ServiceName(service_id, check_service_name(text))
        except UsageError as error:
            raise self._error(str(error), start) from None

    def _take_text(self, start: int) -> str:
        """The text that is an ElementName's data, whichever way it is written."""
        if self._text[self._at : self._at + 1] == '"':
            return self._unescaped(self._take_string(start), start)
        kind = _HEX.match(self._text, self._at)
        if kind is None or kind[1] is None or int(kind[1], 16) != 1:
            raise self._error(f"{ELEMENT_NAME} is a string (REG_SZ), nothing else", start)
        self._at = kind.end()
        digits = self._take_hex()
        if not _HEX_BYTES.match(digits):
            raise self._error("not bytes in hexadecimal", start)
        data = bytes(int(byte, 16) for byte in digits.split(",") if byte)
        try:
            return data.decode("ascii" if self._old else "utf-16-le").removesuffix("\0")
        except UnicodeDecodeError:
            raise self._error(f"not {'ASCII' if self._old else 'UTF-16'} text", start) from None

    def _unescaped(self, raw: str, start: int) -> str:
        for escape in _ESCAPE.finditer(raw):
            if escape[1] not in '\\"':
                raise self._error(f"unknown escape {quoted(escape[0])}", start)
        return _ESCAPE.sub(r"\1", raw)

    def _take_string(self, start: int) -> str:
        """The inside of the string here, escapes and all, with nothing but a comment behind it."""
        raw = self._take(_STRING)
        rest = None if raw is None else _REST.match(self._text, self._at)
        if raw is None or rest is None:
            raise self._error("the string is not ended where its line is", start)
        self._at = rest.end()
        return raw

    def _take(self, pattern: re.Pattern[str]) -> str | None:
        """What the pattern finds inside of quotes here; None when it does not match, and nothing is taken."""
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[1]

    def _take_equals(self) -> bool:
        self._skip_blanks()
        if self._text[self._at : self._at + 1] != "=":
            return False
        self._at += 1
        self._skip_blanks()
        return True

    def _take_hex(self) -> str:
        """Bytes in hexadecimal, joined where a backslash at the line's end continues them."""
        parts = []
        while True:
            line = _HEX_LINE.match(self._text, self._at)
            assert line is not None  # it matches the empty text too
            parts.append("".join(line[0].split()))
            continued = _CONTINUED.match(self._text, line.end())
            if continued is None:
                self._at = line.end()
                self._take_line()
                return "".join(parts)
            self._at = continued.end()

    def _skip_data(self, start: int) -> None:
        if self._text[self._at : self._at + 1] == '"':
            self._take_string(start)
        else:
            self._take_hex()

    def _skip_blanks(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1

    def _take_line(self) -> str:
        end = _LINE_END.search(self._text, self._at)
        line = self._text[self._at : end.start() if end else len(self._text)]
        self._at = end.end() if end else len(self._text)
        return line

    def _line_of(self, position: int) -> int:
        self._line += len(_LINE_END.findall(self._text, self._counted, position))
        self._counted = position
        return self._line

    def _error(self, why: str, position: int) -> UsageError:
        return UsageError(f"line {self._line_of(position)}: {why}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
