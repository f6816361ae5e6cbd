"""The fake guest driver does what a guest does, and sees what a device does wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvsock.errors import ProtocolError
from hvsock.testing.virtio_driver import HIGH_GUEST_ADDRESS, MANY, ONE, TWO, Driver, Layout
from hvsock.virtio.packet import HEADER_BYTES
from hvsock.virtio.session import RX, TX
from tests.support import sample

layouts = st.sampled_from([ONE, TWO, MANY]) | st.builds(Layout, st.integers(1, 8), st.booleans(), st.booleans())
HEADER = bytes(range(HEADER_BYTES))


@settings(max_examples=sample(30, 2_000))
@given(layouts, st.booleans(), st.lists(st.binary(max_size=300), max_size=40), st.data())
def test_what_is_sent_arrives_and_buffers_come_back(
    layout: Layout, event_idx: bool, payloads: list[bytes], data: st.DataObject
) -> None:
    driver = Driver(queue_size=16 if layout.pieces <= 16 else 32, layout=layout, event_idx=event_idx)
    queue = driver.virtqueue(TX)
    waiting: list[bytes] = []
    for payload in payloads:
        while not driver.send(HEADER, payload):
            for _ in range(data.draw(st.integers(1, len(waiting)))):
                taken = queue.take()
                assert taken is not None
                head, segments, total = taken
                expected = waiting.pop(0)
                assert b"".join(segments) == HEADER + expected
                assert [len(one) for one in segments] == layout.cut(total)
                queue.give(head, 0)
            queue.publish()
        waiting.append(payload)
    assert queue.pending == len(waiting)


@given(layouts, st.integers(0, 70_000))
def test_pieces_add_up(layout: Layout, length: int) -> None:
    pieces = layout.cut(length)
    assert sum(pieces) == length
    assert 1 <= len(pieces) <= layout.pieces
    assert 0 not in pieces or pieces == [0]
    if layout.header_apart and layout.pieces > 1 and length > HEADER_BYTES:
        assert pieces[0] == HEADER_BYTES


def test_the_usual_layouts() -> None:
    assert ONE.cut(100) == [100]
    assert TWO.cut(100) == [44, 56]
    assert TWO.cut(44) == [22, 22]
    assert MANY.cut(44 + 17 * 4096) == [44, *[4096] * 17]
    assert Layout(3, header_apart=False).cut(8) == [3, 3, 2]


@pytest.mark.parametrize("event_idx", [False, True])
def test_receive_buffers_go_around(event_idx: bool) -> None:
    driver = Driver(queue_size=4, rx_buffer_bytes=64, event_idx=event_idx)
    queue = driver.virtqueue(RX)
    assert driver.add_rx_buffers() == 4
    assert driver.add_rx_buffers() == 0
    for number in range(15 + 4):
        taken = queue.take()
        assert taken is not None
        head, (segment,), total = taken
        assert total == 64
        segment[:2] = number.to_bytes(2, "little")
        queue.give(head, 2)
        assert queue.publish()
        assert driver.received(add_again=number < 15) == [number.to_bytes(2, "little")]
    assert queue.pending == 0
    assert queue.take() is None
    assert driver.add_rx_buffers() == 4
    assert driver.rx.kick_wanted()


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_and_interrupts_are_asked_for(event_idx: bool) -> None:
    driver = Driver(queue_size=8, event_idx=event_idx)
    queue = driver.virtqueue(TX)
    assert not queue.rearm()
    assert not driver.tx.kick_wanted()
    driver.send(HEADER)
    assert driver.tx.kick_wanted()
    assert not driver.tx.kick_wanted()  # that kick is for what was offered before
    queue.suppress()
    driver.send(HEADER)
    assert not driver.tx.kick_wanted()
    assert queue.rearm()
    heads = []
    while (taken := queue.take()) is not None:
        heads.append(taken[0])
    queue.give(heads[0], 0)
    assert queue.publish()
    queue.give(heads[1], 0)
    assert queue.publish() == (not event_idx)  # nobody has looked since
    assert driver.reclaim_tx() == 2
    assert not queue.rearm()
    driver.send(HEADER)
    assert driver.tx.kick_wanted()


def test_a_full_queue_takes_no_packet() -> None:
    driver = Driver(queue_size=4, layout=TWO)
    assert driver.send(HEADER, b"1")
    assert driver.send(HEADER, b"2")
    assert not driver.send(HEADER, b"3")
    assert driver.virtqueue(TX).pending == 2
    with pytest.raises(ValueError, match="at most"):
        driver.send(HEADER, bytes((64 << 10) + 1))


def test_a_reset_empties_the_queues() -> None:
    driver = Driver(queue_size=4)
    driver.add_rx_buffers()
    for _ in range(4):
        assert driver.send(HEADER)
    driver.reset(0xFFFE)
    assert driver.virtqueue(TX, base=0xFFFE).pending == 0
    assert driver.received(add_again=False) == []
    assert driver.add_rx_buffers() == 4
    assert driver.virtqueue(RX, base=0xFFFE).pending == 4
    for _ in range(4):
        assert driver.send(HEADER)
    assert not driver.send(HEADER)


@pytest.mark.parametrize(("head", "length"), [(4, 1), (0xFFFF_FFFF, 1), (0, 65), (3, 1)])
def test_a_device_that_fills_what_it_does_not_have_is_found_out(head: int, length: int) -> None:
    driver = Driver(queue_size=4, rx_buffer_bytes=64)
    queue = driver.virtqueue(RX)
    driver.add_rx_buffers()
    queue.give(3, 1)
    queue.publish()
    assert len(driver.received(add_again=False)) == 1
    queue.give(head, length)
    queue.publish()
    with pytest.raises(ProtocolError):
        driver.received()


@pytest.mark.parametrize("head", [1, 2, 0xFFFF_FFFF])
def test_a_device_that_gives_back_what_it_does_not_have_is_found_out(head: int) -> None:
    driver = Driver(queue_size=4, layout=TWO)
    queue = driver.virtqueue(TX)
    driver.send(HEADER)  # the last slot: descriptors 2 and 3
    taken = queue.take()
    assert taken is not None
    assert taken[0] == 2
    queue.give(2, 0)
    queue.publish()
    assert driver.reclaim_tx() == 1
    queue.give(head, 0)
    queue.publish()
    with pytest.raises(ProtocolError):
        driver.reclaim_tx()


def test_a_device_that_gives_back_too_much_is_found_out() -> None:
    driver = Driver(queue_size=4)
    driver.tx.used[1] = 5
    with pytest.raises(ProtocolError):
        driver.reclaim_tx()


def test_hostile_descriptors_can_be_written() -> None:
    driver = Driver(queue_size=4)
    driver.tx.write_descriptor(2, HIGH_GUEST_ADDRESS + 5, 7)
    driver.tx.offer(2)
    taken = driver.virtqueue(TX).take()
    assert taken is not None
    assert (taken[0], taken[2]) == (2, 7)
