"""create_connection and create_server of the hyperv transport, over the fake."""

from __future__ import annotations

import errno
import inspect
import sys
import threading

import pytest

from hvsock import HV_GUID_LOOPBACK, Address, ServiceId, UsageError

assert sys.platform == "linux"

from hvsock.sockets import helpers as fabric
from tests.windows.winsock import Machine, Windows

WAIT_SECONDS = 20.0
"""More than anything here takes on a busy machine."""


def test_words_and_ports(machine: Machine, host: Windows) -> None:
    with host.helpers.create_server(("loopback", "2761")) as listener:
        assert listener.getsockname() == Address(HV_GUID_LOOPBACK, ServiceId.from_port(2761))
        with host.helpers.create_connection("hvsocket://loopback/2761", WAIT_SECONDS) as sock:
            assert sock.gettimeout() == WAIT_SECONDS
            accepted, _ = listener.accept()
            accepted.close()
            assert sock.recv(1) == b""


def test_a_service_that_comes_later(host: Windows) -> None:
    service_id = ServiceId.new()
    tried = threading.Event()

    class Socket(host.socket.socket):  # type: ignore[misc, name-defined]
        def connect(self, address: object) -> None:
            try:
                super().connect(address)
            finally:
                tried.set()

    host.helpers.socket = Socket
    found: list[bytes] = []

    def connect() -> None:
        with host.helpers.create_connection((HV_GUID_LOOPBACK, service_id), WAIT_SECONDS, retry=True) as sock:
            found.append(sock.recv(5))

    thread = threading.Thread(target=connect)
    thread.start()
    assert tried.wait(WAIT_SECONDS)
    with host.helpers.create_server((HV_GUID_LOOPBACK, service_id)) as listener:
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"there")
    thread.join(WAIT_SECONDS)
    assert found == [b"there"]


def test_without_patience(host: Windows) -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        host.helpers.create_connection((HV_GUID_LOOPBACK, ServiceId.new()))
    assert caught.value.errno == errno.ECONNREFUSED
    with pytest.raises(UsageError, match="not an address: 'parent'"):
        host.helpers.create_server("parent")
    for function in (host.helpers.create_connection, host.helpers.create_server):
        with pytest.raises(UsageError, match="no partition"):
            function(("parent", "1"), partition="/run")
    with pytest.raises(UsageError, match="no partition"):
        host.helpers.resolve(("parent", "1"), "/run")


def test_they_take_the_arguments_of_the_fabric(host: Windows) -> None:
    for name in ("create_connection", "create_server", "resolve", "wait_for_service"):
        ours, theirs = getattr(host.helpers, name), getattr(fabric, name)
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
