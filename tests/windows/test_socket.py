"""The class of the hyperv transport over the fake: the interface is that of the other transports."""

from __future__ import annotations

import errno
import inspect
import os
import socket as real
import sys
import threading
from typing import Any

import pytest

from hvsock import (
    HV_GUID_CHILDREN,
    HV_GUID_LOOPBACK,
    HV_GUID_PARENT,
    HV_GUID_WILDCARD,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECTED_SUSPEND,
    HVSOCKET_CONTAINER_PASSTHRU,
    HVSOCKET_HIGH_VTL,
    Address,
    ServiceId,
    UsageError,
    VmId,
)
from hvsock.sockets import socket as fabric

assert sys.platform == "linux"

from tests.windows.winsock import Machine, Windows

WAIT_SECONDS = 20.0
"""More than anything here takes on a busy machine."""


def listening(side: Windows, vm_id: VmId, service_id: ServiceId) -> Any:
    """A listener that waits no longer than that."""
    sock = side.socket.socket()
    sock.settimeout(WAIT_SECONDS)
    sock.bind((vm_id, service_id))
    sock.listen()
    return sock


def connected(side: Windows, vm_id: VmId, service_id: ServiceId) -> Any:
    """A connection that waits no longer than that."""
    sock = side.socket.socket()
    sock.settimeout(WAIT_SECONDS)
    sock.connect((vm_id, service_id))
    return sock


