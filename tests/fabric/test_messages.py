"""The bytes on control sockets: what is packed comes back, and nothing else gets through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hvsock.addresses import Address, ServiceId, VmId
from hvsock.errors import ProtocolError
from hvsock.fabric import messages
from hvsock.fabric.messages import (
    Courier,
    DeviceCourier,
    Established,
    Flag,
    Notice,
    NoticeKind,
    Op,
    Reply,
    Request,
)

ids = st.binary(min_size=16, max_size=16)
addresses = st.builds(
    lambda vm, service: Address(VmId.from_bytes_le(vm), ServiceId.from_bytes_le(service)), ids, ids
)
words = st.integers(0, 0xFFFFFFFF)
flags = st.sampled_from([Flag(bits) for bits in range(32)])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
parameters = st.dictionaries(st.text(max_size=8), json_values, max_size=3).map(
    lambda found: {**found, "method": "m"}
)
plain_requests = st.builds(
    Request, st.sampled_from([Op.CONNECT, Op.BIND, Op.LISTEN]), addresses, words, flags, words, ids, st.none()
)
calls = st.builds(Request, st.just(Op.CALL), addresses, words, flags, words, ids, parameters).filter(
    lambda request: len(json.dumps(request.call, ensure_ascii=False).encode()) <= messages.MAX_CALL_BYTES
)
couriers = st.builds(Courier, addresses, addresses, ids, flags)
device_couriers = st.builds(
    DeviceCourier,
    addresses,
    addresses,
    ids,
    flags,
    port=words,
    source_cid=words,
    milliseconds=words,
    type=words,
)
notices = st.builds(Notice, st.sampled_from(NoticeKind), ids.map(ServiceId.from_bytes_le))


@given(plain_requests | calls)
def test_a_request_comes_back_whole_and_not_cut_or_with_a_tail(request: Request) -> None:
    block = request.pack()
    assert len(block) == messages.REQUEST_BYTES
    assert Request.unpack(block) == request
    for wrong in (block[:-1], block + b"\0", block[:1], b""):
        with pytest.raises(ProtocolError):
            Request.unpack(wrong)


def test_a_request_without_an_address_has_zeros() -> None:
    unpacked = Request.unpack(Request(Op.LISTEN, number=7).pack())
    assert unpacked.address == Address(
        VmId("0" * 8 + "-0000" * 3 + "-" + "0" * 12), ServiceId.from_bytes_le(bytes(16))
    )
    assert unpacked.number == 7


@given(st.binary(max_size=messages.REQUEST_BYTES + 10))
def test_foreign_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Request.unpack(data)
    with pytest.raises(ProtocolError):
        Request.unpack(data.ljust(messages.REQUEST_BYTES, b"\0")[: messages.REQUEST_BYTES])


@given(plain_requests | calls, st.data())
def test_a_request_with_a_spoilt_byte_is_a_request_or_a_protocol_error(
    request: Request, data: st.DataObject
) -> None:
    block = bytearray(request.pack())
    for _ in range(data.draw(st.integers(1, 4))):
        # spoil the head and the parameters rather than the padding
        block[data.draw(st.integers(0, 150))] = data.draw(st.integers(0, 255))
    try:
        found = Request.unpack(bytes(block))
    except ProtocolError:
        return
    assert Request.unpack(found.pack()) == found


@pytest.mark.parametrize(
    "spoil",
    [
        {"at": 4, "value": 99},  # op
        {"at": 12, "value": 0x80},  # flags
        {"at": 21, "value": 0xFF},  # length of the parameters
    ],
)
def test_each_field_of_a_request_is_checked(spoil: dict[str, int]) -> None:
    block = bytearray(Request(Op.CALL, call={"method": "ping"}).pack())
    block[spoil["at"]] = spoil["value"]
    with pytest.raises(ProtocolError):
        Request.unpack(bytes(block))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"ping"',
        b'{"method": 1}',
        b'{"other": "ping"}',
        b"\xff\xfe",
        b'{"method": "\xff"}',
        b"[" * messages.MAX_CALL_BYTES,
        b'{"method": ' + b"1" * 1900 + b"}",
    ],
)
def test_parameters_of_a_call_are_an_object_with_a_method(body: bytes) -> None:
    good = Request(Op.CALL, call={"method": "ping"}).pack()
    size = messages.REQUEST_BYTES - messages.MAX_CALL_BYTES
    head = bytearray(good[:size])
    head[20:24] = len(body).to_bytes(4, "little")
    with pytest.raises(ProtocolError):
        Request.unpack(bytes(head) + body.ljust(messages.MAX_CALL_BYTES, b"\0"))


@pytest.mark.parametrize(
    "request_",
    [
        Request(Op.CALL, call={"method": "x" * messages.MAX_CALL_BYTES}),
        Request(Op.CALL, call={"method": "\ud800"}),
        Request(Op.CONNECT, number=-1),
        Request(Op.CONNECT, number=1 << 32),
        Request(Op.BIND, type=-1),
        Request(Op.LISTEN, token=b"short"),
    ],
)
def test_what_does_not_fit_into_a_request_is_a_value_error(request_: Request) -> None:
    with pytest.raises(ValueError, match=r"at most|the most|fit|token|not a request|surrogates"):
        request_.pack()


def test_the_longest_call_fits() -> None:
    frame = len(json.dumps({"method": ""}))
    call = {"method": "m" * (messages.MAX_CALL_BYTES - frame)}
    assert Request.unpack(Request(Op.CALL, call=call).pack()).call == call


@given(plain_requests, ids)
def test_an_undrained_connect_is_known_by_its_token(request: Request, other: bytes) -> None:
    block = request.pack()
    assert messages.carries(block, request.token)
    assert messages.carries(block, other) == (other == request.token)
    assert not messages.carries(block[:-1], request.token)
    assert not messages.carries(b"\0" + block[1:], request.token)
    assert not messages.carries(b"", request.token)


@given(words, st.binary(max_size=100))
def test_a_reply_comes_back(errno: int, body: bytes) -> None:
    data = Reply(errno, body).pack()
    head, rest = data[: messages.REPLY_HEADER_BYTES], data[messages.REPLY_HEADER_BYTES :]
    assert messages.parse_reply_header(head) == (errno, len(body))
    assert rest == body


@given(st.binary(max_size=messages.REPLY_HEADER_BYTES + 3))
def test_foreign_bytes_are_no_reply(data: bytes) -> None:
    magic = Reply(0).pack()[:4]
    with pytest.raises(ProtocolError):  # whatever they hold, a header is not what was cut or run over
        messages.parse_reply_header(data if len(data) != messages.REPLY_HEADER_BYTES else data + b"\0")
    foreign = data.ljust(messages.REPLY_HEADER_BYTES, b"\0")[: messages.REPLY_HEADER_BYTES]
    assume(not foreign.startswith(magic))
    with pytest.raises(ProtocolError):  # and at its own length it begins with the magic bytes
        messages.parse_reply_header(foreign)


def test_a_reply_that_claims_too_much_is_refused() -> None:
    head = bytearray(Reply(0).pack())
    head[8:12] = (messages.MAX_REPLY_BYTES + 1).to_bytes(4, "little")
    with pytest.raises(ProtocolError):
        messages.parse_reply_header(bytes(head))


@given(st.text(max_size=2000))
def test_a_refusal_is_cut_and_stays_text(text: str) -> None:
    reply = Reply.refuse(111, text)
    assert len(reply.body) <= messages.MAX_REFUSAL_BYTES
    assert reply.errno == 111
    assert isinstance(reply.text, str)
    if len(text.encode(errors="replace")) <= messages.MAX_REFUSAL_BYTES:
        assert reply.text == text.encode(errors="replace").decode()


@given(ids, ids)
def test_a_binding_comes_back(listener_id: bytes, service: bytes) -> None:
    service_id = ServiceId.from_bytes_le(service)
    body = messages.pack_binding(listener_id, service_id)
    assert messages.unpack_binding(body) == (listener_id, service_id)
    for wrong in (body[:-1], body + b"\0", b""):
        with pytest.raises(ProtocolError):
            messages.unpack_binding(wrong)


@given(couriers)
def test_a_courier_comes_back_whole_and_not_cut_or_with_a_tail(courier: Courier) -> None:
    data = courier.pack()
    assert len(data) == messages.COURIER_BYTES
    assert Courier.unpack(data) == courier
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(ProtocolError):
            Courier.unpack(wrong)


@given(couriers, st.sampled_from([(0, 0x00), (3, 0xFF), (4, 0x20), (7, 0x80)]))
def test_the_head_of_a_courier_is_checked(courier: Courier, spoil: tuple[int, int]) -> None:
    data = bytearray(courier.pack())
    at, value = spoil
    data[at] = data[at] | value if at >= 4 else value
    with pytest.raises(ProtocolError):
        Courier.unpack(bytes(data))


@given(st.binary(min_size=messages.COURIER_BYTES, max_size=messages.COURIER_BYTES))
def test_foreign_bytes_are_no_courier(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        Courier.unpack(data)


@given(device_couriers | notices)
def test_a_message_to_a_device_comes_back_as_what_it_is(message: DeviceCourier | Notice) -> None:
    data = message.pack()
    assert len(data) == messages.DEVICE_MESSAGE_BYTES
    assert messages.parse_device_message(data) == message
    for wrong in (data[:-1], data + b"\0", b"", data[:4]):
        with pytest.raises(ProtocolError):
            messages.parse_device_message(wrong)
    other = Notice if isinstance(message, DeviceCourier) else DeviceCourier
    with pytest.raises(ProtocolError):
        other.unpack(data)


@given(couriers)
def test_a_courier_is_no_message_to_a_device(courier: Courier) -> None:
    with pytest.raises(ProtocolError):
        messages.parse_device_message(courier.pack().ljust(messages.DEVICE_MESSAGE_BYTES, b"\0"))


@given(device_couriers | notices, st.sampled_from([(0, 0x00), (3, 0xFF), (4, 0xE0), (7, 0x80)]))
def test_the_head_of_a_message_to_a_device_is_checked(
    message: DeviceCourier | Notice, spoil: tuple[int, int]
) -> None:
    data = bytearray(message.pack())
    at, value = spoil
    data[at] = data[at] | value if at >= 4 else value
    with pytest.raises(ProtocolError):
        messages.parse_device_message(bytes(data))


@given(flags, ids.map(ServiceId.from_bytes_le))
def test_an_established_comes_back_whole_and_not_cut_or_with_a_tail(found: Flag, service_id: ServiceId) -> None:
    data = Established(found, service_id).pack()
    assert len(data) == messages.ESTABLISHED_BYTES
    assert Established.unpack(data) == Established(found, service_id)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(ProtocolError):
            Established.unpack(wrong)


@pytest.mark.parametrize("spoil", [(0, 0x00), (3, 0xFF), (4, 0x20), (7, 0x80)])
def test_each_field_of_an_established_is_checked(spoil: tuple[int, int]) -> None:
    data = bytearray(Established(Flag.CONNECTED_SUSPEND).pack())
    at, value = spoil
    data[at] = value
    with pytest.raises(ProtocolError):
        Established.unpack(bytes(data))


@given(plain_requests, device_couriers)
def test_what_a_connector_finds_is_told_apart(request: Request, courier: DeviceCourier) -> None:
    refusal = Reply.refuse(111, "the guest refused it").pack()
    for data in (request.pack(), courier.pack(), refusal):
        with pytest.raises(ProtocolError):
            Established.unpack(data[: messages.ESTABLISHED_BYTES])
    with pytest.raises(ProtocolError):
        messages.parse_reply_header(Established().pack().ljust(messages.REPLY_HEADER_BYTES, b"\0"))


def test_sizes_are_what_the_kernel_needs() -> None:
    numbers: dict[str, Any] = vars(messages)
    # a quarter of the smallest SO_SNDBUF (4,608 bytes) has to be in use for poll to see a full buffer
    assert numbers["REQUEST_BYTES"] * 4 > 4608
    assert numbers["MAX_CALL_BYTES"] < numbers["REQUEST_BYTES"]
