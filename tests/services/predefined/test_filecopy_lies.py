"""File copy from a guest that lies: the host writes nothing outside of the target, holds nothing, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

assert sys.platform == "linux"

from hvsock.addresses import ServiceId
from hvsock.constants import GUEST_SERVICE_INTERFACE
from hvsock.errors import HvsockError, LostError, NegotiationError, ProtocolError, RefusedError
from hvsock.services.caller import Caller
from hvsock.services.predefined.filecopy import channel as channel_module
from hvsock.services.predefined.filecopy.channel import MIN_RATE, Channel
from hvsock.services.predefined.filecopy.copying import Outcome, copy_from
from hvsock.services.predefined.filecopy.frames import (
    BLOCK_BYTES,
    HEADER,
    MAX_BODY_BYTES,
    RESUME_BYTES,
    Failure,
    Kind,
    Meta,
    Overwrite,
    Plan,
    error_frame,
    error_of,
    frame,
    hello,
    number_frame,
)
from hvsock.services.predefined.filecopy.receiving import Limits, Receiver
from hvsock.services.predefined.filecopy.sending import Sender
from hvsock.services.predefined.filecopy.walking import MAX_DEPTH
from hvsock.services.serving import RawService, serve
from hvsock.testing.fabric import fabric
from tests.support import sample

SERVICE = ServiceId.from_port(GUEST_SERVICE_INTERFACE.port)
META = Meta(b"root", 0o644, 0)
PLAN = Plan(1, 1).to_frame()
ROOT = replace(META, mode=0o755).to_frame(Kind.FOLDER)
LEAVE, FINISH, ALIVE = frame(Kind.LEAVE), frame(Kind.FINISH), frame(Kind.ALIVE)
EMPTY_CRC = number_frame(Kind.TAIL, 0)


def a_file(name: bytes, data: bytes = b"", size: int | None = None, **changes: Any) -> bytes:
    """A small file of a liar: announced with `size`, and with the checksum of nothing."""
    meta = replace(META, name=name, size=len(data) if size is None else size, **changes)
    blocks = [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]
    return meta.to_frame(Kind.FILE) + b"".join(frame(Kind.DATA, one) for one in blocks) + EMPTY_CRC


def raw_meta(kind: Kind, name: bytes, size: int = 0, mode: int = 0o644, target: bytes = b"") -> bytes:
    """An entry as no sender of ours would make it."""
    body = struct.pack("!IqQ", mode, 0, size)
    if kind is Kind.LINK:
        body += struct.pack("!H", len(name))
    return HEADER.pack(kind, len(body + name + target)) + body + name + target


def told(said: bytes, folder: Path, **options: Any) -> Any:
    """Receive what a guest says, into `folder`; returns what the receiver does."""
    near, far = socket.socketpair()

    def say() -> None:
        with near, contextlib.suppress(OSError):
            near.sendall(said)
            near.shutdown(socket.SHUT_WR)
            while near.recv(65536):
                pass

    thread = threading.Thread(target=say)
    thread.start()
    try:
        with far:
            return received(Channel(far), folder, **options)
    finally:
        thread.join()


def received(channel: Channel, folder: Path, **options: Any) -> Any:
    """Receive what comes, into `folder`; returns what the receiver does."""
    descriptor = os.open(folder, os.O_RDONLY)
    defaults: dict[str, Any] = {"overwrite": Overwrite.REFUSE, "limits": Limits(), "mode_mask": 0o755}
    try:
        with contextlib.closing(Receiver(channel, descriptor, b"copy", **{**defaults, **options})) as one:
            return one.run()
    finally:
        os.close(descriptor)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """The folder that the operator named; nothing else in the world changes."""
    folder = tmp_path / "target"
    folder.mkdir()
    (tmp_path / "precious").write_bytes(b"mine")
    (folder / "to-precious").symlink_to(tmp_path / "precious")
    (folder / "to-above").symlink_to(tmp_path)
    yield folder
    assert sorted(os.listdir(tmp_path)) == ["precious", "target"]
    assert (tmp_path / "precious").read_bytes() == b"mine"


NAMES = [b"", b".", b"..", b"/", b"/etc/passwd", b"../precious", b"a/b", b"a\0b", b"x" * 256, b"../../../x"]


@pytest.mark.parametrize("kind", [Kind.FILE, Kind.FOLDER, Kind.LINK])
@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere(target: Path, kind: Kind, name: bytes) -> None:
    said = PLAN + ROOT + raw_meta(kind, name, target=b"x" if kind is Kind.LINK else b"") + EMPTY_CRC
    with pytest.raises(ProtocolError):
        told(said, target)


LIES = {
    "no plan": ROOT,
    "a plan that is too short": frame(Kind.PLAN, b"x"),
    "an unknown kind": PLAN + HEADER.pack(99, 0),
    "kind zero": PLAN + HEADER.pack(0, 0),
    "a body of four gigabytes": PLAN + HEADER.pack(Kind.SKIPPED, 0xFFFFFFFF),
    "a block of four gigabytes": PLAN + META.to_frame(Kind.FILE) + HEADER.pack(Kind.DATA, 0xFFFFFFFF),
    "more than announced": PLAN + a_file(b"x", b"data", size=3),
    "much more than announced": PLAN + a_file(b"x", b"d" * (2 * BLOCK_BYTES), size=1),
    "less than announced": PLAN + a_file(b"x", b"data", size=5),
    "no tail": PLAN + META.to_frame(Kind.FILE) + FINISH,
    "an empty block": PLAN + META.to_frame(Kind.FILE) + frame(Kind.DATA),
    "a long tail": PLAN + META.to_frame(Kind.FILE) + HEADER.pack(Kind.TAIL, 5) + b"xxxxx",
    "a short tail": PLAN + META.to_frame(Kind.FILE) + HEADER.pack(Kind.TAIL, 3) + b"xxx",
    "an impossible size": PLAN + raw_meta(Kind.FILE, b"x", size=(1 << 64) - 1),
    "a folder with a size": PLAN + raw_meta(Kind.FOLDER, b"x", size=1),
    "a short entry": PLAN + frame(Kind.FILE, b"xxx"),
    "a link without a target": PLAN + ROOT + raw_meta(Kind.LINK, b"x"),
    "a link with a NUL": PLAN + ROOT + raw_meta(Kind.LINK, b"x", target=b"a\0b"),
    "a link longer than its frame": PLAN + ROOT + frame(Kind.LINK, bytes(20) + b"\xff\xff" + b"x"),
    "a link for a root": PLAN + replace(META, target=b"/etc").to_frame(Kind.LINK),
    "leaving the root": PLAN + LEAVE,
    "leaving too much": PLAN + ROOT + LEAVE + LEAVE,
    "finishing inside": PLAN + ROOT + FINISH,
    "a second root": PLAN + ROOT + LEAVE + ROOT,
    "a file beside the root": PLAN + ROOT + LEAVE + a_file(b"x"),
    "the same name twice": PLAN + ROOT + a_file(b"x") + a_file(b"x"),
    "a folder twice": PLAN + ROOT + ROOT + LEAVE + ROOT,
    "a link, and a folder of its name": PLAN
    + ROOT
    + replace(META, name=b"x", target=b"..").to_frame(Kind.LINK)
    + replace(META, name=b"x").to_frame(Kind.FOLDER),
    "too deep": PLAN + b"".join(replace(META, name=b"d").to_frame(Kind.FOLDER) for _ in range(MAX_DEPTH + 2)),
    "a question": PLAN + frame(Kind.GET, b"\0/etc/passwd"),
    "another plan": PLAN + PLAN,
    "an answer": PLAN + frame(Kind.HAVE, bytes(12)),
    "data without a file": PLAN + frame(Kind.DATA, b"data"),
    "begins where nobody asked": PLAN
    + replace(META, size=RESUME_BYTES).to_frame(Kind.FILE)
    + number_frame(Kind.FROM, RESUME_BYTES - 1),
    "a skipped text that is too long": PLAN + frame(Kind.SKIPPED, b"\xff\xff" + b"x"),
    "HTTP": b"GET / HTTP/1.1\r\nHost: host\r\n\r\n",
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_end_the_copy(target: Path, lie: str) -> None:
    with pytest.raises(ProtocolError):
        told(LIES[lie], target)
    assert not any(one.name.endswith(".part") for one in target.rglob("*"))


def test_busy_without_end(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "MAX_ALIVE", 100)
    with pytest.raises(ProtocolError, match="busy"):
        told(PLAN + ALIVE * 101, target)


def test_silence(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "STALL_SECONDS", 0.05)
    near, far = socket.socketpair()
    with near, far, pytest.raises(TimeoutError, match="sent nothing"):
        Channel(far).receive()


class Trickling(socket.socket):
    """A socket of which a byte comes at a time, each a while after the other, by a clock of the test's own."""

    now = 0.0
    pause = 100.0

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0, /) -> int:
        self.now += self.pause
        return super().recv_into(buffer, 1, flags)


