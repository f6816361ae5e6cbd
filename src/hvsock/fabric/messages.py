"""The bytes on the fabric's control sockets: requests, replies and couriers (pure).

Every request is one block of :data:`REQUEST_BYTES`, whatever it asks for. A connect leaves its block
unread in the socket until the broker has decided: a block of that size fills a send buffer of the
minimal size, so poll and epoll report the connector as pending, and its removal as established.

A courier is the message that brings an accepted connection to its listener: a :class:`Courier` with
the descriptor attached, then, once the request is drained, one byte :data:`DONE`.

All integers are little endian. Peers are on one machine, so errno values travel as they are.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, Final

from hvsock.addresses import Address, ServiceId, VmId
from hvsock.errors import ProtocolError

REQUEST_BYTES: Final = 2048
"""Size of every request: one buffer of the kernel, and more than a quarter of the smallest SO_SNDBUF."""
MAX_REPLY_BYTES: Final = 32 << 20
"""Most bytes in the body of a reply: the status of 16,384 services and 4,096 partitions takes 10 MiB."""
MAX_REFUSAL_BYTES: Final = 1024
"""Most bytes in the text of a refusal; longer texts are cut."""
DONE: Final = b"\x06"
"""Last byte of a courier: the request is drained, the connection is the accepter's alone (ASCII ACK)."""

_MAGIC = b"HVS\x01"
_REQUEST = struct.Struct("<4sIIIII16s16s16s")
_REPLY = struct.Struct("<4sII")
_COURIER = struct.Struct("<4sI16s16s16s16s16s")
REPLY_HEADER_BYTES: Final = _REPLY.size
COURIER_BYTES: Final = _COURIER.size
MAX_CALL_BYTES: Final = REQUEST_BYTES - _REQUEST.size
"""Most bytes in the parameters of a call."""
_NO_ID = bytes(16)


class Op(IntEnum):
    """What a request asks for."""

    CONNECT = 1
    BIND = 2
    LISTEN = 3
    CALL = 4


class Flag(IntFlag):
    """Options of the socket that travel with a connect or a bind."""

    NONE = 0
    PASSTHRU = 1
    CONNECTED_SUSPEND = 2
    HIGH_VTL = 4


_UNKNOWN_FLAGS = ~int(Flag.PASSTHRU | Flag.CONNECTED_SUSPEND | Flag.HIGH_VTL)  # ~Flag leaves unknown bits out


@dataclass(frozen=True, slots=True)
class Request:
    """One request; which fields matter depends on `op`.

    Attributes:
        op: what is asked for.
        address: CONNECT: the destination; BIND: the address to bind to.
        type: CONNECT, BIND: SOCK_STREAM or SOCK_SEQPACKET.
        flags: CONNECT, BIND: options of the socket.
        number: CONNECT: the connect time-out in milliseconds; LISTEN: the backlog.
        token: CONNECT: 16 random bytes that tell this request from payload; LISTEN: the listener's id.
        call: CALL: the method and its parameters, as JSON takes them.
    """

    op: Op
    address: Address | None = None
    type: int = 0
    flags: Flag = Flag.NONE
    number: int = 0
    token: bytes = _NO_ID
    call: dict[str, Any] | None = None

    def pack(self) -> bytes:
        """The request as :data:`REQUEST_BYTES` bytes.

        Raises:
            ValueError: the call's parameters are longer than :data:`MAX_CALL_BYTES` or no text, or a number
                does not fit into 32 bits, or the token has not 16 bytes.
        """
        body = b"" if self.call is None else json.dumps(self.call, ensure_ascii=False).encode()
        if len(body) > MAX_CALL_BYTES:
            raise ValueError(f"the parameters of a call take {len(body)} bytes; {MAX_CALL_BYTES} is the most")
        if len(self.token) != len(_NO_ID):
            raise ValueError(f"a token has {len(_NO_ID)} bytes, not {len(self.token)}")
        vm_id, service_id = (_NO_ID, _NO_ID) if self.address is None else map(VmId.to_bytes_le, self.address)
        try:
            head = _REQUEST.pack(
                _MAGIC, self.op, self.type, self.flags, self.number, len(body), vm_id, service_id, self.token
            )
        except struct.error as error:
            raise ValueError(f"not a request: {error}") from None
        return (head + body).ljust(REQUEST_BYTES, b"\0")

    @classmethod
    def unpack(cls, block: bytes) -> Request:
        """The request in `block`.

        Raises:
            ProtocolError: the block is not a request; the sender's doing.
        """
        if len(block) != REQUEST_BYTES:
            raise ProtocolError(f"a request has {REQUEST_BYTES} bytes, not {len(block)}")
        magic, op, type_, flags, number, length, vm_id, service_id, token = _REQUEST.unpack_from(block)
        if magic != _MAGIC:
            raise ProtocolError("not a request of this version of hvsock")
        if op not in Op._value2member_map_ or flags & _UNKNOWN_FLAGS or length > MAX_CALL_BYTES:
            raise ProtocolError(f"not a request: op {op}, flags {flags:#x}, {length} bytes of parameters")
        call = None
        if op == Op.CALL:
            call = _load_object(block[_REQUEST.size : _REQUEST.size + length])
        address = Address(VmId.from_bytes_le(vm_id), ServiceId.from_bytes_le(service_id))
        return cls(Op(op), address, type_, Flag(flags), number, token, call)


