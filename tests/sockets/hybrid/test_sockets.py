"""The class of sockets over VMMs' Unix sockets, against VMMs played by threads."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import select
import socket as stdlib
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import hvsock
from hvsock import HV_GUID_CHILDREN, HV_GUID_LOOPBACK, HV_GUID_PARENT, HV_GUID_WILDCARD, ServiceId, VmId
from hvsock.addresses import SERVICE_WILDCARD
from hvsock.config.settings import vm_id_of_path
from hvsock.hybrid.profiles import PROFILES, Profile

assert sys.platform == "linux"

from hvsock import names
from hvsock.machines import known
from hvsock.sockets.helpers import create_connection, create_server, wait_for_service
from hvsock.sockets.hybrid.socket import socket
from tests.hybrid.peers import guest_of, hangs_up, is_silent_after, says, until_end, vmm
from tests.sockets.hybrid.conftest import Configure

PATIENCE = 30.0
PORT = ServiceId.from_port(5005)
GUID = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
SERVED = {"5005", str(GUID)}


def id_of(folder: Path, name: str = "web01") -> VmId:
    return vm_id_of_path(str(folder / name))


def connected(folder: Path, service: ServiceId = PORT, timeout: float | None = PATIENCE) -> socket:
    sock = socket()
    try:
        sock.settimeout(timeout)
        sock.connect((id_of(folder), service))
    except BaseException:
        sock.close()
        raise
    return sock


class TestConnect:
    @pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
    @pytest.mark.parametrize("timeout", [None, PATIENCE])
    def test_each_vmm(self, profile: Profile, timeout: float | None, folder: Path, configure: Configure) -> None:
        configure(profile.name)
        with vmm(folder / "web01", guest_of(profile, SERVED)), connected(folder, timeout=timeout) as sock:
            assert sock.gettimeout() == timeout
            assert sock.getpeername() == (id_of(folder), PORT)
            assert sock.getsockname().vm_id == id_of(folder)
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            with sock.dup() as twin:
                assert twin.getpeername() == sock.getpeername()

    def test_by_guid(self, folder: Path, configure: Configure) -> None:
        configure("openvmm")
        with vmm(folder / "web01", guest_of(PROFILES["openvmm"], SERVED)), connected(folder, GUID) as sock:
            assert sock.getpeername().service_id == GUID
        configure("firecracker")
        with pytest.raises(OSError, match="firecracker takes ports alone") as caught:
            connected(folder, GUID)
        assert caught.value.errno == errno.EADDRNOTAVAIL

    def test_payload_that_comes_with_the_answer(self, folder: Path, configure: Configure) -> None:
        configure()
        with vmm(folder / "web01", says(b"OK 5005\nhello")), connected(folder) as sock:
            assert until_end(sock) == b"hello"

    @pytest.mark.parametrize(
        ("act", "code", "why"),
        [
            (hangs_up, errno.ECONNREFUSED, "closed without an answer"),
            (says(b"NO 1\n"), errno.ECONNREFUSED, "it answered 'NO 1'"),
            (says(b"OK 5"), errno.ECONNRESET, "in the midst of its answer"),
            (says(b"\xff\n"), errno.EPROTO, "does not speak as a hybrid socket does"),
            (says(b"x" * 300), errno.EPROTO, "more than 256 bytes"),
            (is_silent_after(), errno.ETIMEDOUT, "did not answer .* for {:g} s"),
            (is_silent_after(b"OK"), errno.ETIMEDOUT, "its answer stopped after 'OK' for {:g} s"),
        ],
    )
    @pytest.mark.parametrize("timeout", [None, 0, PATIENCE])
    def test_failures(
        self, act: Any, code: int, why: str, timeout: float | None, folder: Path, configure: Configure
    ) -> None:
        """Those that a time-out ends are tried with longer ones, until the VMM had its turn on a busy machine."""
        configure()
        with vmm(folder / "web01", act):
            for seconds in (0.05, 0.5, 5.0) if code == errno.ETIMEDOUT else (PATIENCE,):
                with socket() as sock:
                    sock.setsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT, int(seconds * 1000))
                    sock.settimeout(timeout)
                    with pytest.raises(OSError) as failure:  # noqa: PT011
                        connect_by_select(sock, folder) if timeout == 0 else sock.connect((id_of(folder), PORT))
                    with pytest.raises(OSError) as caught:  # noqa: PT011
                        sock.send(b"x")
                    assert caught.value.errno in (errno.ENOTCONN, errno.EPIPE)
                if re.search(why.format(seconds), str(failure.value)):
                    break
        assert re.search(why.format(seconds), str(failure.value)), failure.value
        assert failure.value.errno == code

    def test_a_configuration_that_cannot_be_used(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever uses sockets expects an OSError, of the constructor too."""
        file = folder / "config.toml"
        file.write_text("[profiles.default]\nvmm = 'none such'", encoding="utf-8")
        monkeypatch.setenv("HVSOCK_CONFIG", str(file))
        with pytest.raises(OSError, match=r"profiles\.default\.vmm") as caught:
            socket()
        assert caught.value.errno == errno.EINVAL

    def test_it_can_connect_again_after_a_failure(self, folder: Path, configure: Configure) -> None:
        configure()
        with socket() as sock:
            sock.settimeout(PATIENCE)
            number, size = sock.fileno(), sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF)
            with pytest.raises(OSError, match=r"there is no socket .*web01: is the VM running\?") as caught:
                sock.connect((id_of(folder), PORT))
            assert caught.value.errno == errno.EHOSTUNREACH
            with vmm(folder / "web01", guest_of(PROFILES["hvsock"], SERVED)):
                sock.connect((id_of(folder), PORT))
                assert sock.fileno() == number
                assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF) == size
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"
                with pytest.raises(OSError) as caught:  # noqa: PT011
                    sock.connect((id_of(folder), PORT))
                assert caught.value.errno == errno.EISCONN
                sock.shutdown(stdlib.SHUT_RDWR)

    def test_options_that_were_set_before(self, folder: Path, configure: Configure) -> None:
        configure()
        with vmm(folder / "web01", guest_of(PROFILES["hvsock"], SERVED)), socket() as sock:
            sock.settimeout(PATIENCE)
            sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 20_000)
            sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_PASSCRED, 1)
            sock.connect((id_of(folder), PORT))
            assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF) == 40_000
            assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_PASSCRED) == 1

    def test_nothing_is_ready_before_the_answer(self, folder: Path, configure: Configure) -> None:
        configure()
        answer = threading.Event()

        def act(sock: stdlib.socket) -> None:
            sock.recv(99)
            answer.wait(PATIENCE)
            sock.sendall(b"OK 5005\nhello")

        with vmm(folder / "web01", act), socket() as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.connect((id_of(folder), PORT))
            assert select.select([sock], [sock], [sock], 0.05) == ([], [], [])
            with pytest.raises(BlockingIOError) as caught:
                sock.connect((id_of(folder), PORT))
            assert caught.value.errno == errno.EALREADY
            with pytest.raises(BlockingIOError, match="pending"):
                sock.recv(1)
            answer.set()
            assert select.select([], [sock], [], PATIENCE)[1] == [sock]
            assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == 0
            sock.settimeout(PATIENCE)
            assert sock.recv(99) == b"hello"

    def test_a_time_out_of_its_own_leaves_it_pending(self, folder: Path, configure: Configure) -> None:
        configure()
        answer = threading.Event()

        def act(sock: stdlib.socket) -> None:
            sock.recv(99)
            answer.wait(PATIENCE)
            sock.sendall(b"OK 5005\n")

        with vmm(folder / "web01", act), socket() as sock:
            sock.settimeout(0.01)
            with pytest.raises(TimeoutError):
                sock.connect((id_of(folder), PORT))
            answer.set()
            sock.settimeout(PATIENCE)
            assert sock.recv(1) == b""

    @pytest.mark.parametrize(("answer", "code"), [(b"OK 5005\n", 0), (b"NO\n", errno.ECONNREFUSED)])
    def test_the_end_is_told_beside_a_process_that_was_forked_meanwhile(
        self, answer: bytes, code: int, folder: Path, configure: Configure
    ) -> None:
        configure()
        is_forked = threading.Event()

        def act(sock: stdlib.socket) -> None:
            sock.recv(99)
            is_forked.wait(PATIENCE)
            sock.sendall(answer)

        ours, childs = stdlib.socketpair()
        with ours, childs, vmm(folder / "web01", act), socket() as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.connect((id_of(folder), PORT))
            pid = os.fork()
            if pid == 0:  # it keeps its copies of all descriptors until it is told to go
                childs.recv(1)
                os._exit(0)
            try:
                is_forked.set()
                assert select.select([], [sock], [], PATIENCE)[1] == [sock]
                assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == code
            finally:
                ours.send(b"x")
                assert os.waitpid(pid, 0)[1] == 0

    def test_closing_while_it_is_pending_ends_the_handshake(self, folder: Path, configure: Configure) -> None:
        configure()
        ended = threading.Event()

        def act(sock: stdlib.socket) -> None:
            until_end(sock)
            ended.set()

        with vmm(folder / "web01", act):
            sock = socket()
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.connect((id_of(folder), PORT))
            sock.close()
            assert ended.wait(PATIENCE)

    def test_closing_after_an_answer_that_nobody_took(self, folder: Path, configure: Configure) -> None:
        configure()
        ended = threading.Event()

        def act(sock: stdlib.socket) -> None:
            sock.recv(99)
            sock.sendall(b"OK 5005\n")
            until_end(sock)
            ended.set()

        with vmm(folder / "web01", act):
            sock = socket()
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.connect((id_of(folder), PORT))
            assert select.select([], [sock.fileno()], [], PATIENCE)[1]
            sock.close()
            assert ended.wait(PATIENCE)

    def test_no_more_threads(self, folder: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
        configure()

        def start(_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        with socket() as sock, pytest.raises(OSError, match="no more threads") as caught:
            sock.connect((id_of(folder), PORT))
        assert caught.value.errno == errno.EAGAIN

    @pytest.mark.parametrize(
        ("vm_id", "code", "why"),
        [
            (HV_GUID_CHILDREN, errno.EADDRNOTAVAIL, "children is no VM with a hybrid socket"),
            (HV_GUID_PARENT, errno.EADDRNOTAVAIL, "parent is no VM with a hybrid socket"),
            (HV_GUID_LOOPBACK, errno.EADDRNOTAVAIL, "loopback is no VM with a hybrid socket"),
            (VmId.from_cid(77), errno.EHOSTUNREACH, "no VM has the id .*; see .*profiles.default.vms"),
            (VmId(GUID), errno.EHOSTUNREACH, "no VM has the id"),
        ],
    )
    def test_where_there_is_no_vm(self, vm_id: VmId, code: int, why: str, configure: Configure) -> None:
        configure()
        with socket() as sock, pytest.raises(OSError, match=why) as caught:
            sock.connect((vm_id, PORT))
        assert caught.value.errno == code

    def test_a_vm_without_a_path_is_named(self, configure: Configure) -> None:
        configure(more="[profiles.default.vms.db]\ncid=7")
        why = "the VM 'db' has no path, which hybrid sockets need; see .*profiles.default.vms"
        with socket() as sock, pytest.raises(OSError, match=why) as caught:
            sock.connect(names.resolve(("db", "5005")))
        assert caught.value.errno == errno.EHOSTUNREACH

    @pytest.mark.parametrize(
        ("more", "code", "why"),
        [
            ("guests='libvirt'", errno.EHOSTUNREACH, "virsh, which is not installed"),
            ("guests='qemu'\nqemu_users=['nobody here']", errno.EADDRNOTAVAIL, "no user 'nobody here'"),
        ],
    )
    def test_where_nobody_can_be_asked(
        self,
        more: str,
        code: int,
        why: str,
        folder: Path,
        configure: Configure,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        configure(more=more)
        monkeypatch.setenv("PATH", str(folder))
        with socket() as sock, pytest.raises(OSError, match=why) as caught:
            sock.connect((VmId(GUID), PORT))
        assert caught.value.errno == code

    def test_by_context_id(self, folder: Path, configure: Configure) -> None:
        configure(names=(), more=f"[profiles.default.vms.web01]\ncid=7\nid='{GUID}'\npath='{folder / 'web01'}'")
        with vmm(folder / "web01", guest_of(PROFILES["hvsock"], SERVED)), socket() as sock:
            sock.settimeout(PATIENCE)
            sock.connect(names.resolve("vsock://7:5005"))
            assert sock.getpeername() == (VmId.from_cid(7), PORT)

    def test_a_default_time_out(self, configure: Configure) -> None:
        configure()
        with socket() as sock:
            assert sock.getsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT) == 5000
        configure(more="connect_timeout = 0.25")
        with socket() as sock:
            assert sock.getsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_CONNECT_TIMEOUT) == 250


def connect_by_select(sock: socket, folder: Path) -> None:
    """Connect a non-blocking socket; raises what the second connect does."""
    with pytest.raises(BlockingIOError):
        sock.connect((id_of(folder), PORT))
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    assert poll.poll(PATIENCE * 1000)
    sock.connect((id_of(folder), PORT))


def test_what_it_is_not(configure: Configure) -> None:
    configure()
    with pytest.raises(hvsock.UsageError, match="partition is None"):
        socket(partition="/tmp")
    with pytest.raises(OSError, match="streams alone") as caught:
        socket(type=hvsock.SOCK_SEQPACKET)
    assert caught.value.errno == errno.ESOCKTNOSUPPORT


def call(folder: Path, name: str = "web01", service: str = "5005") -> stdlib.socket:
    """What a VMM does when its guest connects to its host."""
    sock = stdlib.socket(stdlib.AF_UNIX)
    sock.connect(f"{folder / name}_{service}")
    return sock


def listener(vm_id: VmId = HV_GUID_CHILDREN, service: ServiceId = PORT) -> socket:
    sock = socket()
    try:
        sock.bind((vm_id, service))
        sock.listen()
        sock.settimeout(PATIENCE)
    except BaseException:
        sock.close()
        raise
    return sock


class TestListen:
    @pytest.mark.parametrize("vm_id", [HV_GUID_CHILDREN, HV_GUID_WILDCARD])
    def test_all_vms(self, vm_id: VmId, folder: Path, configure: Configure) -> None:
        configure()
        with listener(vm_id) as sock:
            assert sock.getsockname() == (vm_id, PORT)
            for name in ("web02", "web01", "web02"):
                with call(folder, name) as vm:
                    accepted, peer = sock.accept()
                    with accepted:
                        assert peer == accepted.getpeername()
                        assert peer.vm_id == id_of(folder, name)
                        assert accepted.getsockname() == (id_of(folder, name), PORT)
                        vm.sendall(b"hello")
                        assert accepted.recv(99) == b"hello"
        assert not list(folder.glob("web*"))

    def test_all_vms_but_one_that_is_gone(self, folder: Path, configure: Configure) -> None:
        """A path that was given as a URL stays known to the process, after its VMM's folder is gone, too."""
        configure()
        gone = folder / "gone"
        gone.mkdir()
        with pytest.raises(OSError, match="there is no socket"):
            hvsock.create_connection(f"unix:{gone / 'vm'}?hybrid=5005", PATIENCE)
        gone.rmdir()
        with listener() as sock, call(folder):
            sock.accept()[0].close()

    def test_one_vm(self, folder: Path, configure: Configure) -> None:
        configure()
        with listener(id_of(folder, "web02")) as sock:
            assert [path.name for path in folder.glob("web*")] == ["web02_5005"]
            with call(folder, "web02"):
                sock.accept()[0].close()

    def test_by_guid(self, folder: Path, configure: Configure) -> None:
        configure(names=("web01",))
        with listener(service=GUID) as sock, call(folder, service=str(GUID)):
            sock.accept()[0].close()
        configure("firecracker")
        with pytest.raises(OSError, match="connect to ports alone") as caught:
            listener(service=GUID)
        assert caught.value.errno == errno.EADDRNOTAVAIL

    def test_a_fresh_port(self, folder: Path, configure: Configure) -> None:
        configure("firecracker", names=("web01",))
        with listener(service=SERVICE_WILDCARD) as sock:
            port = sock.getsockname().service_id.port
            assert port is not None
            assert port >= 1 << 31
            with call(folder, service=str(port)):
                sock.accept()[0].close()

    def test_readiness(self, folder: Path, configure: Configure) -> None:
        configure()
        with listener() as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.accept()
            assert select.select([sock], [], [], 0)[0] == []
            with call(folder):
                assert select.select([sock], [], [], PATIENCE)[0] == [sock]
                accepted, _ = sock.accept()
                with accepted:
                    assert accepted.gettimeout() is None
            sock.settimeout(0.01)
            with pytest.raises(TimeoutError):
                sock.accept()

    def test_shutdown_ends_an_accept(self, configure: Configure) -> None:
        configure()
        with listener() as sock:
            failures = []

            def accept() -> None:
                try:
                    sock.accept()
                except OSError as error:
                    failures.append(error.errno)

            thread = threading.Thread(target=accept)
            thread.start()
            sock.shutdown(stdlib.SHUT_RDWR)
            thread.join()
            assert failures == [errno.EINVAL]
            with pytest.raises(OSError, match="shut down"):
                sock.accept()

    def test_it_is_taken_already(self, folder: Path, configure: Configure) -> None:
        configure()
        with listener(id_of(folder, "web02")):
            with pytest.raises(OSError, match=r"somebody listens there already: .*web02_5005") as caught:
                listener()
            assert caught.value.errno == errno.EADDRINUSE
            assert [path.name for path in folder.glob("web*")] == ["web02_5005"]
        (folder / "web01_5005").write_text("")
        with pytest.raises(OSError, match="no socket: move it away") as caught:
            listener()
        assert caught.value.errno == errno.EADDRINUSE

    @pytest.mark.parametrize(
        ("vm_id", "why"),
        [
            (HV_GUID_PARENT, "nothing connects from parent to a hybrid socket"),
            (HV_GUID_LOOPBACK, "nothing connects from loopback"),
        ],
    )
    def test_what_nothing_connects_from(self, vm_id: VmId, why: str, configure: Configure) -> None:
        configure()
        with pytest.raises(OSError, match=why) as caught:
            listener(vm_id)
        assert caught.value.errno == errno.EADDRNOTAVAIL

    def test_no_vms(self, configure: Configure) -> None:
        configure(names=())
        with pytest.raises(OSError, match="no VM with a path is known"):
            listener()

    def test_listening_without_being_bound(self, configure: Configure) -> None:
        configure()
        with socket() as sock:
            with pytest.raises(OSError, match="bind the socket") as caught:
                sock.listen()
            assert caught.value.errno == errno.EINVAL
            with pytest.raises(OSError, match="does not listen"):
                sock.accept()

    def test_options_and_another_backlog(self, folder: Path, configure: Configure) -> None:
        configure()
        with listener() as sock:
            sock.listen(1)
            sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF, 20_000)
            assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF) == 40_000
            assert sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ACCEPTCONN) == 1
            assert sock.getsockopt(hvsock.HV_PROTOCOL_RAW, hvsock.HVSOCKET_HIGH_VTL) == 0
            with call(folder), sock.accept()[0] as accepted:
                assert accepted.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF) > 0

    def test_what_only_one_object_may_have(self, configure: Configure) -> None:
        configure()
        with listener() as sock:
            for act in (sock.dup, sock.detach, sock.__reduce__):
                with pytest.raises(OSError, match="share the object") as caught:
                    act()
                assert caught.value.errno == errno.EOPNOTSUPP

    def test_a_child_leaves_the_files_alone(self, folder: Path, configure: Configure) -> None:
        configure(names=("web01",))
        with listener() as sock:
            pid = os.fork()
            if not pid:
                try:
                    sock.close()
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            with call(folder):
                sock.accept()[0].close()


