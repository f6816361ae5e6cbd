"""Making sockets, and what a socket is before it is connected."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import re
import socket
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import AF_HYPERV, HV_GUID_LOOPBACK, HV_PROTOCOL_RAW, SOCK_SEQPACKET, SOCK_STREAM
from hvsock.sockets.socket import socket as hv_socket
from tests.sockets.support import World, fails


def test_a_socket_as_cpython_makes_it() -> None:
    with hvsock.socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW) as sock:
        assert isinstance(sock, socket.socket)
        assert type(sock) is hvsock.socket
        assert sock.fileno() >= 0
        assert sock.type == SOCK_STREAM
        assert sock.gettimeout() is None
        assert not sock.get_inheritable()


def test_family_is_what_the_descriptor_is() -> None:
    with hvsock.socket() as sock:
        assert sock.family == socket.AF_UNIX


@pytest.mark.parametrize("arguments", [(), (AF_HYPERV,), (-1, -1, -1), (AF_HYPERV, SOCK_STREAM)])
def test_defaults(arguments: tuple[int, ...]) -> None:
    with hvsock.socket(*arguments) as sock:
        assert sock.type == SOCK_STREAM


def test_flags_in_the_type() -> None:
    with hvsock.socket(AF_HYPERV, SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
        assert sock.type == SOCK_STREAM
        assert sock.gettimeout() == 0


@pytest.mark.parametrize("proto", [0, 2, 17])
def test_unknown_protocol(proto: int) -> None:
    """WinError 10041 is WSAEPROTOTYPE."""
    with pytest.raises(OSError, match=f"unsupported AF_HYPERV protocol: {proto}") as caught:
        hvsock.socket(AF_HYPERV, SOCK_STREAM, proto)
    assert caught.value.errno == errno.EPROTOTYPE


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET, 40, 0])
def test_unknown_family(family: int) -> None:
    with pytest.raises(OSError, match="AF_HYPERV") as caught:
        hvsock.socket(family)
    assert caught.value.errno == errno.EAFNOSUPPORT


@pytest.mark.parametrize("type_", [socket.SOCK_DGRAM, socket.SOCK_RAW, 0, 77])
def test_unknown_type(type_: int) -> None:
    with pytest.raises(OSError, match="SOCK_STREAM") as caught:
        hvsock.socket(AF_HYPERV, type_)
    assert caught.value.errno == errno.ESOCKTNOSUPPORT


def test_default_timeout_counts() -> None:
    socket.setdefaulttimeout(7)
    try:
        with hvsock.socket() as sock:
            assert sock.gettimeout() == 7
    finally:
        socket.setdefaulttimeout(None)


def test_with_block_closes() -> None:
    with hvsock.socket() as sock:
        descriptor = sock.fileno()
    assert sock.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_close_twice() -> None:
    sock = hvsock.socket()
    sock.close()
    sock.close()


def test_dropping_an_open_socket_warns_and_closes() -> None:
    sock = hvsock.socket()
    descriptor = sock.fileno()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del sock
    assert [warning.category for warning in caught] == [ResourceWarning]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


class TestFileno:
    def test_foreign_families_stay_with_the_caller(self) -> None:
        with socket.socket(socket.AF_INET) as tcp:
            with pytest.raises(OSError, match="AF_UNIX") as caught:
                hvsock.socket(fileno=tcp.fileno())
            assert caught.value.errno == errno.EAFNOSUPPORT
            os.fstat(tcp.fileno())

    def test_datagrams_stay_with_the_caller(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
            with pytest.raises(OSError, match="AF_UNIX"):
                hvsock.socket(fileno=datagrams.fileno())
            os.fstat(datagrams.fileno())

    def test_a_file_is_no_socket(self) -> None:
        reader, writer = os.pipe()
        try:
            with pytest.raises(OSError, match="non-socket") as caught:
                hvsock.socket(fileno=reader)
            assert caught.value.errno == errno.ENOTSOCK
            os.fstat(reader)
        finally:
            os.close(reader)
            os.close(writer)

    def test_negative(self) -> None:
        with pytest.raises(ValueError, match="negative"):
            hvsock.socket(fileno=-1)

    def test_not_a_number(self) -> None:
        wrong: Any = "3"
        with pytest.raises(TypeError):
            hvsock.socket(fileno=wrong)

    def test_a_connection_works_without_its_addresses(self) -> None:
        near, far = hvsock.socketpair()
        with far, hvsock.socket(fileno=near.detach()) as again:
            again.sendall(b"data")
            assert far.recv(10) == b"data"
            with pytest.raises(OSError, match="not connected") as caught:
                again.getpeername()
            assert caught.value.errno == errno.ENOTCONN
            for act in (again.connect, again.bind):
                with fails(errno.EISCONN if act == again.connect else errno.EINVAL):
                    act((HV_GUID_LOOPBACK, hvsock.ServiceId.new()))

    def test_the_arguments_beside_it_are_taken_from_the_descriptor(self) -> None:
        near, far = hvsock.socketpair(type=SOCK_SEQPACKET)
        with far, hvsock.socket(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW, near.detach()) as again:
            assert again.type == SOCK_SEQPACKET
            with pytest.raises(OSError, match="at least one byte"):
                again.send(b"")

    def test_a_listener_accepts_by_its_descriptor(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, hvsock.socket(fileno=listener.dup().detach(), partition=world.host.folder) as again:
            again.listen(5)  # event loops do that to every listener they are given
            with world.fresh() as connector:
                connector.connect((HV_GUID_LOOPBACK, service_id))
                accepted, peer = again.accept()
                with accepted:
                    assert peer == (HV_GUID_LOOPBACK, connector.getsockname().service_id)
            with pytest.raises(OSError, match="already"):
                again.bind((HV_GUID_LOOPBACK, service_id))


class TestUnconnected:
    """What a fresh socket answers; Windows and TCP say the same, but for EINVAL from recv."""

    @pytest.fixture
    def sock(self) -> Any:
        with hvsock.socket() as sock:
            yield sock

    def test_names(self, sock: hvsock.socket) -> None:
        with fails(errno.EINVAL):
            sock.getsockname()
        with fails(errno.ENOTCONN):
            sock.getpeername()

    @pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
    def test_shutdown(self, sock: hvsock.socket, how: int) -> None:
        with fails(errno.ENOTCONN):
            sock.shutdown(how)

    def test_send(self, sock: hvsock.socket) -> None:
        for act in (sock.send, sock.sendall):
            with fails(errno.ENOTCONN):
                act(b"data")

    def test_recv(self, sock: hvsock.socket) -> None:
        with fails(errno.EINVAL):
            sock.recv(1)

    def test_accept_and_listen(self, sock: hvsock.socket) -> None:
        with fails(errno.EINVAL):
            sock.accept()
        with pytest.raises(OSError, match="bind") as caught:
            sock.listen()
        assert caught.value.errno == errno.EINVAL

    def test_so_error(self, sock: hvsock.socket) -> None:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    def test_dup_and_detach(self, sock: hvsock.socket) -> None:
        with sock.dup() as twin:
            assert twin.fileno() != sock.fileno()
            assert not twin.get_inheritable()
        os.close(sock.detach())
        assert sock.fileno() == -1

    def test_repr(self, sock: hvsock.socket) -> None:
        assert re.fullmatch(r"<hvsock\.socket fd=\d+, family=\S+, type=\S+, proto=0>", repr(sock))


def test_closed_socket() -> None:
    """EBADF from everything, as from a standard socket."""
    sock = hvsock.socket()
    sock.close()
    address = (HV_GUID_LOOPBACK, hvsock.ServiceId.new())
    calls: list[Callable[[], object]] = [
        lambda: sock.bind(address),
        lambda: sock.connect(address),
        lambda: sock.listen(),
        sock.accept,
        sock.getsockname,
        sock.getpeername,
        sock.dup,
        lambda: sock.recv(1),
        lambda: sock.send(b"data"),
        lambda: sock.sendto(b"data", address),
        lambda: sock.recvfrom(1),
        lambda: sock.shutdown(socket.SHUT_WR),
        lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
        lambda: sock.getsockopt(HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT),
        lambda: sock.setsockopt(HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, 1),
        lambda: sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000),
        lambda: sock.settimeout(1),
    ]
    for call in calls:
        with fails(errno.EBADF):
            call()
    assert sock.connect_ex(address) == errno.EBADF
    assert sock.detach() == -1
    assert repr(sock).startswith("<hvsock.socket [closed] fd=-1")


def test_a_socket_is_no_data() -> None:
    with hvsock.socket() as sock:
        for act in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot pickle 'socket' object"):
                act(sock)
    with pytest.raises(TypeError):
        pickle.dumps(sock)


class TestConstants:
    """CPython's BasicHyperVTest.testHyperVConstants, and their values."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("AF_HYPERV", 34),
            ("HV_PROTOCOL_RAW", 1),
            ("HVSOCKET_CONNECT_TIMEOUT", 1),
            ("HVSOCKET_CONNECT_TIMEOUT_MAX", 300_000),
            ("HVSOCKET_CONNECTED_SUSPEND", 4),
            ("HVSOCKET_ADDRESS_FLAG_PASSTHRU", 1),
            ("HV_GUID_ZERO", "00000000-0000-0000-0000-000000000000"),
            ("HV_GUID_WILDCARD", "00000000-0000-0000-0000-000000000000"),
            ("HV_GUID_BROADCAST", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF"),
            ("HV_GUID_CHILDREN", "90DB8B89-0D35-4F79-8CE9-49EA0AC8B7CD"),
            ("HV_GUID_LOOPBACK", "E0E16197-DD56-4A10-9195-5EE7A155A838"),
            ("HV_GUID_PARENT", "A42E7CDA-D03F-480C-9CC2-A4DE20ABB878"),
        ],
    )
    def test_cpython_has_it(self, name: str, value: object) -> None:
        assert getattr(hvsock, name) == value

    def test_guids_are_text(self) -> None:
        assert isinstance(hvsock.HV_GUID_PARENT, str)
        assert hvsock.HV_GUID_PARENT.startswith("a42e")


