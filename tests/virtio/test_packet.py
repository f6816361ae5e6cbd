"""The header, byte by byte."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hvsock.virtio.packet import HEADER_BYTES, SEQPACKET, STREAM, Header, Op, Shutdown

FIELDS = (64, 64, 32, 32, 32, 16, 16, 32, 32, 32)
"""Bits of each field, in the order of the specification."""


def test_the_layout_is_that_of_the_specification() -> None:
    header = Header(
        0x0102030405060708, 0x1112131415161718, 0x21222324, 0x31323334, 0x41424344, 0x5152, 0x6162,
        0x71727374, 0x81828384, 0x91929394,
    )  # fmt: skip
    assert header.pack().hex(" ", 4) == (
        "08070605 04030201 18171615 14131211 24232221 34333231 44434241 52516261 74737271 84838281 94939291"
    )
    assert HEADER_BYTES == 44 == sum(FIELDS) // 8


def test_what_is_not_said_is_a_stream_packet_without_payload() -> None:
    assert Header(42, 2, 1, 2)[4:] == (0, 1, Op.RW, 0, 0, 0)


@given(st.tuples(*(st.integers(0, (1 << bits) - 1) for bits in FIELDS)), st.binary(max_size=8))
def test_what_is_packed_is_unpacked(fields: tuple[int, ...], behind: bytes) -> None:
    header = Header._make(fields)
    for data in (header.pack() + behind, bytearray(header.pack() + behind), memoryview(header.pack() + behind)):
        assert Header.unpack(data) == header


def test_the_numbers_are_those_of_linux() -> None:
    assert [op.name for op in sorted(Op)] == [
        "REQUEST", "RESPONSE", "RST", "SHUTDOWN", "RW", "CREDIT_UPDATE", "CREDIT_REQUEST",
    ]  # fmt: skip
    assert [int(op) for op in sorted(Op)] == list(range(1, 8))
    assert [int(flag) for flag in (Shutdown.RECEIVE, Shutdown.SEND, Shutdown.BOTH)] == [1, 2, 3]
    assert (STREAM, SEQPACKET) == (1, 2)