def raised(number: int, function: Any, *arguments: Any) -> OSError:
    """The error with that errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        function(*arguments)
    assert caught.value.errno == number, caught.value
    return caught.value


def test_a_guest_calls_its_host(machine: Machine, host: Windows, guest: Windows, vm: VmId) -> None:
    service_id = machine.add_service()
    with listening(host, HV_GUID_CHILDREN, service_id) as listener:
        assert listener.getsockname() == Address(HV_GUID_CHILDREN, service_id)
        with connected(guest, HV_GUID_PARENT, service_id) as sock:
            accepted, peer = listener.accept()
            with accepted:
                assert type(accepted) is host.socket.socket
                assert accepted.gettimeout() is None
                assert sock.getpeername() == Address(HV_GUID_PARENT, service_id)
                assert isinstance(sock.getpeername(), Address)
                assert peer == accepted.getpeername() == (vm, sock.getsockname().service_id)
                assert isinstance(peer.vm_id, VmId)
                # what the kernel shows of an accepted socket is another service
                assert host.stdlib.socket.getsockname(accepted)[1] != service_id
                assert accepted.getsockname() == Address(vm, service_id)
                sock.sendall(b"to the host")
                sock.shutdown(host.stdlib.SHUT_WR)
                assert accepted.makefile("rb").read() == b"to the host"
                accepted.sendall(b"back")
                assert sock.recvfrom(10) == (b"back", Address(HV_GUID_PARENT, service_id))


def test_a_host_calls_a_guest(machine: Machine, host: Windows, guest: Windows, vm: VmId) -> None:
    service_id = machine.add_service()
    with listening(guest, HV_GUID_PARENT, service_id) as listener, connected(host, vm, service_id) as sock:
        accepted, peer = listener.accept()
        accepted.close()
        assert peer.vm_id == HV_GUID_PARENT
        assert sock.getpeername() == Address(vm, service_id)
        assert sock.recv(1) == b""


def test_loopback_needs_no_registration(host: Windows) -> None:
    service_id = ServiceId.new()
    with listening(host, HV_GUID_LOOPBACK, service_id) as listener:
        with connected(host, HV_GUID_LOOPBACK, service_id) as sock:
            accepted, peer = listener.accept()
            accepted.close()
        assert (sock.fileno(), peer.vm_id) == (-1, HV_GUID_LOOPBACK)


def test_a_fresh_service(host: Windows) -> None:
    with host.socket.socket() as sock:
        sock.bind((HV_GUID_LOOPBACK, "00000000-0000-0000-0000-000000000000"))
        assert sock.getsockname().service_id != HV_GUID_WILDCARD


def test_errors_have_the_names_of_errno(machine: Machine, host: Windows, guest: Windows) -> None:
    """As over the fabric, whatever numbers Winsock has."""
    service_id = machine.add_service()
    with host.socket.socket() as sock:
        raised(errno.EINVAL, sock.getsockname)
        raised(errno.ENOTCONN, sock.getpeername)
        raised(errno.ENOTCONN, sock.shutdown, 2)
        assert "bind the socket" in str(raised(errno.EINVAL, sock.listen))
        error = raised(errno.ECONNREFUSED, sock.connect, (HV_GUID_LOOPBACK, service_id))
        assert isinstance(error, ConnectionRefusedError)
        assert error.strerror == f"nothing listens there on {service_id}"
        assert sock.connect_ex((HV_GUID_LOOPBACK, service_id)) == errno.ECONNREFUSED
        for word in (HV_GUID_WILDCARD, HV_GUID_CHILDREN, HV_GUID_PARENT):
            raised(errno.EADDRNOTAVAIL, sock.connect, (word, service_id))
        stranger = VmId.new()
        assert str(stranger) in str(raised(errno.ENETUNREACH, sock.connect, (stranger, service_id)))
        raised(errno.EADDRNOTAVAIL, sock.bind, (HV_GUID_PARENT, service_id))
        unknown = ServiceId.new()
        error = raised(errno.EACCES, sock.bind, (HV_GUID_CHILDREN, unknown))
        assert isinstance(error, PermissionError)
        assert f"hvsock service register NAME --id {unknown}" in str(error)
        sock.bind((HV_GUID_CHILDREN, service_id))
        raised(errno.EINVAL, sock.bind, (HV_GUID_CHILDREN, service_id))
        with host.socket.socket() as other:
            raised(errno.EADDRINUSE, other.bind, (HV_GUID_CHILDREN, service_id))
    for function in (sock.getsockname, sock.getpeername, sock.listen, sock.accept):
        raised(errno.EBADF, function)
    raised(errno.EBADF, sock.connect, (HV_GUID_LOOPBACK, service_id))


def test_connect_that_is_not_answered(machine: Machine, host: Windows, vm: VmId) -> None:
    """As by a guest with Linux."""
    machine.silent.add(str(vm))
    address = (vm, machine.add_service())
    with host.socket.socket() as sock:
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 1)
        error = raised(errno.ETIMEDOUT, sock.connect, address)
        assert isinstance(error, TimeoutError)
        assert "HVSOCKET_CONNECT_TIMEOUT" in str(error)
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 300_000)
        sock.settimeout(0.01)
        with pytest.raises(TimeoutError, match=r"^timed out$"):
            sock.connect(address)
        assert sock.connect_ex(address) == errno.EAGAIN
        sock.setblocking(False)
        assert isinstance(raised(errno.EINPROGRESS, sock.connect, address), BlockingIOError)
        assert sock.connect_ex(address) == errno.EINPROGRESS


def test_a_wildcard_listener_and_the_loopback(machine: Machine, host: Windows) -> None:
    """CHILDREN takes children, WILDCARD everybody."""
    service_id = machine.add_service()
    with listening(host, HV_GUID_CHILDREN, service_id), host.socket.socket() as sock:
        raised(errno.ECONNREFUSED, sock.connect, (HV_GUID_LOOPBACK, service_id))
    with listening(host, HV_GUID_WILDCARD, service_id), host.socket.socket() as sock:
        sock.connect((HV_GUID_LOOPBACK, service_id))
        raised(errno.EISCONN, sock.connect, (HV_GUID_LOOPBACK, service_id))


def test_accept_that_does_not_wait(host: Windows) -> None:
    with listening(host, HV_GUID_LOOPBACK, service_id := ServiceId.new()) as listener:
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError, match="timed out"):
            listener.accept()
        listener.setblocking(False)
        with connected(host, HV_GUID_LOOPBACK, service_id):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getblocking()


def test_close_ends_an_accept_of_another_thread(host: Windows) -> None:
    listener = host.socket.socket()
    listener.bind((HV_GUID_LOOPBACK, ServiceId.new()))
    listener.listen()
    found: list[OSError] = []

    def accept() -> None:
        try:
            listener.accept()
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=accept)
    thread.start()
    listener.close()
    thread.join(WAIT_SECONDS)
    assert [error.errno for error in found] == [errno.EBADF]


def test_options(machine: Machine, host: Windows) -> None:
    with host.socket.socket() as sock:
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 300_000)
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT) == 300_000
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 4) == (300_000).to_bytes(4, "little")
        raised(errno.EINVAL, sock.setsockopt, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 300_001)
        raised(errno.EINVAL, sock.setsockopt, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, -1)
        raised(errno.EINVAL, sock.setsockopt, HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, b"123")
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT) == 300_000
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, 0)  # the default, which no source tells of 0
        for option in (HVSOCKET_CONTAINER_PASSTHRU, HVSOCKET_CONNECTED_SUSPEND, HVSOCKET_HIGH_VTL):
            sock.setsockopt(HV_PROTOCOL_RAW, option, (1 << 32) - 1)
        assert list(machine.endpoints.values())[-1].options == {1: 2000, 2: 2**32 - 1, 4: 2**32 - 1, 8: 2**32 - 1}
        raised(errno.ENOPROTOOPT, sock.setsockopt, HV_PROTOCOL_RAW, 16, 1)
        raised(errno.ENOPROTOOPT, sock.getsockopt, HV_PROTOCOL_RAW, 16)
        with pytest.raises(TypeError, match="integers or bytes, not str"):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, "1")
        assert sock.getsockopt(host.stdlib.SOL_SOCKET, host.stdlib.SO_ERROR) == 0
        sock.setsockopt(host.stdlib.SOL_SOCKET, host.stdlib.SO_SNDBUF, 65536)


def test_what_is_accepted_survives_a_pause_as_its_listener_does(machine: Machine, host: Windows) -> None:
    service_id = ServiceId.new()
    with listening(host, HV_GUID_LOOPBACK, service_id) as listener:
        listener.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 1)
        with connected(host, HV_GUID_LOOPBACK, service_id):
            accepted, _ = listener.accept()
            with accepted, accepted.dup() as twin:
                for one in (accepted, twin):
                    assert one.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND) == 1
                    assert machine.endpoints[os.fstat(one.fileno()).st_ino].options == {4: 1}
                    assert one.getsockname().service_id == service_id


def test_handles(host: Windows) -> None:
    with listening(host, HV_GUID_LOOPBACK, service_id := ServiceId.new()) as listener:
        taken = host.socket.socket(fileno=listener.detach())
    with taken:
        assert (taken.proto, taken.family) == (1, 34)
        with connected(host, HV_GUID_LOOPBACK, service_id) as sock:
            taken.settimeout(WAIT_SECONDS)
            accepted, peer = taken.accept()
            accepted.close()
            assert peer.service_id == sock.getsockname().service_id
    with real.create_server(("127.0.0.1", 0)) as stranger:
        raised(errno.EAFNOSUPPORT, lambda: host.socket.socket(fileno=stranger.fileno()))
        assert stranger.getsockname()[0] == "127.0.0.1"


def test_creation(host: Windows) -> None:
    with host.socket.socket(-1, -1, -1) as sock:
        assert repr(sock).startswith("<hvsock.socket fd=")
    raised(errno.EAFNOSUPPORT, host.socket.socket, real.AF_INET)
    raised(errno.EPROTOTYPE, host.socket.socket, 34, real.SOCK_STREAM, 0)
    raised(errno.ESOCKTNOSUPPORT, host.socket.socket, 34, real.SOCK_DGRAM)
    with pytest.raises(UsageError, match="no partition"):
        host.socket.socket(partition="/run/hvsock/host")


def test_it_needs_windows() -> None:
    from hvsock.sockets.hyperv import socket

    error = raised(errno.EAFNOSUPPORT, socket.socket)
    assert error.strerror == "AF_HYPERV needs Windows, and Python 3.12 or newer"


def test_it_has_the_interface_of_the_fabric(host: Windows) -> None:
    """What is overridden in both takes the same arguments."""
    ours, theirs = vars(host.socket.socket), vars(fabric.socket)
    both = [name for name in ours.keys() & theirs.keys() if inspect.isfunction(ours[name])]
    assert {"__init__", "bind", "listen", "accept", "connect", "getsockname", "setsockopt", "dup"} <= set(both)
    for name in both:
        assert inspect.signature(ours[name]) == inspect.signature(theirs[name]), name
