"""What Data elements carry: fragments, of which messages are put together and checked, without input or output.

The layouts are those of [MS-PSRP] 2.2.1 (message) and 2.2.4 (fragment). A message is handed on as one fragment
once all of it is there and harmless: its object is read by an XML parser, so anything that makes such a parser
do more than read elements is refused here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from hvsock.errors import ProtocolError

from .clixml import readable
from .framing import POOL, Role

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Most of all messages together that are not complete yet. PowerShell itself takes objects up to 200 MiB, but an
object takes many times as much memory in Python as on the wire."""
MAX_UNFINISHED: Final = 64
"""Messages that may be incomplete at the same time: a pipeline has one, and a host call that goes ahead of it."""

_FRAGMENT: Final = struct.Struct(">QQBI")
_HEADER: Final = struct.Struct("<II16s16s")
_START, _END = 1, 2
_DESTINATIONS: Final = {Role.SERVER: 1, Role.CLIENT: 2}
"""What a message of either says that it is for: 1 the client, 2 the server."""
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Message:
    """One complete message.

    Attributes:
        object_id: its number.
        kind: its type, a number of [MS-PSRP] 2.2.1.
        pool: the runspace pool that it says it is about.
        target: the pipeline, or zeros for the runspace pool.
        payload: its object, in XML as psrpcore reads it; may be empty.
        fragment: all of it as one fragment.
    """

    object_id: int
    kind: int
    pool: UUID
    target: UUID
    payload: bytes
    fragment: bytes


@dataclass(slots=True)
class _Unfinished:
    parts: list[bytes] = field(default_factory=list)
    size: int = 0


class Reassembly:
    """Puts the messages of one peer together.

    Args:
        role: whose messages they are.
    """

    def __init__(self, role: Role) -> None:
        self._role = role
        self._buffers: dict[tuple[UUID, bool], bytearray] = {}
        self._unfinished: dict[int, _Unfinished] = {}
        self._held = 0

    def receive(self, data: bytes, target: UUID = POOL, prompt_response: bool = False) -> Iterator[Message]:
        """Take the data of one element; gives the messages that are complete by it.

        Raises:
            ProtocolError: it is no fragment, out of its order, too much, or its message is none that a parser may
                see; nothing of the peer can be relied on any more.
        """
        buffer = self._buffers.setdefault((target, prompt_response), bytearray())
        buffer += data
        while len(buffer) >= _FRAGMENT.size:
            object_id, number, flags, length = _FRAGMENT.unpack_from(buffer)
            if length > MAX_MESSAGE_BYTES:
                raise self._too_large()
            if len(buffer) < _FRAGMENT.size + length:
                break
            part = bytes(memoryview(buffer)[_FRAGMENT.size : _FRAGMENT.size + length])
            del buffer[: _FRAGMENT.size + length]
            complete = self._part(object_id, number, flags, part)
            if complete is not None:
                yield message_of(object_id, complete, self._role)
        if not buffer:
            del self._buffers[target, prompt_response]
        elif len(self._buffers) > MAX_UNFINISHED or sum(map(len, self._buffers.values())) > MAX_MESSAGE_BYTES:
            raise self._too_large()

    def forget(self, target: UUID) -> None:
        """Drop what came of fragments of a pipeline that is closed."""
        for prompt_response in (False, True):
            self._buffers.pop((target, prompt_response), None)

    def _part(self, object_id: int, number: int, flags: int, part: bytes) -> bytes | None:
        if flags & _START:
            if number or object_id in self._unfinished:
                raise ProtocolError(f"object {object_id} of the {self._role.value} begins in its midst")
            if len(self._unfinished) >= MAX_UNFINISHED:
                raise ProtocolError(f"the {self._role.value} began more than {MAX_UNFINISHED} objects at once")
            self._unfinished[object_id] = _Unfinished()
        unfinished = self._unfinished.get(object_id)
        if unfinished is None or number != len(unfinished.parts):
            raise ProtocolError(f"fragment {number} of object {object_id} of the {self._role.value} is not due")
        if not part and not flags & _END:
            raise ProtocolError(f"fragment {number} of object {object_id} of the {self._role.value} is empty")
        unfinished.parts.append(part)
        unfinished.size += len(part)
        self._held += len(part)
        if self._held > MAX_MESSAGE_BYTES:
            raise self._too_large()
        if not flags & _END:
            return None
        del self._unfinished[object_id]
        self._held -= unfinished.size
        return b"".join(unfinished.parts)

    def _too_large(self) -> ProtocolError:
        limit = MAX_MESSAGE_BYTES // (1024 * 1024)
        return ProtocolError(f"the {self._role.value} sent an object of more than {limit} MiB; send it in pieces")


def message_of(object_id: int, data: bytes, role: Role) -> Message:
    """A message from its bytes.

    Args:
        object_id: the number of its object.
        data: the message.
        role: who sent it.

    Raises:
        ProtocolError: it is none, or holds what no parser may see.
    """
    if len(data) < _HEADER.size:
        raise ProtocolError(f"the {role.value} sent a message of {len(data)} bytes, which is no header even")
    destination, kind, pool, target = _HEADER.unpack_from(data)
    if destination != _DESTINATIONS[role]:
        raise ProtocolError(f"the {role.value} sent a message for destination {destination}")
    payload = data[_HEADER.size :].removeprefix(_BYTE_ORDER_MARK)
    check_xml(payload, role)
    payload = readable(payload)
    size = _HEADER.size + len(payload)
    fragment = b"".join((_FRAGMENT.pack(object_id, 0, _START | _END, size), data[: _HEADER.size], payload))
    return Message(object_id, kind, UUID(bytes_le=pool), UUID(bytes_le=target), payload, fragment)


def check_xml(payload: bytes, role: Role) -> None:
    """Refuse what makes a parser of XML do more than read elements.

    PowerShell writes elements and text alone. Declarations could define entities or another encoding, in which
    such a definition would not be seen here; so could NULs, by which a parser finds UTF-16 out.

    Raises:
        ProtocolError: there is something else.
    """
    if not payload:
        return
    if not payload.startswith(b"<") or any(one in payload for one in (b"<!", b"<?", b"\0")):
        raise ProtocolError(f"the {role.value} sent an object with XML declarations, which PowerShell never does")
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(f"the {role.value} sent an object that is not UTF-8") from None
