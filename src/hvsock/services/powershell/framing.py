"""How PSRP goes over a stream: one element a line, both roles, without input or output.

::

    <Data Stream='Default' PSGuid='00000000-0000-0000-0000-000000000000'>BASE64</Data>
    <DataAck PSGuid='00000000-0000-0000-0000-000000000000' />

and so on for Command, Close and Signal. The GUID of zeros is the runspace pool, any other is a pipeline. The
client asks and the server acknowledges, never the other way round; only Data goes both ways. An error of the
server's is a line of text behind one of :data:`ERROR_PREFIXES`. An empty line, or the end of the stream, ends
what the client has to say.

Lines are read by one regular expression: an XML parser would do more for a peer than these lines need.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final
from uuid import UUID

from hvsock.errors import ProtocolError

MAX_LINE_BYTES: Final = 1024 * 1024
"""Longest line without its end. PowerShell sends 32 KiB at once, which is 44 KiB here; other servers send up to
500 KiB, as they do over HTTP."""
MAX_FRAGMENT_BYTES: Final = 32 * 1024
"""Most that we send in one Data element: the size that PowerShell itself uses."""
ERROR_PREFIXES: Final = (b"__HyperVSocketError__:", b"__NamedPipeError__:")
"""What lines begin with that tell of an error of the server's: over Hyper-V sockets, and over pipes and SSH."""
SHOWN_CHARACTERS: Final = 200
"""How much of a peer's line is shown in an error."""

POOL: Final = UUID(int=0)
"""The target that is the runspace pool itself."""

_GUID: Final = rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_PS_GUID: Final = rb"PSGuid=['\"](?P<guid>" + _GUID + rb")['\"]"
_PLAIN: Final = re.compile(
    rb"<(?P<kind>(?:Data|Command|Close|Signal)Ack|Command|Close|Signal) {1,4}" + _PS_GUID + rb" {0,4}/>"
)
_DATA: Final = re.compile(
    rb"<Data {1,4}Stream=['\"](?P<stream>Default|PromptResponse)['\"] {1,4}"
    + _PS_GUID
    + rb" {0,4}>(?P<data>[A-Za-z0-9+/=]*)</Data>"
)
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class Role(Enum):
    """Whose lines are read."""

    CLIENT = "client"
    SERVER = "server"


class Kind(Enum):
    """What an element is for; the values are its names on the wire."""

    DATA = "Data"
    COMMAND = "Command"
    CLOSE = "Close"
    SIGNAL = "Signal"
    DATA_ACK = "DataAck"
    COMMAND_ACK = "CommandAck"
    CLOSE_ACK = "CloseAck"
    SIGNAL_ACK = "SignalAck"
    ERROR = "error"
    END = "end"

    @property
    def ack(self) -> Kind:
        """What acknowledges it.

        Raises:
            ValueError: nothing does.
        """
        return Kind(f"{self.value}Ack")


_FROM_SERVER: Final = frozenset(
    (Kind.DATA, Kind.DATA_ACK, Kind.COMMAND_ACK, Kind.CLOSE_ACK, Kind.SIGNAL_ACK, Kind.ERROR)
)
_FROM_CLIENT: Final = frozenset((Kind.DATA, Kind.COMMAND, Kind.CLOSE, Kind.SIGNAL, Kind.END))


@dataclass(frozen=True, slots=True)
class Element:
    """One line.

    Attributes:
        kind: what it is for. ERROR is a server's error, END an empty line of a client's.
        target: the pipeline, or :data:`POOL`.
        data: with DATA, fragments of messages; with ERROR, the text in UTF-8.
        prompt_response: with DATA, whether it goes ahead of what waits: host calls and their answers.
    """

    kind: Kind
    target: UUID = POOL
    data: bytes = b""
    prompt_response: bool = False

    def line(self) -> bytes:
        """It as it goes over the stream, with the end of the line."""
        if self.kind is Kind.END:
            return b"\n"
        if self.kind is Kind.ERROR:
            return ERROR_PREFIXES[0] + b" ".join(self.data.splitlines()) + b"\n"
        if self.kind is Kind.DATA:
            stream = b"PromptResponse" if self.prompt_response else b"Default"
            encoded = base64.b64encode(self.data)
            return b"<Data Stream='%b' PSGuid='%b'>%b</Data>\n" % (stream, str(self.target).encode(), encoded)
        return b"<%b PSGuid='%b' />\n" % (self.kind.value.encode(), str(self.target).encode())

    @property
    def text(self) -> str:
        """The text of an ERROR, with nothing that a terminal would take for an order."""
        return printable(self.data)


