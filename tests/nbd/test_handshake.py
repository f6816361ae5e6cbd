"""The client's side of NBD's handshake: against qemu-nbd, and against servers that are wrong."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

assert sys.platform == "linux"

from hvsock.errors import HvsockError, NotFoundError, ProtocolError, RefusedError, UsageError
from hvsock.nbd import process
from hvsock.nbd.disk import Disk
from hvsock.nbd.handshake import (
    MAX_NAME_BYTES,
    MAX_REPLIES,
    MAX_REPLY_BYTES,
    Ability,
    Export,
    Receive,
    Send,
    handshake,
)
from hvsock.nbd.process import negotiate
from tests.vm.support import wait_until

needs_qemu_nbd = pytest.mark.skipif(
    shutil.which("qemu-nbd") is None,
    reason="qemu-nbd is missing; as root: apt-get install -y --no-install-recommends qemu-utils",
)

GREETING: Final = b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3)
ACK: Final = 1
INFO: Final = 3


def reply(kind: int, data: bytes = b"", *, option: int = 7, magic: int = 0x3E889045565A9) -> bytes:
    return struct.pack(">QIII", magic, option, kind, len(data)) + data


def export_info(size: int, flags: int = 1) -> bytes:
    return reply(INFO, struct.pack(">HQH", 0, size, flags))


def block_info(smallest: int, longest: int = 32 << 20) -> bytes:
    return reply(INFO, struct.pack(">HIII", 3, smallest, 4096, longest))


def asked(said: bytes, name: str = "") -> tuple[Export, bytes]:
    """What a client finds that is told `said`, and what it sends."""
    steps, sent = handshake(name), b""
    try:
        step = next(steps)
        while True:
            if isinstance(step, Send):
                sent += step.data
                step = next(steps)
            else:
                piece, said = said[: step.length], said[step.length :]
                assert len(piece) == step.length, "it waits for more than there is"
                step = steps.send(piece)
    except StopIteration as end:
        assert not said, "it leaves something"
        return end.value, sent


def test_an_export() -> None:
    said = GREETING + export_info(1 << 30, 0xFFFF) + block_info(4096) + reply(INFO, b"\0\x01name") + reply(ACK)
    found, sent = asked(said, "disk ü")
    assert found == Export(1 << 30, Ability(0x7F), 4096)
    name = "disk ü".encode()
    option = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, 3)
    assert sent == struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, len(option)) + option


def test_small_blocks_are_the_kernels_smallest() -> None:
    assert asked(GREETING + block_info(1) + export_info(512) + reply(ACK))[0] == Export(512, Ability(1), 512)


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, "no NBD server"),
        (b"NBDMAGIC" + struct.pack(">QH", 0x420281861253, 0), ProtocolError, "oldstyle"),
        (b"NBDMAGICIHAVEOPT\0\0", ProtocolError, "no fixed newstyle"),
        (GREETING + reply(ACK), ProtocolError, "did not say how large"),
        (GREETING + reply(ACK, option=1), ProtocolError, "reply is none"),
        (GREETING + reply(ACK, magic=1), ProtocolError, "reply is none"),
        (GREETING + struct.pack(">QIII", 0x3E889045565A9, 7, INFO, MAX_REPLY_BYTES + 1), ProtocolError, "at most"),
        (GREETING + reply(INFO, b"\0\0short"), ProtocolError, "description of its export is none"),
        (GREETING + reply(INFO, b"\0\3short"), ProtocolError, "block sizes are none"),
        (GREETING + export_info(511) + reply(ACK), ProtocolError, "less than a block of 512"),
        (GREETING + export_info(2**63), ProtocolError, "more than a disk can have"),
        (GREETING + export_info(4096, 0), ProtocolError, "what it can do"),
        (GREETING + block_info(0), ProtocolError, "power of two"),
        (GREETING + block_info(3000), ProtocolError, "power of two"),
        (GREETING + block_info(8192), ProtocolError, "blocks have 8192"),
        (GREETING + block_info(512, 4096), ProtocolError, "4096 bytes at once"),
        (GREETING + reply(INFO, b"\0\1x") * MAX_REPLIES, ProtocolError, "more than"),
        (GREETING + reply(2**31 + 1), ProtocolError, "NBD_OPT_GO"),
        (GREETING + reply(2**31 + 2), RefusedError, "does not serve"),
        (GREETING + reply(2**31 + 5), RefusedError, "TLS"),
        (GREETING + reply(2**31 + 6, b"no \xff"), NotFoundError, "no export.*--export"),
        (GREETING + reply(2**31 + 7, b"shutting down"), ProtocolError, "code 7: it says 'shutting down'"),
    ],
)
def test_a_server_that_will_not_do(said: bytes, kind: type[HvsockError], text: str) -> None:
    with pytest.raises(kind, match=text):
        asked(said)


def test_names_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="at most"):
        next(handshake("x" * (MAX_NAME_BYTES + 1)))


def test_it_takes_nothing_of_what_comes_after_it() -> None:
    steps = handshake()
    assert next(steps) == Receive(18)


@contextlib.contextmanager
def peer(said: bytes, *, ends: bool) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        if ends:
            theirs.shutdown(socket.SHUT_WR)
        yield ours


@pytest.mark.parametrize("length", [0, 5, 18, 30])
def test_a_server_that_ends_or_is_silent(length: int) -> None:
    said = (GREETING + export_info(4096))[:length]
    with peer(said, ends=True) as sock, pytest.raises(ProtocolError, match="ended in the handshake"):
        negotiate(sock)
    with peer(said, ends=False) as sock, pytest.raises(TimeoutError, match="silent"):
        negotiate(sock, seconds=0.05)


@needs_qemu_nbd
def test_qemu_nbd(tmp_path: Path) -> None:
    disk, path = tmp_path / "disk", tmp_path / "socket"
    disk.touch()
    os.truncate(disk, 1 << 20)
    command = [
        "qemu-nbd",
        "--format=raw",
        "--persistent",
        "--read-only",
        "-x",
        "one",
        f"--socket={path}",
        str(disk),
    ]
    with subprocess.Popen(command) as server:
        try:
            with connected(path) as sock:
                found = negotiate(sock, "one")
                assert (found.size, found.block_size) == (1 << 20, 512)
                assert found.abilities & (Ability.READ_ONLY | Ability.FLUSH) == Ability.READ_ONLY | Ability.FLUSH
                sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 77, 4096, 512))  # read a block
                assert sock.recv(16, socket.MSG_WAITALL) == struct.pack(">IIQ", 0x67446698, 0, 77)
            with connected(path) as sock, pytest.raises(NotFoundError, match="no export 'two'"):
                negotiate(sock, "two")
        finally:
            server.kill()


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    wait_until(lambda: sock.connect_ex(str(path)) == 0)  # it binds before it listens
    return sock


def test_what_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="modprobe nbd"):
        Disk(str(tmp_path / "nbd0"))
    with pytest.raises(UsageError, match="no device of the kernel's NBD client"):
        Disk(os.devnull)


@pytest.mark.parametrize("seconds", [1, 2, 4])
def test_a_server_that_sends_a_little_now_and_then(seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second after the one before, and there always is something to read."""
    seconds_of_clock = itertools.count()
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: float(next(seconds_of_clock))))
    ours, servers = socket.socketpair()
    with ours, servers:
        servers.sendall(GREETING + export_info(1 << 20) + block_info(512) + reply(ACK))
        with pytest.raises(TimeoutError, match=rf"silent or slow: no handshake in {seconds} s"):
            process.negotiate(ours, "", seconds)
        assert next(seconds_of_clock) == seconds + 1
