"""The bytes on the fabric's control sockets: requests, replies and couriers (pure).

Every request is one block of :data:`REQUEST_BYTES`, whatever it asks for. A connect leaves its block
unread in the socket until the broker has decided: a block of that size fills a send buffer of the
minimal size, so poll and epoll report the connector as pending, and its removal as established.

A courier is the message that brings an accepted connection to its listener: a :class:`Courier` with
the descriptor attached, then, once the request is drained, one byte :data:`DONE`. What comes to the device of
a VM is a :class:`DeviceCourier` or a :class:`Notice`, each followed by :data:`DONE`; there the request stays
undrained, for the device to settle. An :class:`Established` goes the other way, into the connection itself,
ahead of its payload.

Two kinds of messages may bring an end mark, an eventfd, along: the request of a device that connects, and an
Established of a device that accepts. An end of stream is graceful on such a connection only once the mark is
readable; it is never read out.

All integers are little endian. Peers are on one machine, so errno values travel as they are.

The messages are named tuples, since every process of hvsock loads them: Python makes the class of one in a fifth
of the time that it takes for a frozen dataclass, which counts in an emulated guest.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum, IntFlag
from typing import Any, Final, NamedTuple

from hvsock.addresses import SERVICE_WILDCARD, Address, ServiceId, VmId
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
_DEVICE_MAGIC = b"HVD\x01"
_NOTICE_MAGIC = b"HVN\x01"
_ESTABLISHED_MAGIC = b"HVE\x01"
_REQUEST = struct.Struct("<4sIIIII16s16s16s")
_REPLY = struct.Struct("<4sII")
_COURIER = struct.Struct("<4sI16s16s16s16s16s")
_FOR_DEVICE = struct.Struct("<IIII")
_NOTICE = struct.Struct("<4sI16s")
_ESTABLISHED = struct.Struct("<4sI16s")
REPLY_HEADER_BYTES: Final = _REPLY.size
COURIER_BYTES: Final = _COURIER.size
DEVICE_MESSAGE_BYTES: Final = _COURIER.size + _FOR_DEVICE.size
"""Size of a :class:`DeviceCourier`, and of a :class:`Notice`."""
ESTABLISHED_BYTES: Final = _ESTABLISHED.size
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
    """Options of the socket that travel with a connect or a bind.

    The last two are a device's: DEVICE binds its listener; END_MARK says that a connect brings an end mark,
    and asks for an :class:`Established` before the connection's payload.
    """

    NONE = 0
    PASSTHRU = 1
    CONNECTED_SUSPEND = 2
    HIGH_VTL = 4
    DEVICE = 8
    END_MARK = 16


# ~Flag leaves unknown bits out
_UNKNOWN_FLAGS = ~int(Flag.PASSTHRU | Flag.CONNECTED_SUSPEND | Flag.HIGH_VTL | Flag.DEVICE | Flag.END_MARK)


class Request(NamedTuple):
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


class Reply(NamedTuple):
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


class Courier(NamedTuple):
    """What a listener learns about a connection that it accepts.

    Attributes:
        own: the accepted end's address (getsockname).
        peer: the connecting end's address (getpeername).
        token: the token of the connect request.
        flags: options of the connecting socket; with END_MARK, a second descriptor is the end mark.
    """

    own: Address
    peer: Address
    token: bytes
    flags: Flag = Flag.NONE

    def pack(self) -> bytes:
        """:data:`COURIER_BYTES` bytes."""
        return _pack_courier(_MAGIC, self)

    @classmethod
    def unpack(cls, data: bytes) -> Courier:
        """The courier in `data`.

        Raises:
            ProtocolError: it is none.
        """
        if len(data) != COURIER_BYTES:
            raise ProtocolError(f"a courier has {COURIER_BYTES} bytes, not {len(data)}")
        return Courier(*_unpack_courier(data, _MAGIC))


class DeviceCourier(NamedTuple):
    """What a VM's device learns about a connection that its guest is asked to take.

    The request is still in the connection. The device takes it off once it wrote an :class:`Established`, which
    makes the connector connected; or it writes a :meth:`Reply.refuse` and closes the connection.

    Attributes:
        own, peer, token, flags: as in a :class:`Courier`.
        port: by which the guest knows the service.
        source_cid: of the partition that connects; 2 for the VM's parent.
        milliseconds: the connect time-out.
        type: of the connecting socket: SOCK_STREAM or SOCK_SEQPACKET.
    """

    own: Address
    peer: Address
    token: bytes
    flags: Flag
    port: int
    source_cid: int
    milliseconds: int
    type: int

    def pack(self) -> bytes:
        """:data:`DEVICE_MESSAGE_BYTES` bytes."""
        rest = _FOR_DEVICE.pack(self.port, self.source_cid, self.milliseconds, self.type)
        return _pack_courier(_DEVICE_MAGIC, self) + rest

    @classmethod
    def unpack(cls, data: bytes) -> DeviceCourier:
        """The courier in `data`.

        Raises:
            ProtocolError: it is none.
        """
        _check_device_message(data)
        return DeviceCourier(*_unpack_courier(data, _DEVICE_MAGIC), *_FOR_DEVICE.unpack_from(data, _COURIER.size))


class NoticeKind(IntEnum):
    """What a device is told to do."""

    CANCEL_SERVICE = 1
    """Reset the connections of one service."""
    CANCEL_ALL = 2
    """Reset all connections: the partition was removed."""


class Notice(NamedTuple):
    """What a VM's device is told about connections that it has.

    Attributes:
        kind: what to do.
        service_id: CANCEL_SERVICE: whose connections.
    """

    kind: NoticeKind
    service_id: ServiceId = SERVICE_WILDCARD

    def pack(self) -> bytes:
        """:data:`DEVICE_MESSAGE_BYTES` bytes."""
        data = _NOTICE.pack(_NOTICE_MAGIC, self.kind, self.service_id.to_bytes_le())
        return data.ljust(DEVICE_MESSAGE_BYTES, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Notice:
        """The notice in `data`.

        Raises:
            ProtocolError: it is none.
        """
        _check_device_message(data)
        magic, kind, service_id = _NOTICE.unpack_from(data)
        if magic != _NOTICE_MAGIC or kind not in NoticeKind._value2member_map_:
            raise ProtocolError("not a notice of this version of hvsock")
        return cls(NoticeKind(kind), ServiceId.from_bytes_le(service_id))


def parse_device_message(data: bytes) -> DeviceCourier | Notice:
    """What came to a device's listener, from its :data:`DEVICE_MESSAGE_BYTES` bytes.

    Raises:
        ProtocolError: it is neither.
    """
    return Notice.unpack(data) if data.startswith(_NOTICE_MAGIC) else DeviceCourier.unpack(data)


class Established(NamedTuple):
    """What the accepting side writes ahead of the payload on a connection with an end mark.

    Attributes:
        flags: options of the accepting socket.
        service_id: the service, which may be another than the one of the port that a guest connected to.
    """

    flags: Flag = Flag.NONE
    service_id: ServiceId = SERVICE_WILDCARD

    def pack(self) -> bytes:
        """:data:`ESTABLISHED_BYTES` bytes."""
        return _ESTABLISHED.pack(_ESTABLISHED_MAGIC, self.flags, self.service_id.to_bytes_le())

    @classmethod
    def unpack(cls, data: bytes) -> Established:
        """The message in `data`.

        Raises:
            ProtocolError: it is none.
        """
        if len(data) != ESTABLISHED_BYTES:
            raise ProtocolError(
                f"an established connection begins with {ESTABLISHED_BYTES} bytes, not {len(data)}"
            )
        magic, flags, service_id = _ESTABLISHED.unpack(data)
        if magic != _ESTABLISHED_MAGIC or flags & _UNKNOWN_FLAGS:
            raise ProtocolError("not an established connection of this version of hvsock")
        return cls(Flag(flags), ServiceId.from_bytes_le(service_id))


def _check_device_message(data: bytes) -> None:
    if len(data) != DEVICE_MESSAGE_BYTES:
        raise ProtocolError(f"a message to a device has {DEVICE_MESSAGE_BYTES} bytes, not {len(data)}")


def _pack_courier(magic: bytes, courier: Courier | DeviceCourier) -> bytes:
    own, peer = courier.own, courier.peer
    return _COURIER.pack(
        magic,
        courier.flags,
        own.vm_id.to_bytes_le(),
        own.service_id.to_bytes_le(),
        peer.vm_id.to_bytes_le(),
        peer.service_id.to_bytes_le(),
        courier.token,
    )


def _unpack_courier(data: bytes, expected: bytes) -> tuple[Address, Address, bytes, Flag]:
    magic, flags, own_vm, own_service, peer_vm, peer_service, token = _COURIER.unpack_from(data)
    if magic != expected or flags & _UNKNOWN_FLAGS:
        raise ProtocolError("not a courier of this version of hvsock")
    own = Address(VmId.from_bytes_le(own_vm), ServiceId.from_bytes_le(own_service))
    peer = Address(VmId.from_bytes_le(peer_vm), ServiceId.from_bytes_le(peer_service))
    return own, peer, token, Flag(flags)


def _load_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the parameters of a call are not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        raise ProtocolError("the parameters of a call are an object with a method")
    return value