def carries(block: bytes, token: bytes) -> bool:
    """Whether `block`, the first bytes of a connection, is the still undrained connect request with `token`."""
    return (
        len(block) == REQUEST_BYTES and block[:4] == _MAGIC and block[_REQUEST.size - 16 : _REQUEST.size] == token
    )


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request, except to a connect that succeeds, which has none.

    Attributes:
        errno: 0, or why not.
        body: the text of a refusal in UTF-8; BIND: listener id and service id; CALL: JSON.
    """

    errno: int
    body: bytes = b""

    def pack(self) -> bytes:
        """Header and body."""
        return _REPLY.pack(_MAGIC, self.errno, len(self.body)) + self.body

    @classmethod
    def refuse(cls, errno: int, text: str) -> Reply:
        """A refusal; `text` is cut to :data:`MAX_REFUSAL_BYTES`."""
        return cls(errno, text.encode(errors="replace")[:MAX_REFUSAL_BYTES])

    @property
    def text(self) -> str:
        """The text of a refusal."""
        return self.body.decode(errors="replace")


def parse_reply_header(data: bytes) -> tuple[int, int]:
    """The errno and the body's length in bytes, from the :data:`REPLY_HEADER_BYTES` bytes of a header.

    Raises:
        ProtocolError: it is not a reply's header; the broker's doing, or a foreign socket.
    """
    if len(data) != REPLY_HEADER_BYTES:
        raise ProtocolError(f"the broker's reply ended after {len(data)} bytes")
    magic, errno, length = _REPLY.unpack(data)
    if magic != _MAGIC or length > MAX_REPLY_BYTES:
        raise ProtocolError("not a reply of this version of hvsock; is the broker of another version?")
    return errno, length


def pack_binding(listener_id: bytes, service_id: ServiceId) -> bytes:
    """The body of the reply to a bind: 16 bytes of listener id, 16 of service id."""
    return listener_id + service_id.to_bytes_le()


def unpack_binding(body: bytes) -> tuple[bytes, ServiceId]:
    """The listener id and the service id in the reply to a bind.

    Raises:
        ProtocolError: the body has another size.
    """
    if len(body) != 32:
        raise ProtocolError(f"the reply to a bind has 32 bytes, not {len(body)}")
    return body[:16], ServiceId.from_bytes_le(body[16:])


@dataclass(frozen=True, slots=True)
class Courier:
    """What a listener learns about a connection that it accepts.

    Attributes:
        own: the accepted end's address (getsockname).
        peer: the connecting end's address (getpeername).
        token: the token of the connect request.
        flags: options of the connecting socket.
    """

    own: Address
    peer: Address
    token: bytes
    flags: Flag = Flag.NONE

    def pack(self) -> bytes:
        """:data:`COURIER_BYTES` bytes."""
        return _COURIER.pack(
            _MAGIC,
            self.flags,
            self.own.vm_id.to_bytes_le(),
            self.own.service_id.to_bytes_le(),
            self.peer.vm_id.to_bytes_le(),
            self.peer.service_id.to_bytes_le(),
            self.token,
        )

    @classmethod
    def unpack(cls, data: bytes) -> Courier:
        """The courier in `data`.

        Raises:
            ProtocolError: it is none.
        """
        if len(data) != COURIER_BYTES:
            raise ProtocolError(f"a courier has {COURIER_BYTES} bytes, not {len(data)}")
        magic, flags, own_vm, own_service, peer_vm, peer_service, token = _COURIER.unpack(data)
        if magic != _MAGIC or flags & _UNKNOWN_FLAGS:
            raise ProtocolError("not a courier of this version of hvsock")
        own = Address(VmId.from_bytes_le(own_vm), ServiceId.from_bytes_le(own_service))
        peer = Address(VmId.from_bytes_le(peer_vm), ServiceId.from_bytes_le(peer_service))
        return cls(own, peer, token, Flag(flags))


def _load_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the parameters of a call are not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        raise ProtocolError("the parameters of a call are an object with a method")
    return value
