"""Guest memory: every byte is where the table says, and nothing else can be reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvsock.virtio.memory import ADDRESS_SPACE, GuestError, GuestMemory, Region


def region(guest: int, user: int, size: int) -> Region:
    """A region whose bytes count up from the lowest byte of its guest address."""
    return Region(guest, user, size, memoryview(bytearray((guest + at) & 0xFF for at in range(size))))


MEMORY = GuestMemory(
    [region(0x1000, 0x90000, 0x100), region(0x1100, 0x50000, 0x80), region(0x2000, 0x60000, 0x10)]
)
"""Two regions that adjoin in the guest, but not in the front end, and one apart."""
THERE = {*range(0x1000, 0x1180), *range(0x2000, 0x2010)}


@given(st.integers(0xF80, 0x1200) | st.integers(0x1FF0, 0x2020), st.integers(0, 0x200))
def test_a_view_is_what_the_guest_has_there(address: int, length: int) -> None:
    wanted = range(address, address + length)
    expected = bytes(at & 0xFF for at in wanted)
    if set(wanted) <= THERE:
        assert b"".join(MEMORY.views(address, length)) == expected
    else:
        with pytest.raises(GuestError):
            MEMORY.views(address, length)
    in_one = any(low <= address and address + length <= high for low, high, _ in MEMORY.spans)
    if in_one:
        assert MEMORY.view(address, length) == expected
    else:
        with pytest.raises(GuestError):
            MEMORY.view(address, length)


@pytest.mark.parametrize(
    ("address", "length"),
    [(0, 0), (0x0FFF, 1), (0x117F, 2), (ADDRESS_SPACE - 1, 1), (ADDRESS_SPACE - 1, 2**32 - 1)],
)
def test_what_is_outside_is_refused_even_when_it_is_empty(address: int, length: int) -> None:
    with pytest.raises(GuestError):
        MEMORY.view(address, length)
    with pytest.raises(GuestError):
        MEMORY.user_view(address, length)


def test_no_bytes_in_pieces_are_no_pieces() -> None:
    assert MEMORY.views(0x1000, 0) == []


def test_user_addresses_are_another_order() -> None:
    assert bytes(MEMORY.user_view(0x50000, 4)) == bytes([0, 1, 2, 3])
    assert MEMORY.user_view(0x50001, 1) == MEMORY.view(0x1101, 1)
    with pytest.raises(GuestError):
        MEMORY.user_view(0x1000, 1)
    with pytest.raises(GuestError):
        MEMORY.user_view(0x900FF, 2)


def test_a_view_is_no_copy() -> None:
    memory = GuestMemory([region(0, 0x1000, 16)])
    memory.view(4, 2)[:] = b"ab"
    assert bytes(memory.user_view(0x1004, 2)) == b"ab"
    memory.views(4, 2)[0][0] = ord("x")
    assert bytes(memory.view(4, 2)) == b"xb"


@pytest.mark.parametrize(
    "regions",
    [
        [Region(0, 0, 0, memoryview(bytearray()))],
        [Region(0, 0, 8, memoryview(bytearray(7)))],
        [Region(ADDRESS_SPACE - 8, 0, 16, memoryview(bytearray(16)))],
        [Region(0, ADDRESS_SPACE - 8, 16, memoryview(bytearray(16)))],
        [region(0, 0x1000, 16), region(15, 0x2000, 16)],
        [region(0x100, 0x1000, 16), region(0x100, 0x2000, 16)],
        [region(0x100, 0x1008, 16), region(0, 0x1000, 16)],
        [region(0, 0x1000, 64), region(16, 0x2000, 16), region(0x100, 0x3000, 16)],
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(regions: list[Region]) -> None:
    with pytest.raises(GuestError):
        GuestMemory(regions)


def test_the_last_byte_of_the_address_space_is_memory_like_any_other() -> None:
    memory = GuestMemory([region(ADDRESS_SPACE - 16, ADDRESS_SPACE - 16, 16)])
    assert bytes(memory.view(ADDRESS_SPACE - 1, 1)) == b"\xff"
    assert bytes(memory.user_view(ADDRESS_SPACE - 1, 1)) == b"\xff"
    assert list(map(bytes, memory.views(ADDRESS_SPACE - 1, 1))) == [b"\xff"]
    with pytest.raises(GuestError):
        memory.views(ADDRESS_SPACE - 1, 2)