class TestHelpers:
    def test_urls_whatever_the_transport(self, folder: Path) -> None:
        path = folder / "v"
        with vmm(path, guest_of(PROFILES["firecracker"], SERVED)):
            with create_connection(f"unix:{path}?hybrid=5005&profile=firecracker", PATIENCE) as sock:
                assert isinstance(sock, socket)
                assert sock.getpeername() == names.resolve(f"unix:{path}?hybrid=5005")
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"
            wait_for_service(f"unix:{path}?hybrid=5005&profile=firecracker", PATIENCE)
        with create_server(f"unix:{path}?hybrid=6006") as server, call(folder, "v", "6006"):
            accepted, peer = server.accept()
            accepted.close()
            assert peer.vm_id == known.at_path(str(path), None).id

    def test_waiting_for_a_vmm(self, folder: Path, configure: Configure) -> None:
        configure()

        def connect() -> None:
            with create_connection(f"unix:{folder / 'web01'}?hybrid=5005", PATIENCE, retry=True) as sock:
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"

        thread = threading.Thread(target=connect)
        thread.start()
        time.sleep(0.02)  # so that it may fail once; what is asserted does not depend on that
        with vmm(folder / "web01", guest_of(PROFILES["hvsock"], SERVED)):
            thread.join()

    def test_asyncio(self, folder: Path, configure: Configure) -> None:
        configure()

        async def run() -> None:
            async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(await reader.readline())
                writer.close()

            server = await hvsock.start_server(echo, f"unix:{folder / 'web01'}?hybrid=6006")
            async with server:
                reader, writer = await asyncio.open_unix_connection(f"{folder / 'web01'}_6006")
                writer.write(b"hello\n")
                assert await reader.read() == b"hello\n"
                writer.close()
                with vmm(folder / "web01", guest_of(PROFILES["hvsock"], SERVED)):
                    reader, writer = await hvsock.open_connection(f"unix:{folder / 'web01'}?hybrid=5005")
                    writer.write(b"hello\n")
                    assert await reader.readline() == b"hello\n"
                    writer.close()
                    await writer.wait_closed()

        asyncio.run(run())
