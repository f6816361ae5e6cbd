"""The messages of vhost-user: what is packed comes back, and nothing else gets through."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.errors import ProtocolError
from hvsock.virtio import vhost_user
from hvsock.virtio.memory import GuestError
from hvsock.virtio.vhost_user import (
    HEADER_BYTES,
    MAX_CONFIG_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_REGIONS,
    Flag,
    MemoryRegion,
    Message,
    Request,
    RingAddresses,
)

words = st.integers(0, 0xFFFF_FFFF)
longs = st.integers(0, (1 << 64) - 1)
payloads = st.binary(max_size=300)
messages = st.builds(Message, words, st.sampled_from([Flag.NONE, Flag.NEED_REPLY]), payloads)
regions = st.lists(st.builds(MemoryRegion, longs, longs, longs, longs), min_size=1, max_size=MAX_REGIONS)


@given(messages)
def test_a_message_comes_back_whole_and_not_cut_or_with_a_tail(message: Message) -> None:
    data = message.pack()
    assert vhost_user.payload_bytes(data[:HEADER_BYTES]) == len(message.payload)
    assert vhost_user.parse(data) == message
    for wrong in (data[:-1], data + b"\0", data[:1], b""):
        with pytest.raises(ProtocolError):
            vhost_user.parse(wrong)


def test_bytes_are_those_of_the_specification() -> None:
    """SET_VRING_NUM of queue 1 to 128 as QEMU sends it; with need_reply."""
    data = struct.pack("<IIIII", 8, 0x9, 8, 1, 128)
    assert Message(Request.SET_VRING_NUM, Flag.NEED_REPLY, vhost_user.pack_vring_state(1, 128)).pack() == data
    assert vhost_user.pack_reply(Request.GET_FEATURES, vhost_user.pack_u64(1 << 32)) == struct.pack(
        "<IIIQ", 1, 0x5, 8, 1 << 32
    )
    addresses = vhost_user.pack_vring_addresses(1, RingAddresses(descriptors=0x10, available=0x20, used=0x30))
    assert addresses == struct.pack("<IIQQQQ", 1, 0, 0x10, 0x30, 0x20, 0)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<III", 1, 0, 0),  # no version
        struct.pack("<III", 1, 2, 0),
        struct.pack("<III", 1, 3, 0),
        struct.pack("<III", 1, 1 | Flag.REPLY, 0),
        struct.pack("<III", 1, 1, MAX_PAYLOAD_BYTES + 1),
        struct.pack("<II", 1, 1),
        b"",
    ],
)
def test_a_header_is_checked(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        vhost_user.payload_bytes(header)
    with pytest.raises(ProtocolError):
        vhost_user.parse(header + bytes(MAX_PAYLOAD_BYTES + 1))


@given(st.binary(max_size=40))
def test_foreign_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        message = vhost_user.parse(data)
    except ProtocolError:
        return
    assert vhost_user.parse(message.pack()) == message


@given(payloads)
def test_a_reply_comes_back(payload: bytes) -> None:
    data = vhost_user.pack_reply(Request.GET_CONFIG, payload)
    assert vhost_user.parse_reply(data, Request.GET_CONFIG) == payload
    for wrong in (data[:-1], data + b"\0", b"", Message(Request.GET_CONFIG, Flag.NONE, payload).pack()):
        with pytest.raises(ProtocolError):
            vhost_user.parse_reply(wrong, Request.GET_CONFIG)
    with pytest.raises(ProtocolError):
        vhost_user.parse_reply(data, Request.GET_STATUS)


@given(longs, words, words, st.integers(0, 0xFF), st.booleans())
def test_numbers_come_back(long: int, index: int, number: int, queue: int, attached: bool) -> None:
    assert vhost_user.parse_u64(vhost_user.pack_u64(long)) == long
    assert vhost_user.parse_vring_state(vhost_user.pack_vring_state(index, number)) == (index, number)
    packed = vhost_user.pack_vring_descriptor(queue, attached)
    assert vhost_user.parse_vring_descriptor(packed) == (queue, attached)
    addresses = RingAddresses(long, long ^ 1, long ^ 2)
    assert vhost_user.parse_vring_addresses(vhost_user.pack_vring_addresses(index, addresses)) == (
        index,
        addresses,
    )


@given(regions)
def test_a_memory_table_comes_back(table: list[MemoryRegion]) -> None:
    payload = vhost_user.pack_memory_table(table)
    assert len(payload) <= MAX_PAYLOAD_BYTES
    assert vhost_user.parse_memory_table(payload) == table


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(7),
        bytes(8),
        struct.pack("<II", 1, 0),
        struct.pack("<II", 0, 0) + bytes(32),
        struct.pack("<II", 2, 0) + bytes(32),
        struct.pack("<II", 1, 0) + bytes(33),
        struct.pack("<II", MAX_REGIONS + 1, 0) + bytes(32 * (MAX_REGIONS + 1)),
    ],
)
def test_a_memory_table_is_checked(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        vhost_user.parse_memory_table(payload)


@given(words, st.binary(max_size=MAX_CONFIG_BYTES))
def test_config_comes_back(offset: int, content: bytes) -> None:
    assert vhost_user.parse_config(vhost_user.pack_config(offset, content)) == (offset, content)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(11),
        struct.pack("<III", 0, 8, 0) + bytes(7),
        struct.pack("<III", 0, 8, 0) + bytes(9),
        struct.pack("<III", 0, MAX_CONFIG_BYTES + 1, 0) + bytes(MAX_CONFIG_BYTES + 1),
    ],
)
def test_config_is_checked(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        vhost_user.parse_config(payload)


@pytest.mark.parametrize(
    ("parse", "size"),
    [
        (vhost_user.parse_u64, 8),
        (vhost_user.parse_vring_state, 8),
        (vhost_user.parse_vring_addresses, 40),
        (vhost_user.parse_vring_descriptor, 8),
    ],
)
def test_payloads_have_their_size(parse: Callable[[bytes], object], size: int) -> None:
    parse(bytes(size))
    for wrong in (size - 1, size + 1, 0):
        with pytest.raises(ProtocolError):
            parse(bytes(wrong))


@pytest.mark.parametrize("value", [1 << 9, 1 << 63])
def test_a_queues_descriptor_has_no_bits_that_nobody_defined(value: int) -> None:
    with pytest.raises(ProtocolError):
        vhost_user.parse_vring_descriptor(vhost_user.pack_u64(value))


def test_what_the_front_end_does_is_not_the_guests_doing() -> None:
    assert not issubclass(ProtocolError, GuestError)
    assert not issubclass(GuestError, ProtocolError)
