"""What the socket class does over vsock_loopback in a guest; prints one line of JSON.

Runs in a guest as root, with HVSOCK_TRANSPORT=vsock; :data:`NO_DEVICE` in one without a device.

Usage: vsock_sockets.py [CHECK...]
"""

from __future__ import annotations

import asyncio
import errno
import json
import multiprocessing
import os
import select
import signal
import socket as stdlib
import ssl
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import hvsock
from hvsock.addresses import SERVICE_WILDCARD
from hvsock.sockets.plain import to_plain

assert sys.platform == "linux"

NOBODY = hvsock.ServiceId.from_port(60_001)
"""Nothing listens there."""
OUTSIDE = hvsock.ServiceId("765037a7-09e9-45b3-ba8c-3c3b3b987da0")
"""No service of the template."""
WAIT_SECONDS = 20.0
NOT_ROOT = 65_534
CONNECT_TIMEOUT = 6
"""SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD (linux/vm_sockets.h)."""
TIMEVAL = struct.Struct("@ll")

Failure = TypeVar("Failure", bound=Exception)


@contextmanager
def listening(vm_id: str = hvsock.HV_GUID_WILDCARD, type: int = stdlib.SOCK_STREAM) -> Iterator[hvsock.socket]:
    """A listener on a port of the kernel's choice."""
    with hvsock.socket(type=type) as listener:
        listener.bind((vm_id, SERVICE_WILDCARD))
        listener.listen()
        listener.settimeout(WAIT_SECONDS)
        yield listener


@contextmanager
def connected(type: int = stdlib.SOCK_STREAM) -> Iterator[tuple[hvsock.socket, hvsock.socket]]:
    """A loopback connection: the connecting end and the accepted one."""
    with listening(type=type) as listener, hvsock.socket(type=type) as near:
        near.settimeout(WAIT_SECONDS)
        near.connect((hvsock.HV_GUID_LOOPBACK, listener.getsockname().service_id))
        far, peer = listener.accept()
        with far:
            assert peer == far.getpeername()
            far.settimeout(WAIT_SECONDS)
            yield near, far


def refused(code: int, call: Callable[..., object], *args: Any) -> str:
    """Require that a call fails with errno `code`; returns the text."""
    caught = raised(OSError, call, *args)
    assert caught.errno == code, f"{caught!r}, where {errno.errorcode[code]} had to come"
    return str(caught)


def raised(kind: type[Failure], call: Callable[..., object], *args: Any) -> Failure:
    """Require that a call raises an error of `kind`; returns it."""
    try:
        call(*args)
    except kind as error:
        return error
    raise AssertionError(f"it went well, where {kind.__name__} had to come")


