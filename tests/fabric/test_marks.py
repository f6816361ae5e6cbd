"""End marks: set once and for all who have the connection, and never anything but an eventfd."""

from __future__ import annotations

import os
import sys

import pytest

assert sys.platform == "linux"

from hvsock.fabric.marks import EndMark


def test_a_mark_is_set_for_every_duplicate_and_stays_so() -> None:
    mark = EndMark.new()
    twin = mark.dup()
    assert not mark.is_set()
    assert not twin.is_set()
    mark.set()
    mark.set()
    for _ in range(2):
        assert mark.is_set()
        assert twin.is_set()
    mark.close()
    assert twin.is_set()
    twin.close()


def test_a_closed_mark() -> None:
    mark = EndMark.new()
    mark.set()
    mark.close()
    mark.close()
    assert mark.fileno() == -1
    assert not mark.is_set()
    with pytest.raises(OSError, match="Bad file descriptor"):
        mark.dup()


def test_a_dropped_mark_is_closed() -> None:
    mark = EndMark.new()
    descriptor = mark.fileno()
    assert not os.get_inheritable(descriptor)
    del mark
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_what_is_received_is_an_eventfd_or_closed() -> None:
    mark = EndMark.received(os.eventfd(1))
    assert mark is not None
    assert mark.is_set()
    mark.close()
    reading, writing = os.pipe()
    assert EndMark.received(writing) is None
    assert os.read(reading, 1) == b"", "it was closed"
    os.close(reading)
