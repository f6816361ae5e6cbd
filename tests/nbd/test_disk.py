"""What a disk asks of the kernel's NBD client, which is played here."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys

import pytest

assert sys.platform == "linux"

from hvsock.errors import BusyError
from hvsock.nbd import disk
from hvsock.nbd.handshake import Ability, Export

SET_SOCK, CLEAR_SOCK = 0xAB00, 0xAB04
EXPORT = Export(1 << 20, Ability(1), 4096)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ioctls of every disk, each of which is /dev/null."""
    found: list[int] = []

    def ioctl(_: int, request: int, __: int = 0) -> int:
        found.append(request)
        return 0

    monkeypatch.setattr(disk, "_opened", lambda _: os.open(os.devnull, os.O_RDWR))
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return found


def attach(taken: disk.Disk) -> None:
    one, other = socket.socketpair()
    with one, other:
        taken.attach(one, EXPORT, read_only=False, seconds=1)


def test_its_own_disk_is_ended(asked: list[int]) -> None:
    with disk.Disk("/dev/nbd0") as taken:
        attach(taken)
        assert CLEAR_SOCK not in asked
    assert asked.count(CLEAR_SOCK) == 1


def test_a_disk_that_another_process_attached_is_left_alone(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_: int, request: int, __: int = 0) -> int:
        asked.append(request)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with disk.Disk("/dev/nbd0"):
        pass
    assert asked == []
    monkeypatch.setattr(fcntl, "ioctl", busy)
    with disk.Disk("/dev/nbd0") as taken, pytest.raises(BusyError, match="is in use"):
        attach(taken)
    assert asked == [SET_SOCK]