@contextlib.contextmanager
def trickling(said: bytes) -> Iterator[Trickling]:
    """One, with what is said."""
    near, far = socket.socketpair()
    with near, Trickling(fileno=far.detach()) as made:
        near.sendall(said)
        yield made


def test_a_trickle_ends_the_copy() -> None:
    """Of a byte now and then, the second or third is the last; where that is off, all are taken."""
    with trickling(PLAN) as sock:
        channel = Channel(sock, MIN_RATE, clock=lambda: sock.now)
        with pytest.raises(TimeoutError, match="less than 64 bytes a second for 120 s"):
            channel.receive()
        assert sock.now == 200
    with trickling(PLAN) as sock:
        assert Channel(sock, 0, clock=lambda: sock.now).receive()[0] is Kind.PLAN


def test_a_trickle_within_a_file(target: Path) -> None:
    with trickling(PLAN + a_file(b"x", b"d" * 4000)) as sock:
        sock.pause = 0.1  # ten bytes a second
        channel = Channel(sock, MIN_RATE, clock=lambda: sock.now)
        with pytest.raises(TimeoutError, match="the same copy again goes on"):
            received(channel, target)
    assert not [one for one in os.listdir(target) if not one.startswith("to-")]


def _to_the_end(channel: Channel) -> None:
    while True:
        channel.receive()


