"""Direct's keys: the hand-over, the pin, and guests that lie."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import asyncssh
import pytest

from hvsock.addresses import VmId
from hvsock.constants import DIRECT
from hvsock.errors import HvsockError, LostError, NotReadyError, ProtocolError, RefusedError, StateError
from hvsock.services.agenthood import Surroundings
from hvsock.services.caller import Caller
from hvsock.services.predefined.direct.connecting import logged_in
from hvsock.services.predefined.direct.guestkeys import outlives_boot
from hvsock.services.predefined.direct.handover import (
    MAX_LINE_BYTES,
    GuestIdentity,
    parse_question,
    question,
    read_line,
    refusal,
)
from hvsock.services.predefined.direct.hostkeys import HostKeys
from hvsock.services.predefined.direct.service import Direct
from hvsock.services.serving import RawService, raw_service, serve
from hvsock.sockets.chosen import socket
from hvsock.testing.fabric import fabric

assert sys.platform == "linux"

from tests.services.predefined.direct_guest import Guest, direct_keeper, with_guest

__all__ = ["direct_keeper"]

KEYS = [
    " ".join(asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().split()[:2]) for _ in "ab"
]
KEPT = GuestIdentity(KEYS[0], kept=True, user="root")
VM = VmId("5cb17197-90e1-4afb-b478-0426d10bfef4")


@pytest.mark.parametrize("guest", [KEPT, GuestIdentity(KEYS[1], kept=False, user="www-data")])
def test_lines_of_the_hand_over(guest: GuestIdentity) -> None:
    assert GuestIdentity.parse(guest.line()) == guest
    assert parse_question(question(guest.key)) == guest.key


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HVSOCK-DIRECT 2 kept root " + KEYS[0].encode() + b"\n",
        b"HVSOCK-DIRECT 1 always root " + KEYS[0].encode() + b"\n",
        b"HVSOCK-DIRECT 1 kept ro\x1bot " + KEYS[0].encode() + b"\n",
        b"HVSOCK-DIRECT 1 kept -oProxyCommand=x " + KEYS[0].encode() + b"\n",
        b"HVSOCK-DIRECT 1 kept root ssh-ed25519 AAAA\n",
        b"HVSOCK-DIRECT 1 kept root " + KEYS[0].encode() + b" a comment\n",
        b"HVSOCK-DIRECT 1 kept root " + KEYS[0].replace("ssh-ed25519", "ssh-rsa").encode() + b"\n",
        b"HVSOCK-DIRECT 1 kept root\n",
        b"\xff\x00\n",
    ],
)
def test_lines_that_are_none(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        GuestIdentity.parse(line)
    with pytest.raises(ProtocolError):
        parse_question(line)


def test_a_refusal_cannot_write_to_a_terminal() -> None:
    with pytest.raises(RefusedError, match=r"^the guest refuses: no \?\[2J$"):
        GuestIdentity.parse(refusal("no \x1b[2J"))
    assert len(refusal("x" * 10_000)) == MAX_LINE_BYTES


def test_the_first_key_is_pinned_and_another_is_refused(tmp_path: Path) -> None:
    """Until it is forgotten; nothing of the refused one is kept."""
    keys = HostKeys(str(tmp_path / "keys"), VM, "web01")
    keys.accept(KEPT)
    known = Path(keys.known_hosts_path).read_text()
    for kept in (True, False):
        with pytest.raises(ProtocolError, match="hvsock direct forget web01"):
            keys.accept(GuestIdentity(KEYS[1], kept=kept, user="root"))
    assert Path(keys.known_hosts_path).read_text() == known == f"{VM} {KEYS[0]}\n"
    assert keys.forget()
    assert not keys.forget()
    keys.accept(GuestIdentity(KEYS[1], kept=True, user="root"))


def test_a_key_of_one_boot_is_not_pinned(tmp_path: Path) -> None:
    keys = HostKeys(str(tmp_path / "keys"), VM, "web01")
    for key in KEYS:
        keys.accept(GuestIdentity(key, kept=False, user="root"))
        assert Path(keys.known_hosts_path).read_text() == f"{VM} {key}\n"


def test_files_are_private(tmp_path: Path) -> None:
    keys = HostKeys(str(tmp_path / "keys"), VM, "web01")
    assert keys.key_pair() == keys.key_pair()
    keys.accept(KEPT)
    for folder, _, files in os.walk(tmp_path / "keys"):
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert all(os.stat(os.path.join(folder, name)).st_mode & 0o777 == 0o600 for name in files)


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys").chmod(0o777)
    with pytest.raises(StateError, match="chmod 700"):
        HostKeys(str(tmp_path / "keys"), VM, "web01")


def test_a_damaged_key_is_told(tmp_path: Path) -> None:
    keys = HostKeys(str(tmp_path / "keys"), VM, "web01")
    Path(keys.private_path).write_text("nonsense")
    with pytest.raises(StateError, match="remove it"):
        keys.key_pair()


@pytest.mark.parametrize(
    ("kind", "outlives"),
    [("ext4", True), ("btrfs", True), ("tmpfs", False), ("rootfs", False), ("overlay", False)],
)
def test_what_outlives_a_boot(tmp_path: Path, kind: str, outlives: bool) -> None:
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = f"1 0 0:0 / / rw - proc proc rw\n2 1 {number} / /x rw,relatime shared:1 - {kind} /dev/x rw\n"
    assert outlives_boot(str(tmp_path), mounts) is outlives
    assert not outlives_boot(str(tmp_path), "")


@pytest.fixture
def state_folder(tmp_path: Path, kept: bool) -> Iterator[Path]:
    """A folder whose files outlive a boot, or do not."""
    places = [str(tmp_path), "/var/tmp", os.path.expanduser("~"), "/dev/shm"]
    found = [one for one in places if os.access(one, os.W_OK) and outlives_boot(one) is kept]
    if not found:
        kind = "on a disk" if kept else "in memory"
        pytest.skip(f"no folder is {kind} here: pytest --basetemp names one")
    with tempfile.TemporaryDirectory(prefix="hvsock-direct-", dir=found[0]) as name:
        yield Path(name)


@pytest.mark.parametrize("kept", [True, False])
def test_a_guest_that_was_made_anew(state_folder: Path, kept: bool) -> None:
    """The commands say what to do, and it helps; a guest that keeps nothing needs none of it."""

    async def main() -> None:
        with fabric() as made:
            vm = made.create_partition("web01")
            keys = HostKeys(os.path.join(made.folder, "keys"), vm.id, vm.name)
            for number in (1, 2):
                state = state_folder / str(number)
                state.mkdir()
                async with serve(Direct(Surroundings(False, str(state))), bind="parent", partition=vm.folder):
                    if number == 2 and kept:
                        with pytest.raises(ProtocolError, match="hvsock direct forget web01"):
                            async with logged_in(vm.id, keys, partition=made.host.folder):
                                pass
                        keys.forget()
                    async with logged_in(vm.id, keys, partition=made.host.folder) as connection:
                        assert (await connection.run("echo here")).stdout == "here\n"

    asyncio.run(main())


Handler = Callable[[Caller, socket], Awaitable[None]]


def lying(handler: Handler) -> RawService:
    """Direct by somebody else."""
    return raw_service(DIRECT.name, port=DIRECT.port)(handler)


def silent() -> RawService:
    """A guest that never answers."""

    async def handler(caller: Caller, connection: socket) -> None:
        while await asyncio.get_running_loop().sock_recv(connection, 4096):
            pass

    return lying(handler)


def saying(data: bytes, *, endless: bool = False) -> RawService:
    """A guest that says the same, once or for ever."""

    async def handler(caller: Caller, connection: socket) -> None:
        loop = asyncio.get_running_loop()
        await read_line(connection)
        await loop.sock_sendall(connection, data)
        while endless:
            await loop.sock_sendall(connection, data)

    return lying(handler)


def with_another_key() -> RawService:
    """A guest that has not the key it says."""

    async def handler(caller: Caller, connection: socket) -> None:
        await read_line(connection)
        await asyncio.get_running_loop().sock_sendall(connection, KEPT.line())
        another = asyncssh.generate_private_key("ssh-ed25519")
        try:
            await asyncssh.run_server(connection, config=None, server_host_keys=[another])
        except asyncssh.Error:
            return

    return lying(handler)


@pytest.mark.parametrize(
    ("service", "error"),
    [
        (silent, NotReadyError),
        (lambda: saying(b""), LostError),
        (lambda: saying(b"SSH-2.0-OpenSSH_9.9\r\n"), ProtocolError),
        (lambda: saying(b"x" * 4096, endless=True), ProtocolError),
        (lambda: saying(refusal("not now")), RefusedError),
        (lambda: saying(KEPT.line()), LostError),
        (lambda: saying(KEPT.line() + b"nonsense\n" * 5), HvsockError),
        (lambda: saying(KEPT.line() + bytes(4096), endless=True), HvsockError),
        (with_another_key, ProtocolError),
    ],
    ids=["silent", "ends", "ssh", "endless", "refuses", "ends-later", "nonsense", "endless-later", "another-key"],
)
def test_guests_that_lie(tmp_path: Path, service: Callable[[], RawService], error: type[HvsockError]) -> None:
    """Each is an error of ours that says so, within its time."""

    async def main(guest: Guest) -> None:
        seconds = 0.2 if error is NotReadyError else 20.0
        with pytest.raises(error):
            async with logged_in(guest.id, guest.keys, partition=guest.host, timeout=seconds):
                pass

    with_guest(tmp_path / "state", main, service=service)
