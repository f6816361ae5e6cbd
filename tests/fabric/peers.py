"""Peers of a broker that speak its protocol by hand, and brokers with options."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import pytest

from hvsock.addresses import Address, ServiceId, VmId
from hvsock.fabric import messages, paths
from hvsock.fabric.broker.broker import Broker
from hvsock.fabric.broker.folder import FabricFolder
from hvsock.fabric.messages import Flag, Op, Request
from hvsock.sockets import accepting
from tests.waiting import PATIENCE_SECONDS

if sys.platform != "linux":
    raise ImportError("the fabric needs Linux")

T = TypeVar("T")


@contextmanager
def fails_with(code: int, text: str = "") -> Iterator[None]:
    """Requires that the body raises an OSError with that errno."""
    with pytest.raises(OSError, match=re.escape(text) if text else None) as caught:
        yield
    assert caught.value.errno == code


def control(folder: str, type_: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket that is connected to a control socket of the partition in `folder`."""
    name = paths.STREAM_SOCKET if type_ == socket.SOCK_STREAM else paths.SEQPACKET_SOCKET
    sock = socket.socket(socket.AF_UNIX, type_)
    try:
        sock.settimeout(PATIENCE_SECONDS)
        paths.at(folder, name, sock.connect)
    except BaseException:
        sock.close()
        raise
    return sock


def read_errno(sock: socket.socket) -> int:
    """The errno of the reply to a request.

    Raises:
        ConnectionResetError: there is none.
    """
    for last in (False, True):
        try:
            data = sock.recv(4096)
            break
        except ConnectionResetError:  # which comes ahead of the reply on a SOCK_SEQPACKET socket
            if last:
                raise
    if not data:
        raise ConnectionResetError
    return messages.parse_reply_header(data[: messages.REPLY_HEADER_BYTES])[0]


@dataclass
class Connector:
    """A connect by hand: pending, refused or established."""

    sock: socket.socket
    token: bytes

    def outcome(self, seconds: float = 0.0) -> int | None:
        """None while it is pending, 0 once connected, or the errno of the refusal (-1: closed without one)."""
        poll = select.poll()
        poll.register(self.sock, select.POLLOUT)
        for _, events in poll.poll(seconds * 1000):
            if not events & select.POLLERR:
                return 0
            try:
                return read_errno(self.sock)
            except ConnectionResetError:
                return -1
        return None

    def settled(self) -> int:
        """The outcome, waited for."""
        found = self.outcome(PATIENCE_SECONDS)
        assert found is not None, "the connect is still pending"
        return found

    def close(self) -> None:
        """Close the connecting end."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def start_connect(
    folder: str,
    address: tuple[str, str],
    *,
    type_: int = socket.SOCK_STREAM,
    milliseconds: int = 2000,
    flags: Flag = Flag.NONE,
) -> Connector:
    """Begin a connect from the partition in `folder`."""
    token = os.urandom(16)
    request = Request(
        Op.CONNECT, Address(VmId(address[0]), ServiceId(address[1])), type_, flags, milliseconds, token
    )
    name = paths.STREAM_SOCKET if type_ == socket.SOCK_STREAM else paths.SEQPACKET_SOCKET
    sock = socket.socket(socket.AF_UNIX, type_)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        sock.settimeout(PATIENCE_SECONDS)
        paths.at(folder, name, sock.connect)
        sock.setblocking(False)
        assert sock.send(request.pack()) == messages.REQUEST_BYTES
    except BaseException:
        sock.close()
        raise
    return Connector(sock, token)


def take(listener: socket.socket) -> tuple[socket.socket, messages.Courier]:
    """Accept a connection, with what came with it; from a Hyper-V socket or a bare one."""
    while True:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        assert poll.poll(PATIENCE_SECONDS * 1000), "there is nothing to accept"
        link, _ = socket.socket.accept(listener)
        with link:
            link.settimeout(0)
            found = accepting.take(link)
        if found is not None:
            return socket.socket(fileno=found.descriptor), found.courier


def ended(sock: socket.socket, seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether the other end of `sock` closes within that time, with whatever it sent before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            if not sock.recv(65536):
                return True
        except TimeoutError:
            return False
        except OSError:
            return True
    return False


@contextmanager
def running(path: str, **options: Any) -> Iterator[Broker]:
    """A broker in a thread, with the options of :class:`FabricFolder`."""
    folder = FabricFolder(path, **options)
    try:
        broker = Broker(folder)
    except BaseException:
        folder.close()
        raise
    thread = threading.Thread(target=broker.run, name="broker under test")
    thread.start()
    try:
        yield broker
    finally:
        broker.stop()
        thread.join()
        broker.close()


@contextmanager
def open_folder() -> Iterator[str]:
    """A temporary folder that every user may go through, which pytest's are not."""
    path = tempfile.mkdtemp(prefix="hvsock-test-")
    try:
        os.chmod(path, 0o755)
        yield path
    finally:
        shutil.rmtree(path)