def test_a_busy_guest_is_waited_for_and_one_that_says_nothing_else_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """ALIVE frames each five seconds keep a copy going, so many of them in all."""
    monkeypatch.setattr(channel_module, "MAX_ALIVE", 100)
    busy = (ALIVE * 50 + PLAN) * 10
    with trickling(busy) as sock:
        sock.pause = channel_module.ALIVE_SECONDS / len(ALIVE)
        channel = Channel(sock, MIN_RATE, clock=lambda: sock.now)
        assert channel.receive()[0] is Kind.PLAN
        assert channel.receive()[0] is Kind.PLAN
        with pytest.raises(TimeoutError):
            _to_the_end(channel)
        assert sock.now < 1.5 * (100 * channel_module.ALIVE_SECONDS + channel_module.STALL_SECONDS)


@pytest.mark.parametrize("size", [5, RESUME_BYTES])
def test_a_wrong_checksum(target: Path, size: int) -> None:
    said = a_file(b"x", b"d" * size)
    if size >= RESUME_BYTES:
        header = len(replace(META, name=b"x").to_frame(Kind.FILE))
        said = said[:header] + number_frame(Kind.FROM, 0) + said[header:]
    _, failures, _ = told(PLAN + ROOT + said + LEAVE + FINISH, target)
    assert failures == [Failure(b"copy/x", failures[0].reason)]
    assert "checksum" in failures[0].reason
    assert os.listdir(target / "copy") == []


def test_limits(target: Path) -> None:
    with pytest.raises(ProtocolError, match="more than 3 entries"):
        told(PLAN + ROOT + b"".join(a_file(b"%d" % one) for one in range(9)), target, limits=Limits(entries=3))
    endless = Failure(b"x", "no").to_frame(Kind.SKIPPED) * 9
    with pytest.raises(ProtocolError, match="more than 3 entries"):
        told(PLAN + ROOT + endless, target, limits=Limits(entries=3), overwrite=Overwrite.KEEP)
    with pytest.raises(ProtocolError, match="more than 10 bytes"):
        told(PLAN + a_file(b"x", size=11), target, limits=Limits(size=10))
    with pytest.raises(ProtocolError, match="a FOLDER where a file"):
        told(PLAN + ROOT, target, recursive=False)


