"""`hvsock hybrid serve`: programs written for a VMM work against a VM of the fabric."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hvsock
from hvsock.addresses import ServiceId
from hvsock.fabric.embedded import EmbeddedFabric, PartitionHandle
from hvsock.hybrid.connecting import connect
from hvsock.hybrid.handshake import FIRST_NUMBER
from hvsock.hybrid.listening import listen
from hvsock.hybrid.profiles import FIRECRACKER, HVSOCK, OPENVMM, PROFILES, VHOST_DEVICE, Profile

assert sys.platform == "linux"

from tests.cli.helpers import PATIENCE, ended, invoke, invoke_json, line_of, started
from tests.cli.helpers import hvsock as run
from tests.hybrid.peers import until_end
from tests.waiting import wait_until

PORT = 5005
GUID = ServiceId("3049197c-9a4e-4fbf-9367-97f792f16994")
SERVED = [one for one in PROFILES.values() if one.has_handshake]


@pytest.fixture
def vm(hvsock_fabric: EmbeddedFabric) -> PartitionHandle:
    """A VM, in a fabric that knows a service by port and one by GUID."""
    hvsock_fabric.register("by port", ServiceId.from_port(PORT))
    hvsock_fabric.register("by GUID", GUID)
    return hvsock_fabric.create_partition("web01")


@contextlib.contextmanager
def serving(path: Path, *options: str) -> Iterator[None]:
    """`hvsock hybrid serve web01`, once it is there, until it ends by itself."""
    with started("hybrid", "serve", "web01", str(path), *options) as process:
        line = line_of(process.stderr)
        assert line == f"hvsock: web01 is at {path} (process {process.pid})\n", line
        yield
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
    assert not path.exists()


@contextlib.contextmanager
def listening(vm: PartitionHandle, service: int | str) -> Iterator[hvsock.socket]:
    """A service in the VM."""
    with hvsock.create_server(("parent", str(service)), partition=vm.folder) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def raw(path: Path, data: bytes) -> socket.socket:
    """A program that sends `data` at once."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(path))
    sock.sendall(data)
    return sock


def from_vm(vm: PartitionHandle, service: int | str) -> hvsock.socket:
    """A connection of the VM to its parent, as soon as somebody is there."""
    return hvsock.create_connection(("parent", str(service)), PATIENCE, retry=True, partition=vm.folder)


