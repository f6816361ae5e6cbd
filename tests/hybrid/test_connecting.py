"""Connecting to VMMs with all their ways, and to what is none: each failure is specific, and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hvsock.addresses import ServiceId
from hvsock.errors import NoFabricError, NotFoundError, UsageError
from hvsock.fabric.embedded import EmbeddedFabric
from hvsock.hybrid import aio
from hvsock.hybrid.connecting import connect
from hvsock.hybrid.profiles import FIRECRACKER, HVSOCK, LIBKRUN, OPENVMM, PROFILES, VHOST_DEVICE, Profile

assert sys.platform == "linux"

from tests.hybrid.peers import guest_of, is_silent_after, one_at_a_time, says, until_end, vmm

GUID = ServiceId("999e53d4-3d5c-4c3e-8779-bed06ec056e1")
PATIENCE = 30.0
A_MOMENT = 0.05
"""Seconds for what does not answer at all."""

Connect = Callable[..., socket.socket]


def connect_in_a_loop(path: str, service: int | str, **options: object) -> socket.socket:
    """The same by asyncio; the socket blocks again."""
    sock = asyncio.run(aio.connected(path, service, **options))  # type: ignore[arg-type]
    sock.setblocking(True)
    return sock


both = pytest.mark.parametrize("connect", [connect, connect_in_a_loop], ids=["blocking", "asyncio"])
every_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


# -- what works


@both
@every_profile
def test_a_service_of_each_vmm(connect: Connect, profile: Profile, tmp_path: Path) -> None:
    with vmm(tmp_path / "v", guest_of(profile, {"52"})) as path:
        sock = connect(path, 52, profile=profile, timeout=PATIENCE)
        with sock:
            assert type(sock) is socket.socket
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            assert until_end(sock) == (b"hello, over" if profile.keeps_half_close else b"hello")


@both
@pytest.mark.parametrize("profile", [one for one in PROFILES.values() if one.guids], ids=lambda one: one.name)
def test_a_guid_where_the_vmm_takes_them(connect: Connect, profile: Profile, tmp_path: Path) -> None:
    with (
        vmm(tmp_path / "v", guest_of(profile, {str(GUID)})) as path,
        connect(path, GUID, profile=profile, timeout=PATIENCE) as sock,
    ):
        sock.sendall(b"hello")
        assert sock.recv(9) == b"hello"


@both
@pytest.mark.parametrize(
    "pieces", [[b"OK 1073741824\nhello"], [b"OK 52\nhel", b"lo"], [bytes([one]) for one in b"OK 0\r\nhello"]]
)
def test_bytes_that_come_with_the_answer_are_the_sockets(
    connect: Connect, pieces: list[bytes], tmp_path: Path
) -> None:
    with vmm(tmp_path / "v", says(*pieces)) as path, connect(path, 52, timeout=PATIENCE) as sock:
        assert until_end(sock) == b"hello"


def test_streams_of_asyncio(tmp_path: Path) -> None:
    async def talk(path: str) -> bytes:
        reader, writer = await aio.open_connection(path, "52", profile=FIRECRACKER, timeout=PATIENCE)
        writer.write(b"hello")
        found = await reader.readexactly(5)
        writer.close()
        await writer.wait_closed()
        return found

    with vmm(tmp_path / "v", guest_of(FIRECRACKER, {"52"})) as path:
        assert asyncio.run(talk(path)) == b"hello"


@both
def test_a_path_of_any_length(connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with vmm(Path("v"), says(b"OK 1\n")), connect(str(folder / "v"), 1, timeout=None) as sock:
        assert until_end(sock) == b""


@both
def test_a_name_is_looked_up(connect: Connect, hvsock_fabric: EmbeddedFabric, tmp_path: Path) -> None:
    service = hvsock_fabric.register("web")
    with vmm(tmp_path / "v", guest_of(HVSOCK, {str(service.id)})) as path:
        connect(path, "web", timeout=PATIENCE).close()
        with pytest.raises(NotFoundError):
            connect(path, "nonesuch", timeout=PATIENCE)


# -- what does not


@both
@every_profile
def test_a_service_that_is_not_there(connect: Connect, profile: Profile, tmp_path: Path) -> None:
    with vmm(tmp_path / "v", guest_of(profile, {"52"})) as path:
        if profile is LIBKRUN:  # it would be another path
            connect(path, 53, profile=profile).close()
            return
        with pytest.raises(ConnectionRefusedError, match="53"):
            connect(path, 53, profile=profile, timeout=PATIENCE)


@both
def test_nobody_is_there(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is the VM running"):
        connect(str(tmp_path / "v"), 52)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "v"))
    with pytest.raises(ConnectionRefusedError, match="the VMM that did has ended"):
        connect(str(tmp_path / "v"), 52)
    (tmp_path / "file").touch()
    with pytest.raises(ConnectionRefusedError, match="is there, and no socket"):
        connect(str(tmp_path / "file"), 52)
    with pytest.raises(NotADirectoryError) as caught:
        connect(str(tmp_path / "file" / "v"), 52)
    assert caught.value.errno == errno.ENOTDIR


@both
def test_a_queue_that_stays_full(connect: Connect, tmp_path: Path) -> None:
    path = str(tmp_path / "v")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        with pytest.raises(TimeoutError, match="queue of new connections stayed full"):
            connect(path, 52, timeout=A_MOMENT)


@both
def test_a_vmm_that_somebody_else_holds_up(connect: Connect, tmp_path: Path) -> None:
    """OpenVMM waits for the request of one client, and lets the next one wait."""
    with (
        vmm(tmp_path / "v", one_at_a_time(guest_of(OPENVMM, {"52"}))) as path,
        socket.socket(socket.AF_UNIX) as silent,
    ):
        silent.connect(path)
        with pytest.raises(TimeoutError, match=f"openvmm at {path}: it took the request and did not answer"):
            connect(path, 52, profile=OPENVMM, timeout=A_MOMENT)
        silent.close()
        connect(path, 52, profile=OPENVMM, timeout=PATIENCE).close()


@both
def test_what_cannot_be_meant_is_not_tried(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVSOCK_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="ports alone"):
        connect("/nonesuch", GUID, profile=VHOST_DEVICE)
    with pytest.raises(UsageError, match="out of range"):
        connect("/nonesuch", -1)
    with pytest.raises(NoFabricError):
        connect("/nonesuch", "a name")


def test_a_connect_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def cancel(path: str) -> None:
        task = asyncio.create_task(aio.connected(path, 52, timeout=None))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with vmm(tmp_path / "v", is_silent_after()) as path:
        asyncio.run(cancel(path))
