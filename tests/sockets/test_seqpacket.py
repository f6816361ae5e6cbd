"""SOCK_SEQPACKET: messages that keep their boundaries, which Hyper-V lacks and virtio-vsock has."""

from __future__ import annotations

import errno
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import HV_GUID_LOOPBACK, SOCK_SEQPACKET, SOCK_STREAM
from tests.sockets.support import WAIT_SECONDS, Pair, World, fails, writable

MOST = 128 * 1024


@pytest.fixture(params=["fabric", "socketpair"])
def pair(world: World, request: pytest.FixtureRequest) -> Iterator[Pair]:
    near, far = world.pair(SOCK_SEQPACKET) if request.param == "fabric" else hvsock.socketpair(type=SOCK_SEQPACKET)
    with near, far:
        yield near, far


def test_boundaries(pair: Pair) -> None:
    near, far = pair
    messages = [b"a", b"bc", b"d" * 1000, b"e"]
    for message in messages:
        assert near.send(message) == len(message)
    for message in messages:
        assert far.recv(5000) == message


def test_what_does_not_fit_is_cut(pair: Pair) -> None:
    near, far = pair
    near.send(b"too long")
    near.send(b"next")
    assert far.recv(3) == b"too"
    assert far.recv(100) == b"next"


def test_the_rest_of_a_message_is_told_by_recvmsg(pair: Pair) -> None:
    near, far = pair
    near.send(b"too long")
    data, _, flags, _ = far.recvmsg(3)
    assert data == b"too"
    assert flags & socket.MSG_TRUNC


@pytest.mark.parametrize("size", [1, 4096, MOST - 1, MOST])
def test_sizes(pair: Pair, size: int) -> None:
    near, far = pair
    message = os.urandom(size)
    near.settimeout(WAIT_SECONDS)
    near.sendall(message)
    assert far.recv(2 * MOST) == message


@pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")])
def test_of_no_length(pair: Pair, empty: bytes) -> None:
    near, far = pair
    for act in (near.send, near.sendall, lambda data: near.sendmsg([data, data])):
        with fails(errno.EINVAL):
            act(empty)
    with fails(errno.EINVAL):
        near.sendmsg([])
    near.send(b"x")
    assert far.recv(10) == b"x"


def test_too_long(pair: Pair) -> None:
    near, far = pair
    for act in (near.send, near.sendall, lambda data: near.sendmsg([data[:MOST], data[MOST:]])):
        with fails(errno.EMSGSIZE):
            act(bytes(MOST + 1))
    near.send(b"x")
    assert far.recv(MOST * 2) == b"x"


def test_length_is_in_bytes(pair: Pair) -> None:
    """Also of buffers whose items are wider."""
    import array

    near, far = pair
    assert near.send(array.array("I", [1, 2, 3])) == 12
    assert len(far.recv(100)) == 12
    with fails(errno.EMSGSIZE):
        near.send(array.array("Q", [0] * (MOST // 8 + 1)))


def test_sendmsg_makes_one_message(pair: Pair) -> None:
    near, far = pair
    assert near.sendmsg([b"ab", b"", b"cd"]) == 4
    assert near.sendmsg(part for part in (b"e", b"f")) == 2
    assert far.recv(100) == b"abcd"
    assert far.recv(100) == b"ef"


def test_flags(pair: Pair) -> None:
    near, far = pair
    assert near.send(b"data", socket.MSG_DONTWAIT) == 4
    assert far.recv(10, socket.MSG_PEEK) == b"data"
    assert far.recv(10) == b"data"


def test_no_data(pair: Pair) -> None:
    near, _ = pair
    text: Any = "text"
    for act in (near.send, near.sendall):
        with pytest.raises(TypeError):
            act(text)


def test_sendfile_has_no_meaning(pair: Pair) -> None:
    near, _ = pair
    with tempfile.TemporaryFile() as file, pytest.raises(ValueError, match="SOCK_STREAM"):
        near.sendfile(file)


def test_end(pair: Pair) -> None:
    near, far = pair
    near.send(b"last")
    near.shutdown(socket.SHUT_WR)
    assert far.recv(10) == b"last"
    assert far.recv(10) == b""
    far.send(b"the other way")
    assert near.recv(100) == b"the other way"


def test_a_twin_has_the_same_checks(pair: Pair) -> None:
    near, _ = pair
    with near.dup() as twin, fails(errno.EINVAL):
        twin.send(b"")


def test_non_blocking_connect(world: World) -> None:
    listener, service_id = world.loopback(type=SOCK_SEQPACKET)
    with listener, world.fresh(type=SOCK_SEQPACKET, blocking=False) as sock:
        assert sock.connect_ex((HV_GUID_LOOPBACK, service_id)) == errno.EINPROGRESS
        assert writable(sock)
        sock.settimeout(WAIT_SECONDS)
        sock.sendall(bytes(MOST))
        with fails(errno.EMSGSIZE):
            sock.send(bytes(MOST + 1))
        accepted, _ = listener.accept()
        with accepted:
            assert len(accepted.recv(MOST)) == MOST


@pytest.mark.parametrize(("listens", "connects"), [(SOCK_STREAM, SOCK_SEQPACKET), (SOCK_SEQPACKET, SOCK_STREAM)])
def test_the_other_type_listens(world: World, listens: int, connects: int) -> None:
    listener, service_id = world.loopback(type=listens)
    with listener, world.fresh(type=connects) as sock, fails(errno.EPROTOTYPE):
        sock.connect((HV_GUID_LOOPBACK, service_id))