def settle(sock: hvsock.socket) -> None:
    """Wait until a connect is settled."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    assert poll.poll(WAIT_SECONDS * 1000)


def check_the_family_is_the_truth() -> None:
    with hvsock.socket() as sock:
        assert sock.family == stdlib.AF_VSOCK
        assert isinstance(sock, hvsock.socket)
        assert repr(sock).startswith("<hvsock.socket")


def check_names_of_both_ends() -> None:
    with connected() as (near, far):
        service = far.getsockname().service_id
        fresh = near.getsockname().service_id
        assert fresh.port is not None
        assert fresh != service
        assert near.getsockname() == (hvsock.HV_GUID_CHILDREN, fresh)
        assert near.getpeername() == (hvsock.HV_GUID_LOOPBACK, service)
        assert far.getsockname() == (hvsock.HV_GUID_CHILDREN, service)
        assert far.getpeername() == (hvsock.HV_GUID_LOOPBACK, fresh)
        near.shutdown(stdlib.SHUT_WR)
        assert near.getpeername() == (hvsock.HV_GUID_LOOPBACK, service)


def check_unbound_sockets_have_no_names() -> None:
    with hvsock.socket() as sock:
        refused(errno.EINVAL, sock.getsockname)
        refused(errno.ENOTCONN, sock.getpeername)
        refused(errno.EINVAL, sock.listen)


def check_nobody_listens() -> None:
    for timeout in (None, WAIT_SECONDS):
        for type_ in (stdlib.SOCK_STREAM, stdlib.SOCK_SEQPACKET):
            with hvsock.socket(type=type_) as sock:
                sock.settimeout(timeout)
                refused(errno.ECONNREFUSED, sock.connect, (hvsock.HV_GUID_LOOPBACK, NOBODY))
                assert sock.connect_ex((hvsock.HV_GUID_LOOPBACK, NOBODY)) == errno.ECONNREFUSED


def check_the_other_type_listens() -> None:
    with listening(type=stdlib.SOCK_SEQPACKET) as listener, hvsock.socket() as sock:
        target = (hvsock.HV_GUID_LOOPBACK, listener.getsockname().service_id)
        refused(errno.ECONNREFUSED, sock.connect, target)


def check_a_connect_that_does_not_wait() -> None:
    with listening() as listener, hvsock.socket() as sock:
        target = (hvsock.HV_GUID_LOOPBACK, listener.getsockname().service_id)
        sock.setblocking(False)
        assert sock.connect_ex(target) == errno.EINPROGRESS
        settle(sock)
        assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == 0
        assert sock.getpeername() == target
        refused(errno.EISCONN, sock.connect, target)
        far, _ = listener.accept()
        with far:
            far.sendall(b"x")
            sock.settimeout(WAIT_SECONDS)
            assert sock.recv(9) == b"x"


def check_a_refusal_of_a_connect_that_does_not_wait() -> None:
    with hvsock.socket() as sock:
        sock.setblocking(False)
        target = (hvsock.HV_GUID_LOOPBACK, NOBODY)
        refused(errno.EINPROGRESS, sock.connect, target)
        settle(sock)
        assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == errno.ECONNREFUSED
        assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == 0
        refused(errno.EINPROGRESS, sock.connect, target)
        settle(sock)
        refused(errno.ECONNREFUSED, sock.connect, target)


def check_another_try_after_a_refusal() -> None:
    with hvsock.socket() as sock, listening() as listener:
        sock.settimeout(WAIT_SECONDS)
        sock.setsockopt(stdlib.AF_VSOCK, stdlib.SO_VM_SOCKETS_BUFFER_SIZE, 128 * 1024)
        sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, b"\1\0\0\0\2\0\0\0")
        number = sock.fileno()
        refused(errno.ECONNREFUSED, sock.connect, (hvsock.HV_GUID_LOOPBACK, NOBODY))
        sock.connect((hvsock.HV_GUID_LOOPBACK, listener.getsockname().service_id))
        assert sock.fileno() == number
        assert sock.getsockopt(stdlib.AF_VSOCK, stdlib.SO_VM_SOCKETS_BUFFER_SIZE) == 128 * 1024
        assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, 8) == b"\1\0\0\0\2\0\0\0"
        far, _ = listener.accept()
        with far:
            sock.sendall(b"at last")
            far.settimeout(WAIT_SECONDS)
            assert far.recv(99) == b"at last"


def check_a_bound_socket_keeps_its_service_when_it_connects() -> None:
    with listening() as listener, hvsock.socket() as sock:
        mine = hvsock.ServiceId.from_port(60_002)
        sock.bind((hvsock.HV_GUID_WILDCARD, mine))
        refused(errno.ECONNREFUSED, sock.connect, (hvsock.HV_GUID_LOOPBACK, NOBODY))
        sock.connect((hvsock.HV_GUID_LOOPBACK, listener.getsockname().service_id))
        far, peer = listener.accept()
        far.close()
        assert peer == (hvsock.HV_GUID_LOOPBACK, mine)
        assert sock.getsockname() == (hvsock.HV_GUID_CHILDREN, mine)


def check_addresses_that_are_none() -> None:
    with hvsock.socket() as sock:
        for vm_id in (hvsock.HV_GUID_WILDCARD, hvsock.HV_GUID_CHILDREN, hvsock.HV_GUID_BROADCAST):
            refused(errno.EADDRNOTAVAIL, sock.connect, (vm_id, NOBODY))
        refused(errno.EHOSTUNREACH, sock.connect, (str(OUTSIDE), NOBODY))
        for vm_id in (hvsock.HV_GUID_CHILDREN, hvsock.HV_GUID_BROADCAST, hvsock.HV_GUID_SILOHOST):
            refused(errno.EADDRNOTAVAIL, sock.bind, (vm_id, NOBODY))
        refused(errno.EADDRNOTAVAIL, sock.bind, (hvsock.HV_GUID_WILDCARD, hvsock.ServiceId.from_port(0xFFFFFFFF)))


def check_a_port_is_bound_once() -> None:
    with listening() as listener, hvsock.socket(type=stdlib.SOCK_SEQPACKET) as other:
        service = listener.getsockname().service_id
        for vm_id in (hvsock.HV_GUID_WILDCARD, hvsock.HV_GUID_PARENT, hvsock.HV_GUID_LOOPBACK):
            refused(errno.EADDRINUSE, other.bind, (vm_id, service))


def check_low_ports_are_not_for_everyone() -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(NOT_ROOT)
            with hvsock.socket() as sock:
                refused(errno.EACCES, sock.bind, (hvsock.HV_GUID_WILDCARD, hvsock.ServiceId.from_port(80)))
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def check_there_is_no_host_without_a_device() -> None:
    with hvsock.socket() as sock:
        text = refused(errno.ENETUNREACH, sock.connect, (hvsock.HV_GUID_PARENT, NOBODY))
        assert "no AF_VSOCK device" in text
        sibling = hvsock.VmId.from_cid(77)
        refused(errno.ENETUNREACH, sock.connect, (sibling, NOBODY))
        text = refused(errno.ENETUNREACH, sock.connect, (hvsock.HV_GUID_LOOPBACK, OUTSIDE))
        assert "no AF_VSOCK device" in text
    error = raised(hvsock.NoFabricError, hvsock.resolve, ("parent", "HV Socket Demo"))
    assert "no AF_VSOCK device" in str(error)


def check_a_listener_for_the_parent_takes_nobody_else() -> None:
    for vm_id in (hvsock.HV_GUID_PARENT, hvsock.VmId.from_cid(77)):
        with listening(vm_id) as listener, hvsock.socket() as sock:
            assert listener.getsockname().vm_id == vm_id
            sock.settimeout(WAIT_SECONDS)
            sock.connect((hvsock.HV_GUID_LOOPBACK, listener.getsockname().service_id))
            listener.settimeout(0.2)
            raised(TimeoutError, listener.accept)
            assert sock.recv(1) == b""
            listener.setblocking(False)
            refused(errno.EAGAIN, listener.accept)


def check_a_listener_for_loopback() -> None:
    with listening(hvsock.HV_GUID_LOOPBACK) as listener:
        assert listener.getsockname().vm_id == hvsock.HV_GUID_LOOPBACK
        with hvsock.socket() as sock:
            sock.connect((hvsock.HV_GUID_LOOPBACK, listener.getsockname().service_id))
            listener.accept()[0].close()


def check_messages() -> None:
    with connected(stdlib.SOCK_SEQPACKET) as (near, far):
        for end, other in ((near, far), (far, near)):
            for length in (1, 5, 128 * 1024):
                message = os.urandom(length)
                end.send(message)
                end.sendall(b"next")
                assert other.recv(256 * 1024) == message
                assert other.recv(256 * 1024) == b"next"
            refused(errno.EINVAL, end.send, b"")
            refused(errno.EMSGSIZE, end.send, bytes(128 * 1024 + 1))
        near.shutdown(stdlib.SHUT_WR)
        assert far.recv(9) == b""
        refused(errno.EPIPE, near.send, b"late")


def check_a_send_after_the_own_end() -> None:
    with connected() as (near, far):
        near.shutdown(stdlib.SHUT_WR)
        refused(errno.EPIPE, near.send, b"late")
        refused(errno.EPIPE, near.sendall, b"late")
        far.sendall(b"still open")
        assert near.recv(99) == b"still open"
        near.close()
        refused(errno.EBADF, near.send, b"late")


def check_duplicates_and_descriptors() -> None:
    with connected() as (near, far):
        with near.dup() as twin:
            assert (twin.getsockname(), twin.getpeername()) == (near.getsockname(), near.getpeername())
            twin.sendall(b"1")
            assert far.recv(9) == b"1"
        own, peer = far.getsockname(), far.getpeername()
        with hvsock.socket(fileno=far.detach()) as again:
            assert (again.getsockname(), again.getpeername()) == (own, peer)
            plain = to_plain(again)
            with plain:
                assert type(plain) is stdlib.socket
                assert plain.family == stdlib.AF_VSOCK
                plain.sendall(b"2")
                assert near.recv(9) == b"2"
    with listening() as listener, hvsock.socket(fileno=listener.detach()) as again:
        assert again.getsockname().vm_id == hvsock.HV_GUID_WILDCARD
        with hvsock.socket() as sock:
            sock.connect((hvsock.HV_GUID_LOOPBACK, again.getsockname().service_id))
            again.accept()[0].close()
    left, right = stdlib.socketpair(stdlib.AF_UNIX, stdlib.SOCK_DGRAM)
    with left, right:
        refused(errno.EAFNOSUPPORT, lambda: hvsock.socket(fileno=left.fileno()))


def check_socketpair() -> None:
    left, right = hvsock.socketpair()
    with left, right, left.dup() as twin:
        assert isinstance(left, hvsock.socket)
        twin.sendall(b"x")
        assert right.recv(9) == b"x"
        twin.shutdown(stdlib.SHUT_WR)
        assert right.recv(9) == b""


def answer(sock: hvsock.socket) -> None:
    """In another process: say who one is."""
    with sock:
        sock.sendall(repr(sock.getpeername()).encode())


def check_a_socket_for_a_spawned_process() -> None:
    with connected() as (near, far):
        process = multiprocessing.get_context("spawn").Process(target=answer, args=(far,))
        process.start()
        peer = repr(far.getpeername()).encode()
        far.close()
        near.settimeout(None)
        assert near.recv(999) == peer
        process.join()


def check_options() -> None:
    with hvsock.socket() as sock:
        assert sock.getsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT) == 2000
        sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, 3000)
        assert sock.getsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT) == 3000
        refused(errno.ECONNREFUSED, sock.connect, (hvsock.HV_GUID_LOOPBACK, NOBODY))
        assert TIMEVAL.unpack(sock.getsockopt(stdlib.AF_VSOCK, CONNECT_TIMEOUT, TIMEVAL.size)) == (3, 0)
        assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR, 4) == bytes(4)
    raised(OSError, hvsock.socket, stdlib.AF_INET)
    raised(OSError, hvsock.socket, hvsock.AF_HYPERV, stdlib.SOCK_DGRAM)
    raised(OSError, hvsock.socket, hvsock.AF_HYPERV, stdlib.SOCK_STREAM, 99)
    raised(hvsock.UsageError, lambda: hvsock.socket(partition="/run/hvsock/partitions/host"))


def check_a_signal_does_not_end_a_connect() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for _ in range(30):
            with connected() as (near, far):
                near.sendall(b"x")
                assert far.recv(1) == b"x"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen


def check_asyncio() -> None:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.write_eof()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with await hvsock.start_server(upper, ("any", "60003")):

            async def one(number: int) -> None:
                reader, writer = await hvsock.open_connection("hvsocket://loopback/60003")
                writer.write(b"number %d" % number * 10_000)
                writer.write_eof()
                assert await reader.read() == b"NUMBER %d" % number * 10_000
                writer.close()
                await writer.wait_closed()

            await asyncio.gather(*(one(number) for number in range(20)))
            (error,) = await asyncio.gather(
                hvsock.open_connection("hvsocket://loopback/60001"), return_exceptions=True
            )
            assert isinstance(error, ConnectionRefusedError)

    asyncio.run(main())


def check_tls() -> None:
    def context(side: ssl._SSLMethod) -> ssl.SSLContext:
        """Without certificates: what is looked at is the way, not who is there."""
        made = ssl.SSLContext(side)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        made.maximum_version = ssl.TLSVersion.TLSv1_2
        made.set_ciphers("aNULL:@SECLEVEL=0")
        return made

    def serve(sock: hvsock.socket) -> None:
        with context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(sock, server_side=True) as wrapped:
            left = len(data)
            while left:
                piece = wrapped.recv(left)
                assert piece
                wrapped.sendall(piece)
                left -= len(piece)
            assert wrapped.recv(1) == b""

    piece_bytes = 50_000
    data = os.urandom(6 * piece_bytes)
    with connected() as (near, far):
        thread = threading.Thread(target=serve, args=(far,))
        thread.start()
        with context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(near) as wrapped:
            with wrapped.makefile("rb") as file:
                # not by two threads: ends of TLS are for one at a time
                for start in range(0, len(data), piece_bytes):
                    piece = data[start : start + piece_bytes]
                    wrapped.sendall(piece)
                    assert file.read(piece_bytes) == piece
            wrapped.unwrap().close()
        thread.join()


def check_helpers() -> None:
    def serve() -> None:
        with hvsock.create_server(("loopback", "60004")) as server:
            sock, _ = server.accept()
            with sock:
                sock.sendall(sock.recv(99))

    thread = threading.Thread(target=serve)
    thread.start()
    with hvsock.create_connection(("loopback", "60004"), WAIT_SECONDS, retry=True) as sock:
        sock.sendall(b"hello")
        assert sock.recv(99) == b"hello"
    thread.join()
    raised(hvsock.UsageError, hvsock.wait_for_service, ("loopback", "60004"), WAIT_SECONDS)


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}
NO_DEVICE = "check_there_is_no_host_without_a_device"
"""The one check that a device would fail."""
SLOW = ("check_a_socket_for_a_spawned_process", "check_asyncio", "check_tls")
"""Those that load much, which takes an emulated guest some seconds each."""


def main() -> None:
    """Run the checks that are named, or all; every one whatever became of the others."""
    results = {}
    for name, check in [(one, CHECKS[one]) for one in sys.argv[1:] or CHECKS]:
        try:
            check()
            results[name] = "passed"
        except Exception as error:
            traceback.print_exc()
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"checks": results}), flush=True)


if __name__ == "__main__":
    main()