class TestSubclass:
    """Programs derive from the class as they do from the standard one."""

    class Standard(hv_socket):
        """With the signature that subclasses of socket.socket have."""

        made = 0

        def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            super().__init__(family, type, proto, fileno)
            self.__class__.made += 1
            self.calls: list[str] = []

        def send(self, *arguments: Any) -> int:
            self.calls.append("send")
            return super().send(*arguments)

        def recv(self, *arguments: Any) -> bytes:
            self.calls.append("recv")
            return super().recv(*arguments)

    def test_dup_has_the_same_class(self) -> None:
        made = self.Standard.made
        with self.Standard() as sock, sock.dup() as twin:
            assert type(twin) is self.Standard
        assert self.Standard.made == made + 2

    def test_overrides_are_called(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HVSOCK_DIR", world.fabric.folder)
        listener, service_id = world.loopback()
        with listener, self.Standard() as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.connect((HV_GUID_LOOPBACK, service_id))
            sock.settimeout(20)
            sock.send(b"data")
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.recv(10) == b"data"
                accepted.send(b"answer")
                assert sock.recv(10) == b"answer"
            assert sock.calls == ["send", "recv"]

    def test_accept_gives_plain_hyperv_sockets(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """As the standard accept does, which cannot know how to make others."""
        monkeypatch.setenv("HVSOCK_DIR", world.fabric.folder)
        with self.Standard() as listener, world.fresh() as connector:
            listener.bind((HV_GUID_LOOPBACK, hvsock.HV_GUID_ZERO))
            listener.listen()
            connector.connect(listener.getsockname())
            accepted, _ = listener.accept()
            with accepted:
                assert type(accepted) is hvsock.socket

    def test_seqpacket_checks_come_first(self) -> None:
        near, far = hvsock.socketpair(type=SOCK_SEQPACKET)
        with far, self.Standard(fileno=near.detach()) as sock:
            assert sock.send(b"message") == 7
            assert sock.calls == ["send"]
            with pytest.raises(OSError, match="at least one byte"):
                sock.send(b"")
