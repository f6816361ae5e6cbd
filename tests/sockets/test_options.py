"""The options of both levels, which collide by number on Linux, and those that a pending connect uses itself."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

assert sys.platform == "linux"

import hvsock
from hvsock import (
    HV_GUID_LOOPBACK,
    HV_PROTOCOL_RAW,
    HVSOCKET_CONNECT_TIMEOUT,
    HVSOCKET_CONNECT_TIMEOUT_MAX,
    HVSOCKET_CONNECTED_SUSPEND,
    HVSOCKET_CONTAINER_PASSTHRU,
    HVSOCKET_HIGH_VTL,
)
from tests.sockets.support import FakeBroker, World, fails, pending, so_error, writable

SWITCHES = [HVSOCKET_CONTAINER_PASSTHRU, HVSOCKET_CONNECTED_SUSPEND, HVSOCKET_HIGH_VTL]


@pytest.fixture
def sock() -> Any:
    with hvsock.socket() as sock:
        yield sock


def test_the_numbers_collide() -> None:
    """So the class tells the levels apart by type; everything below holds on Linux because of it."""
    assert HV_PROTOCOL_RAW == socket.SOL_SOCKET == 1
    assert HVSOCKET_CONNECTED_SUSPEND == socket.SO_ERROR == 4


def test_so_error_is_not_connected_suspend(sock: hvsock.socket) -> None:
    sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 1)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND) == 1
    assert sock.getsockopt(1, HVSOCKET_CONNECTED_SUSPEND) == 1
    assert sock.getsockopt(1, 4) == 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # number 2, as HVSOCKET_CONTAINER_PASSTHRU
    assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU) == 0


class TestConnectTimeout:
    def test_default(self, sock: hvsock.socket) -> None:
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT) == 2_000

    def test_a_configuration_that_cannot_be_used(
        self, sock: hvsock.socket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        file = tmp_path / "config.toml"
        file.write_text("[profiles.default]\nconnect_timeout = 0", encoding="utf-8")
        monkeypatch.setenv("HVSOCK_CONFIG", str(file))
        address = (HV_GUID_LOOPBACK, hvsock.ServiceId.from_port(5005))
        with pytest.raises(OSError, match=r"config.toml: profiles.default.connect_timeout: it is sec") as caught:
            sock.connect(address)
        assert caught.value.errno == sock.connect_ex(address) == errno.EINVAL

    @pytest.mark.parametrize("value", [0, 1, 5_000, HVSOCKET_CONNECT_TIMEOUT_MAX])
    def test_set(self, sock: hvsock.socket, value: int) -> None:
        sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, value)
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT) == value

    @pytest.mark.parametrize("value", [-1, HVSOCKET_CONNECT_TIMEOUT_MAX + 1, 1 << 32, 1 << 80])
    def test_out_of_range(self, sock: hvsock.socket, value: int) -> None:
        with fails(errno.EINVAL):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, value)
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT) == 2_000

    def test_the_request_carries_it(self, fake: FakeBroker) -> None:
        for value, carried in ((None, 2_000), (0, 2_000), (123_456, 123_456)):
            with fake.connector() as sock:
                if value is not None:
                    sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECT_TIMEOUT, value)
                sock.connect_ex((HV_GUID_LOOPBACK, hvsock.ServiceId.new()))
                connection, request = fake.take()
                connection.close()
                assert request.number == carried


class TestSwitches:
    @pytest.mark.parametrize("option", SWITCHES)
    def test_set_and_reset(self, sock: hvsock.socket, option: int) -> None:
        assert sock.getsockopt(HV_PROTOCOL_RAW, option) == 0
        sock.setsockopt(HV_PROTOCOL_RAW, option, 1)
        assert sock.getsockopt(HV_PROTOCOL_RAW, option) == 1
        assert [sock.getsockopt(HV_PROTOCOL_RAW, one) for one in SWITCHES].count(1) == 1
        sock.setsockopt(HV_PROTOCOL_RAW, option, 0)
        assert sock.getsockopt(HV_PROTOCOL_RAW, option) == 0

    def test_as_a_ulong(self, sock: hvsock.socket) -> None:
        for value in (struct.pack("<I", 7), bytearray(struct.pack("<I", 7)), memoryview(struct.pack("<I", 7))):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, value)
            assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND) == 7
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 4) == struct.pack("<I", 7)
        assert sock.getsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 16) == struct.pack("<I", 7)

    @pytest.mark.parametrize("value", [b"", b"\1", b"12345678"])
    def test_not_a_ulong(self, sock: hvsock.socket, value: bytes) -> None:
        with fails(errno.EINVAL):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, value)

    @pytest.mark.parametrize("value", ["1", None, 1.0, [1]])
    def test_of_another_type(self, sock: hvsock.socket, value: Any) -> None:
        with pytest.raises(TypeError):
            sock.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, value)

    @pytest.mark.parametrize("option", [0, 3, 16, 1 << 20])
    def test_unknown(self, sock: hvsock.socket, option: int) -> None:
        for act in (
            lambda: sock.getsockopt(HV_PROTOCOL_RAW, option),
            lambda: sock.setsockopt(HV_PROTOCOL_RAW, option, 1),
        ):
            with fails(errno.ENOPROTOOPT):
                act()

    def test_the_accepted_end_shows_them(self, world: World) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh() as connector:
            connector.setsockopt(HV_PROTOCOL_RAW, HVSOCKET_CONNECTED_SUSPEND, 1)
            connector.connect((HV_GUID_LOOPBACK, service_id))
            accepted, _ = listener.accept()
            with accepted:
                assert [accepted.getsockopt(HV_PROTOCOL_RAW, one) for one in SWITCHES] == [0, 1, 0]


class TestStandardOptions:
    def test_bytes_form(self, sock: hvsock.socket) -> None:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE, 4) == struct.pack("i", socket.SOCK_STREAM)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR, 4) == bytes(4)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4) == struct.pack(
            "i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        )

    def test_none_with_a_length(self, sock: hvsock.socket) -> None:
        with fails(
            errno.ENOPROTOOPT, errno.ENODEV, errno.EPERM, errno.EINVAL, errno.EFAULT
        ):  # the kernel's business
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, None, 4)

    def test_levels_of_other_protocols(self, sock: hvsock.socket) -> None:
        with fails(errno.EOPNOTSUPP):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class TestBuffers:
    """The send buffer is at its minimum while a connect is pending; the program must never meet that."""

    DEFAULT = "default"

    @pytest.mark.parametrize("size", [DEFAULT, 0, 9_000, 50_000, 1 << 30])
    @pytest.mark.parametrize("blocking", [True, False])
    def test_the_size_set_before_is_kept(self, world: World, size: Any, blocking: bool) -> None:
        listener, service_id = world.loopback()
        with listener, world.fresh(blocking=blocking) as sock:
            if size != self.DEFAULT:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            sock.connect_ex((HV_GUID_LOOPBACK, service_id))
            assert writable(sock)
            assert so_error(sock) == 0
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before

    def test_beyond_the_limit_for_users(self, fake: FakeBroker) -> None:
        """SO_SNDBUFFORCE goes there; the root of a container may not use it."""
        with fake.connector() as sock:
            try:
                sock.setsockopt(socket.SOL_SOCKET, 32, 40_000_000)
            except PermissionError:
                pytest.skip("needs CAP_NET_ADMIN: run the tests as root")
            sock.connect_ex((HV_GUID_LOOPBACK, hvsock.ServiceId.new()))
            with fake.establish():
                assert so_error(sock) == 0
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 80_000_000

    @pytest.mark.parametrize("refused", [False, True])
    def test_set_while_pending(self, fake: FakeBroker, refused: bool) -> None:
        """It is what the program sees, and counts once the connect is settled; room in the buffer now would
        look like an established connection."""
        with fake.connector() as sock:
            sock.connect_ex((HV_GUID_LOOPBACK, hvsock.ServiceId.new()))
            default = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert default > 100_000
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 60_000
            assert not writable(sock, 0)
            if refused:
                fake.refuse(errno.EACCES, "no")
                assert writable(sock)
                assert so_error(sock) == errno.EACCES
            else:
                with fake.establish():
                    assert writable(sock)
                    assert so_error(sock) == 0
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 60_000

    def test_receive_buffer_while_pending(self, world: World) -> None:
        with pending(world) as (sock, _, _):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 20_000

    def test_not_a_size_while_pending(self, fake: FakeBroker) -> None:
        with fake.connector() as sock:
            sock.connect_ex((HV_GUID_LOOPBACK, hvsock.ServiceId.new()))
            with pytest.raises(TypeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, "many")

    def test_what_a_listener_accepts_has_its_sizes(self, world: World) -> None:
        service_id = hvsock.ServiceId.new()
        with world.fresh() as listener, world.fresh() as connector:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 40_000)
            listener.bind((HV_GUID_LOOPBACK, service_id))
            listener.listen()
            connector.connect((HV_GUID_LOOPBACK, service_id))
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 60_000
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 80_000