@pytest.mark.parametrize("profile", SERVED, ids=lambda one: one.name)
def test_programs_of_each_vmm_work_unchanged(profile: Profile, vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    with serving(path, "--profile", profile.name), listening(vm, PORT) as service:
        # host to VM, all at once, and half closed
        repeats = profile in (HVSOCK, VHOST_DEVICE)
        with raw(path, b"CONNECT %d\nhello" % PORT) as program:
            program.shutdown(socket.SHUT_WR)
            accepted, peer = service.accept()
            with accepted:
                assert until_end(accepted) == b"hello"
                accepted.sendall(b"answer")
            assert until_end(program) == b"OK %d\nanswer" % (PORT if repeats else FIRST_NUMBER)
            assert peer.vm_id == hvsock.HV_GUID_PARENT
        # and in pieces
        with raw(path, b"conn") as program:
            for byte in b"ect 5005\r\nx":
                program.sendall(bytes([byte]))
            accepted, _ = service.accept()
            with accepted:
                assert accepted.recv(9) == b"x"
        # VM to host
        with listen(str(path), PORT, profile=profile) as listener, from_vm(vm, PORT) as guest:
            listener.sock.settimeout(PATIENCE)
            with listener.accept() as program:
                guest.sendall(b"hello")
                guest.shutdown(socket.SHUT_WR)
                assert until_end(program) == b"hello"
                program.sendall(b"answer")
            assert until_end(guest) == b"answer"


@pytest.mark.parametrize("profile", [HVSOCK, OPENVMM], ids=lambda one: one.name)
def test_guids_both_ways(profile: Profile, vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v"
    with serving(path, "--profile", profile.name), listening(vm, GUID) as service:
        with raw(path, b"CONNECT %s\n" % GUID.encode()) as program:
            service.accept()[0].close()
            number = GUID if profile is HVSOCK else ServiceId.from_port(FIRST_NUMBER)
            assert until_end(program) == b"OK %s\n" % number.encode()
        with listen(str(path), GUID, profile=profile) as listener, from_vm(vm, GUID):
            listener.sock.settimeout(PATIENCE)
            listener.accept().close()


def test_a_port_alias_stands_for_its_service(
    hvsock_fabric: EmbeddedFabric, vm: PartitionHandle, tmp_path: Path
) -> None:
    service = hvsock_fabric.register("alias", port_alias=6006)
    path = tmp_path / "v"
    with serving(path, "--profile", "firecracker"), listening(vm, service.id) as listener:
        with connect(str(path), 6006, profile=FIRECRACKER, timeout=PATIENCE):
            listener.accept()[0].close()
        with listen(str(path), 6006, profile=FIRECRACKER) as program, from_vm(vm, service.id):
            program.sock.settimeout(PATIENCE)
            program.accept().close()


def test_what_is_refused_is_closed_without_a_word(vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v"
    requests = (
        b"CONNECT 5005\n",  # nobody listens
        b"CONNECT 99\n",  # not registered
        b"CONNECT %s\n" % GUID.encode(),  # not with this VMM
        *(b"GET / HTTP/1.1\r\n", b"\n", b"\x00" * 100, b"CONNECT " + b"0" * 100),
    )
    with serving(path, "--profile", "firecracker"):
        for request in requests:
            with raw(path, request) as program:
                assert until_end(program) == b""
        with pytest.raises(ConnectionRefusedError, match="closed without an answer"):
            connect(str(path), PORT, profile=FIRECRACKER, timeout=PATIENCE)
        with listening(vm, PORT) as service, connect(str(path), PORT, timeout=PATIENCE) as program:
            service.accept()[0].close()
            assert until_end(program) == b""


def test_one_who_says_nothing_holds_nobody_up(vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v"
    with serving(path), listening(vm, PORT) as service, raw(path, b""), raw(path, b"CONNECT 50"):
        program = connect(str(path), "by port", timeout=PATIENCE)
        accepted, _ = service.accept()
        with program, accepted:
            program.sendall(b"hello")
            assert accepted.recv(9) == b"hello"


@pytest.mark.soak
def test_a_vm_is_refused_where_nobody_listens_any_more(vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v"
    beside = tmp_path / f"v_{PORT}"

    def is_refused() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            hvsock.create_connection(("parent", str(PORT)), PATIENCE, partition=vm.folder).close()
            return False
        return True

    with serving(path):
        assert is_refused()
        with listen(str(path), PORT):
            wait_until(lambda: not is_refused())
        wait_until(is_refused)
        with socket.socket(socket.AF_UNIX) as sock:  # as a killed program leaves it
            sock.bind(str(beside))
        assert is_refused()
        with listen(str(path), PORT):
            wait_until(lambda: not is_refused())
        (tmp_path / "elsewhere").mkdir()
        with listen(str(tmp_path / "elsewhere" / "v"), PORT) as other:
            wait_until(is_refused)
            beside.symlink_to(other.path)  # a link is no listener
            with listen(str(path), GUID):  # seen by now, and so is the link
                from_vm(vm, GUID).close()
            assert is_refused()


def test_what_a_vm_may_not_have_says_what_to_do(vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v"
    with listen(str(path), 77), started("hybrid", "serve", "web01", str(path)) as process:
        line = line_of(process.stderr)
        assert "'77' is not forwarded" in line
        assert "register" in line
        assert line_of(process.stderr).startswith("hvsock: web01 is at ")


def test_a_killed_server_hinders_nobody(vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v"
    with listening(vm, PORT) as service, listen(str(path), PORT) as listener:
        listener.sock.settimeout(PATIENCE)
        for _ in range(2):
            with started("hybrid", "serve", "web01", str(path)) as process:
                assert line_of(process.stderr)
                assert line_of(process.stderr)
                run("hybrid", "serve", "web01", str(path), code=6)
                with connect(str(path), PORT, timeout=PATIENCE) as program:
                    accepted, _ = service.accept()
                    with accepted:
                        process.send_signal(signal.SIGKILL)
                        process.wait()
                        assert until_end(program) == until_end(accepted) == b""
            assert path.is_socket()
        with serving_after_listeners(path), from_vm(vm, PORT):
            listener.accept().close()
            with connect(str(path), PORT, timeout=PATIENCE):
                service.accept()[0].close()


@contextlib.contextmanager
def serving_after_listeners(path: Path) -> Iterator[None]:
    """As `serving`, where a listener is there already, which is told of first."""
    with started("hybrid", "serve", "web01", str(path)) as process:
        assert "is forwarded to unix:" in line_of(process.stderr)
        assert line_of(process.stderr).startswith("hvsock: web01 is at ")
        yield
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 0


def test_who_may_connect(vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v"
    with serving(path):
        assert path.stat().st_mode & 0o777 == 0o600
    with serving(path, "--mode", "660"):
        assert path.stat().st_mode & 0o777 == 0o660


# -- the command


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["serve", "nonesuch", "v"], 5),
        (["serve", "parent", "v"], 5),
        (["serve", "host", "v"], 5),
        (["serve", str(GUID), "v"], 5),
        (["serve", "web01", "v", "--profile", "qemu"], 2),
        (["serve", "web01", "v", "--profile", "libkrun"], 2),
        (["serve", "web01", "v", "--mode", "888"], 2),
        (["serve", "web01", "v", "--mode", "1777"], 2),
        (["serve", "web01", "nonesuch/v"], 5),
        (["connect", "v", "52"], 5),
        (["connect", "v", "nonesuch"], 5),
        (["connect", "v", str(GUID), "--profile", "firecracker"], 2),
        (["listen", "v", str(GUID), "--profile", "firecracker"], 2),
        (["listen", "nonesuch/v", "52"], 5),
    ],
)
def test_what_goes_wrong(
    arguments: list[str], code: int, vm: PartitionHandle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    invoke("hybrid", *arguments, code=code)
    assert os.listdir(tmp_path) == []


def test_a_guest_serves_none(vm: PartitionHandle) -> None:
    invoke("hybrid", "serve", "web01", "/nonesuch/v", code=2, env={"HVSOCK_TRANSPORT": "vsock"})


def test_listen_and_connect_from_the_command_line(vm: PartitionHandle, tmp_path: Path) -> None:
    path = tmp_path / "v"
    with started("hybrid", "listen", str(path), "by port", "--profile", "openvmm", "-v") as process:
        assert line_of(process.stderr) == f"hvsock: listening at {path}_{PORT}\n"
        done = run("hybrid", "connect", f"{path}_{PORT}", "0", "--profile", "libkrun", input=b"hello")
        code, out, _ = ended(process)
        assert (code, out, done.stdout) == (0, b"hello", b"")


def test_profiles_are_listed() -> None:
    assert [one["name"] for one in invoke_json("hybrid", "profiles")] == list(PROFILES)
    lines = invoke("hybrid", "profiles").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["PROFILE", *PROFILES]
