"""The words of hybrid sockets: one line that asks, one that answers, and where a guest's connections go (pure).

What is read is cut anywhere, and the payload may follow a line at once. So a :class:`Line` tells how many of the
bytes there belong to it, and whoever looks at bytes before taking them (MSG_PEEK) takes these and no more.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from hvsock.addresses import ServiceId, parse_service_id
from hvsock.constants import VSOCK_PORT_MAX
from hvsock.errors import ProtocolError, UsageError

from .profiles import Answers, Form, Profile

MAX_ANSWER_BYTES: Final = 256
"""Longest answer with its line feed: ``OK`` with a GUID has 40; the rest is for those who refuse in words."""
QUOTED_BYTES: Final = 80
"""How much of a line that was not expected an error repeats."""
FIRST_NUMBER: Final = 1 << 30
"""First of the numbers that connections get, as Firecracker gives them out."""
LAST_NUMBER: Final = (1 << 31) - 1
"""Last of them; then they begin anew."""

_PORT = re.compile(rb"[0-9]{1,10}\Z")
_GUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_PRINTABLE = re.compile(rb"[\t\x20-\x7e]+\r?\Z")


class Line:
    """A line that comes in pieces.

    Args:
        longest: bytes that it may have, with its line feed.

    Attributes:
        text: what came of it; all of it, without the line feed, once :attr:`is_whole`.
        is_whole: whether the line feed was there.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self.text = b""
        self.is_whole = False

    def feed(self, data: bytes) -> int:
        """Add the next bytes; returns how many of them belong to the line. The others are payload.

        Raises:
            ProtocolError: it is longer than it may be.
        """
        if self.is_whole:
            return 0
        room = self._longest - len(self.text)
        end = data.find(b"\n", 0, room)
        if end < 0 and len(data) >= room:
            raise ProtocolError(
                f"a line of more than {self._longest} bytes came: {quoted(self.text + data[:room])}"
            )
        self.is_whole = end >= 0
        self.text += data[:end] if self.is_whole else data
        return end + 1 if self.is_whole else len(data)


class Asked(NamedTuple):
    """A request.

    Attributes:
        service: what is to be connected to.
        by_guid: whether it was asked for by its GUID, and not by a port.
    """

    service: ServiceId
    by_guid: bool


class Accepted(NamedTuple):
    """An answer: connected.

    Attributes:
        number: what followed ``OK``; which number that is, :class:`.profiles.Answers` says.
    """

    number: int | ServiceId


class Refused(NamedTuple):
    """An answer in other words than ``OK``.

    Attributes:
        words: what came.
    """

    words: str


def request_line(service: ServiceId, profile: Profile) -> bytes:
    """What asks for `service`: by its port where it has one.

    Raises:
        UsageError: it has none, and this VMM takes no GUIDs; or there is no handshake.
    """
    if not profile.has_handshake:
        raise UsageError(f"{profile.name} asks for no service: each has a socket of its own")
    if service.port is not None:
        return b"CONNECT %d\n" % service.port
    if not profile.guids:
        raise UsageError(f"{profile.name} takes ports alone, and {service} is none's GUID")
    return b"CONNECT %s\n" % service.encode()


def parse_request(line: bytes, profile: Profile) -> Asked:
    """What a line without its line feed asks for.

    Raises:
        ProtocolError: it is no request, or one by GUID where there are ports alone.
    """
    words = line.split()
    if len(words) != 2 or words[0].upper() != b"CONNECT":
        raise ProtocolError(f"a request is like 'CONNECT 52', not {quoted(line)}")
    found = _number(words[1])
    if found is None:
        what = "a port or a GUID" if profile.guids else "a port"
        raise ProtocolError(f"{quoted(words[1])} is not {what}")
    if isinstance(found, int):
        return Asked(ServiceId.from_port(found), False)
    if not profile.guids:
        raise ProtocolError(f"{profile.name} takes ports alone, not {quoted(words[1])}")
    return Asked(found, True)


def answer_line(asked: Asked, number: int, profile: Profile) -> bytes:
    """What says that `asked` is connected.

    Args:
        asked: the request.
        number: the connection's own, of :func:`next_number`.
        profile: one with a handshake.
    """
    numbered = profile.answers is Answers.NUMBERED
    service = ServiceId.from_port(number) if numbered else asked.service
    return b"OK %s\n" % (str(service).encode() if asked.by_guid else b"%d" % service.data1)


def next_number(number: int) -> int:
    """The number of the connection after that with `number`."""
    return FIRST_NUMBER if number >= LAST_NUMBER else number + 1


def parse_answer(line: bytes) -> Accepted | Refused:
    """What a line without its line feed answers.

    Raises:
        ProtocolError: it is neither ``OK`` with a number nor text.
    """
    words = line.split()
    if words[:1] == [b"OK"]:
        found = _number(words[1]) if len(words) == 2 else None
        if found is None:
            raise ProtocolError(f"an answer is like 'OK 52', not {quoted(line)}")
        return Accepted(found)
    if not words or not _PRINTABLE.match(line):
        raise ProtocolError(f"an answer is like 'OK 52', not {quoted(line)}")
    return Refused(quoted(line))


def listener_paths(base: str, service: ServiceId, profile: Profile) -> tuple[str, ...]:
    """Where a guest's connections to `service` of its host go, in the order in which the VMM tries them.

    Args:
        base: the VMM's own path.
        service: the service.
        profile: the VMM's.

    Raises:
        UsageError: this VMM takes no GUIDs, and the service has no port.
    """
    if not profile.listeners:
        return (base,)
    found = []
    if Form.PORT in profile.listeners and service.port is not None:
        found.append(f"{base}_{service.port}")
    if Form.GUID in profile.listeners:
        found.append(f"{base}_{service}")
    if not found:
        raise UsageError(f"guests of {profile.name} connect to ports alone, and {service} is none's GUID")
    return tuple(found)


def service_of(name: str, base: str, profile: Profile) -> ServiceId | None:
    """The service whose listener has the file name `name`, or None where it is none's.

    Args:
        name: a file's name.
        base: the name of the VMM's own socket.
        profile: the VMM's.
    """
    prefix = f"{base}_"
    service = parse_service_id(name[len(prefix) :]) if name.startswith(prefix) else None
    if service is None or not profile.listeners:
        return None
    try:
        return service if name in listener_paths(base, service, profile) else None
    except UsageError:
        return None


def quoted(data: bytes) -> str:
    """The beginning of a line that was not expected, with escapes for what is not ASCII."""
    more = "..." if len(data) > QUOTED_BYTES else ""
    return repr(data[:QUOTED_BYTES]).removeprefix("b") + more


def _number(word: bytes) -> int | ServiceId | None:
    if _PORT.match(word):
        number = int(word)
        return number if number <= VSOCK_PORT_MAX else None
    return ServiceId(word.decode()) if _GUID.match(word) else None