def test_of_what_is_left_out_the_first_is_told(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that leaves out a million files does not fill the host's memory."""
    monkeypatch.setattr("hvsock.services.predefined.filecopy.receiving.MAX_FAILURES", 5)
    skipped = Failure(b"x", "no").to_frame(Kind.SKIPPED) * 9
    _, _, left_out = told(PLAN + ROOT + skipped + LEAVE + FINISH, target)
    assert left_out == [Failure(b"copy/x", "no")] * 5


def test_failures_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a guest that has received."""
    monkeypatch.setattr("hvsock.services.predefined.filecopy.sending.MAX_FAILURES", 5)
    near, far = socket.socketpair()
    with near, far:
        near.sendall(Failure(b"x", "no").to_frame(Kind.FAILED) * 20)
        with pytest.raises(ProtocolError, match="failures without end"):
            Sender(Channel(far), lambda progress: None)._outcome([])


def test_links_of_the_copy_are_not_written_through(target: Path) -> None:
    """A link is made as it is, and what would go through it does not."""
    link = replace(META, name=b"l", target=os.fsencode(target.parent)).to_frame(Kind.LINK)
    told(PLAN + ROOT + link + LEAVE + FINISH, target)
    assert (target / "copy/l").is_symlink()
    through = replace(META, name=b"l").to_frame(Kind.FOLDER) + a_file(b"evil") + LEAVE
    for overwrite in Overwrite:
        _, failures, _ = told(PLAN + ROOT + through + LEAVE + FINISH, target, overwrite=overwrite)
        assert [one.path for one in failures] == [b"copy/l"]
    told(PLAN + ROOT + a_file(b"l") + LEAVE + FINISH, target, overwrite=Overwrite.REPLACE)
    assert (target / "copy/l").read_bytes() == b""
    assert not (target / "copy/l").is_symlink()


def test_modes_that_a_guest_may_not_set(target: Path) -> None:
    said = raw_meta(Kind.FOLDER, b"r", mode=0o7777) + raw_meta(Kind.FILE, b"x", mode=0o107777) + EMPTY_CRC
    told(PLAN + said + LEAVE + FINISH, target)
    assert [(target / one).stat().st_mode & 0o7777 for one in ("copy", "copy/x")] == [0o755, 0o755]


def test_a_part_that_is_something_else(target: Path) -> None:
    """What lies under the temporary name may be anything, from an earlier copy."""
    from hvsock.services.predefined.filecopy.placing import temporary_name

    meta = replace(META, name=b"x")
    folder = target / "copy"
    folder.mkdir()
    place = folder / temporary_name(meta).decode()
    ways: list[Callable[[], None]] = [
        lambda: place.symlink_to(target.parent / "precious"),
        lambda: os.mkfifo(place),
        lambda: os.link(target.parent / "precious", place),
        place.mkdir,
    ]
    for make in ways:
        make()
        _, failures, _ = told(PLAN + ROOT + a_file(b"x") + LEAVE + FINISH, target)
        assert [one.path for one in failures] == [b"copy/x"]
        place.rmdir() if place.is_dir() and not place.is_symlink() else place.unlink()


@settings(max_examples=sample(60, 150))
@given(
    st.lists(
        st.one_of(
            st.sampled_from([PLAN, ROOT, LEAVE, FINISH, ALIVE, EMPTY_CRC, *LIES.values()]),
            st.binary(max_size=20).map(a_file).filter(bool),
            st.tuples(st.sampled_from(sorted(MAX_BODY_BYTES)), st.binary(max_size=40)).map(
                lambda one: frame(one[0], one[1])
            ),
            st.binary(max_size=30),
        ),
        max_size=8,
    )
)
def test_anything(tmp_path_factory: pytest.TempPathFactory, said: list[bytes]) -> None:
    top = tmp_path_factory.mktemp("any")
    folder = top / "target"
    folder.mkdir()
    with contextlib.suppress(HvsockError, OSError):
        told(PLAN + b"".join(said), folder)
    assert os.listdir(top) == ["target"]
    assert set(os.listdir(folder)) <= {"copy"}


@given(st.binary(max_size=80))
def test_any_error_of_a_peer_is_one(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(error_of(body), (HvsockError, OSError))


def test_errors_keep_their_class() -> None:
    for error in (RefusedError("no"), LostError("gone"), OSError(28, "full")):
        made = error_of(error_frame(error)[HEADER.size :])
        assert type(made) is type(error)
        assert str(made) == str(error)


# -- over a fabric


def from_liar(tmp_path: Path, *said: bytes) -> Outcome:
    """copy_from of a guest that says the one after each frame that it gets."""

    class Liar(RawService, name=GUEST_SERVICE_INTERFACE.name, port=GUEST_SERVICE_INTERFACE.port):
        async def handle(self, caller: Caller, connection: Any) -> None:
            loop = asyncio.get_running_loop()
            for one in said:
                await loop.sock_recv(connection, 65536)
                await loop.sock_sendall(connection, one)
            while await loop.sock_recv(connection, 65536):
                pass

    async def main(guest: str, host: str) -> Outcome:
        async with serve(Liar(), bind="parent", partition=guest):
            return await copy_from("web01", "/etc/passwd", tmp_path, partition=host, recursive=True)

    with fabric() as made:
        guest = made.create_partition("web01")
        made.registry.set_enabled(SERVICE, True, guest.id)
        return asyncio.run(main(guest.folder, made.host.folder))


def test_the_name_is_the_hosts_whatever_the_guest_says(tmp_path: Path) -> None:
    outcome = from_liar(tmp_path, hello((1,)), PLAN + a_file(b".bashrc") + FINISH)
    assert outcome.failures == []
    assert os.listdir(tmp_path) == ["passwd"]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.9\r\n", ProtocolError),
        (frame(Kind.HELLO, b"NOPE\0\1"), ProtocolError),
        (frame(Kind.HELLO, b"HVFC"), ProtocolError),
        (hello((1, 2)), ProtocolError),
        (hello((7,)), NegotiationError),
        (error_frame(RefusedError("no")), RefusedError),
        (PLAN, ProtocolError),
    ],
)
def test_the_wrong_beginning(tmp_path: Path, said: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        from_liar(tmp_path, said)
    assert os.listdir(tmp_path) == []