class Decoder:
    """Takes lines of one peer apart, whatever the cuts of the stream.

    Args:
        role: whose lines they are.
    """

    def __init__(self, role: Role) -> None:
        self._role = role
        self._buffer = bytearray()
        self._looked_at = 0
        self._first = True
        self._ended = False

    def receive(self, data: bytes) -> None:
        """Take what came; nothing of it is looked at before :meth:`elements` is asked."""
        self._buffer += data

    def receive_end(self) -> None:
        """The stream has ended."""
        self._ended = True

    def elements(self) -> Iterator[Element]:
        """The elements that are complete, in their order.

        Raises:
            ProtocolError: what comes next is none of this peer's; the connection is of no use any more. Or the
                stream ended in the midst of a line.
        """
        while (line := self._line()) is not None:
            element = self._element(line)
            if element is not None:
                yield element

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._looked_at, MAX_LINE_BYTES + 1)
        if end < 0:
            self._looked_at = min(len(self._buffer), MAX_LINE_BYTES + 1)
            if self._looked_at > MAX_LINE_BYTES:
                raise ProtocolError(f"the {self._peer} sent a line of more than {MAX_LINE_BYTES} bytes")
            if self._ended and self._buffer:
                raise ProtocolError(f"the connection ended in the midst of a line: {printable(self._buffer)}")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._looked_at = 0
        if self._first:
            self._first = False
            if self._role is Role.SERVER:
                line = line.lstrip(b"\0")  # they may trail its last answer of the handshake
            line = line.removeprefix(_BYTE_ORDER_MARK)
        return line.removesuffix(b"\r")

    def _element(self, line: bytes) -> Element | None:
        element = self._parsed(line)
        if element is None:
            return None
        allowed = _FROM_CLIENT if self._role is Role.CLIENT else _FROM_SERVER
        if element.kind not in allowed:
            raise ProtocolError(f"the {self._peer} sent {element.kind.value}, which is not for it to send")
        if element.kind is Kind.SIGNAL and element.target == POOL:
            raise ProtocolError("the client sent a Signal for the runspace pool; it is for pipelines")
        if element.kind is Kind.COMMAND and element.target == POOL:
            raise ProtocolError("the client sent a Command with the GUID of the runspace pool")
        return element

    def _parsed(self, line: bytes) -> Element | None:
        if not line:  # a server's is nothing: PowerShell takes it so
            return Element(Kind.END) if self._role is Role.CLIENT else None
        if found := _DATA.fullmatch(line):
            try:
                data = base64.b64decode(found["data"], validate=True)
            except binascii.Error:
                raise ProtocolError(f"the {self._peer} sent Data whose text is not base64") from None
            prompt_response = found["stream"] == b"PromptResponse"
            return Element(Kind.DATA, UUID(found["guid"].decode()), data, prompt_response)
        if found := _PLAIN.fullmatch(line):
            return Element(Kind(found["kind"].decode()), UUID(found["guid"].decode()))
        for prefix in ERROR_PREFIXES:
            if line.startswith(prefix) and self._role is Role.SERVER:
                return Element(Kind.ERROR, data=line.removeprefix(prefix))
        raise ProtocolError(f"the {self._peer} sent a line that is none of PSRP's: {printable(line)}")

    @property
    def _peer(self) -> str:
        return self._role.value


def printable(data: bytes | bytearray) -> str:
    """The beginning of what a peer sent, for people: nothing in it does anything to a terminal."""
    text = bytes(data[: SHOWN_CHARACTERS * 4]).decode("utf-8", errors="replace")
    shown = "".join(c if c.isprintable() else "?" for c in text[:SHOWN_CHARACTERS])
    return shown + ("..." if len(data) > SHOWN_CHARACTERS * 4 or len(text) > SHOWN_CHARACTERS else "")
