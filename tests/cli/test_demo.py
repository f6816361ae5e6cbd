"""`hvsock demo`, `hvsock guid`, and the clipboard."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import re
import socket as stdlib_socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvsock.cli.walkthrough import SERVICE_NAME, Walk
from hvsock.sockets.socket import socket
from tests.support import sample

assert sys.platform == "linux"

from tests.cli.helpers import PROGRAM, environment, hvsock, invoke, invoke_json

GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MIB = str(sample(8, 256))


def test_the_last_line_of_the_demo_is_its_result(tmp_path: Path) -> None:
    done = hvsock("demo", "--no-vm", "--json", "--mib", MIB, env=environment(TMPDIR=str(tmp_path)))
    value = json.loads(done.stdout.splitlines()[-1])
    assert value["ok"] is True
    assert value["transport"] == "fabric"
    assert GUID.fullmatch(value["service_id"])
    assert value["service_name"] == SERVICE_NAME
    assert value["bytes_sent"] == value["bytes_received"] > int(MIB) << 20
    assert value["sha256_match"] is True
    assert 0 < value["seconds"] < 60
    assert value["counters"]["name"] == SERVICE_NAME
    assert value["counters"]["accepted"] == value["connections"]
    assert all(step["ok"] for step in value["steps"])
    assert value["error"] is None
    assert list(tmp_path.iterdir()) == []


def test_the_demo_in_lines() -> None:
    text = invoke("demo", "--no-vm", "--mib", "1").stdout
    for words in ("Register the service", "by wildcard", "by VmId", "select", "Exchange 1 MiB", "gracefully"):
        assert words in text
    assert re.search(rf"^{SERVICE_NAME} +2 +0 +5 ", text, re.MULTILINE)
    assert text.splitlines()[-1].startswith("all well: ")


def test_the_demo_without_qemu_says_what_to_install() -> None:
    done = invoke("demo", "--json", "--mib", "1", env={"HVSOCK_QEMU": "/nonexistent/qemu"})
    value = json.loads(done.stdout)
    assert value["ok"] is True
    assert value["transport"] == "fabric"
    assert value["vm"] is None
    assert "apt-get install" in value["skipped"][0]


def test_the_demo_on_a_terminal() -> None:
    near, far = pty.openpty()
    shown = b""
    try:
        with subprocess.Popen(
            [PROGRAM, "demo", "--no-vm", "--mib", "2"], stdout=far, stdin=far, stderr=far
        ) as process:
            os.close(far)
            with contextlib.suppress(OSError):
                while data := os.read(near, 65536):
                    shown += data
            assert process.wait(30) == 0, shown
    finally:
        os.close(near)
    assert b"all well" in shown
    assert b"HV Socket Demo" in shown


class Deaf:
    """Nobody watches."""

    def begin(self, title: str) -> None:
        """Nothing."""

    def progress(self, done: int, total: int) -> None:
        """Nothing."""

    def end(self, title: str, found: str, ok: bool, seconds: float) -> None:
        """Nothing."""


def walk() -> dict[str, Any]:
    return Walk(Deaf(), 1 << 20).run()


def test_the_demo_notices_a_payload_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(self: socket, buffer: memoryview, *rest: Any) -> int:
        count = stdlib_socket.socket.recv_into(self, buffer, *rest)
        if count > 5000:
            buffer[4999] ^= 1
        return count

    monkeypatch.setattr(socket, "recv_into", spoilt, raising=False)
    value = walk()
    assert value["ok"] is False
    assert value["sha256_match"] is False
    assert "checksum" in value["error"]


def test_the_demo_notices_a_close_that_loses_something(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: socket) -> None:
        if not self.getblocking():  # the end that filled the connection
            with stdlib_socket.socket(fileno=os.dup(self.fileno())) as twin:
                twin.shutdown(stdlib_socket.SHUT_RDWR)
        stdlib_socket.socket.close(self)

    def short(self: socket, buffer: memoryview, *rest: Any) -> int:
        count = stdlib_socket.socket.recv_into(self, buffer, *rest)
        return count - 1 if count == 777 else count

    monkeypatch.setattr(socket, "close", hasty, raising=False)
    monkeypatch.setattr(socket, "recv_into", short, raising=False)
    monkeypatch.setattr(Walk, "_fill", _fill_short)
    value = walk()
    assert value["ok"] is False
    assert value["error"].startswith("Close gracefully: ")
    assert value["sha256_match"] is True


def _fill_short(self: Walk, sock: socket) -> tuple[bytes, int]:
    import hashlib

    sock.setblocking(False)
    data = bytes(777)
    sock.send(data)
    return hashlib.sha256(data).digest(), len(data)


def test_a_demo_that_fails_says_so_and_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    done = hvsock("demo", "--no-vm", "--json", env=environment(HVSOCK_DIR="/nonexistent"))
    assert json.loads(done.stdout)["ok"] is True  # it has a folder of its own
    monkeypatch.setattr("hvsock.fabric.embedded.EmbeddedFabric.register", _not_now)
    result = invoke_json("demo", code=1)  # with one line on standard error, too
    assert result["ok"] is False
    assert result["service_id"] is None
    assert result["error"] == "Register the service: not now"


def _not_now(*_: object, **__: object) -> None:
    raise OSError("not now")


# -- guid, clipboard


def test_guid() -> None:
    first, second = (hvsock("guid").stdout.decode() for _ in range(2))
    assert GUID.fullmatch(first.strip())
    assert first != second
    assert GUID.fullmatch(invoke_json("guid")["guid"])


def with_clipboard(tmp_path: Path) -> dict[str, str]:
    """An environment with a clipboard program like xclip: one of it stays behind, with what it inherited."""
    script = tmp_path / "xclip"
    held = tmp_path / "held"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-o*) cat {held};; *) cat > {held}; sleep 20 & echo $! > {tmp_path}/pid;; esac\n'
    )
    script.chmod(0o755)
    return environment(PATH=f"{tmp_path}:{os.environ['PATH']}", DISPLAY=":77", WAYLAND_DISPLAY="")


def test_clip_by_a_program_that_stays_behind(tmp_path: Path) -> None:
    try:
        done = hvsock("guid", "--clip", env=with_clipboard(tmp_path))
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.kill(int((tmp_path / "pid").read_text()), 9)
    assert (tmp_path / "held").read_text() == done.stdout.decode().strip()
    assert done.stderr == b"hvsock: copied to the clipboard\n"


def test_clip_by_the_terminal_where_the_program_has_no_display(tmp_path: Path) -> None:
    script = tmp_path / "xclip"
    script.write_text("#!/bin/sh\ncat > /dev/null\nexit 1\n")
    script.chmod(0o755)
    env = environment(PATH=f"{tmp_path}:{os.environ['PATH']}", DISPLAY=":77", HVSOCK_DIR=str(tmp_path / "f"))
    near, far = pty.openpty()
    try:
        done = subprocess.run(
            [PROGRAM, "service", "register", "HV Socket Demo", "--clip"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=far,
            env=env,
            start_new_session=True,  # no /dev/tty: standard error is the terminal
            timeout=30,
            check=True,
        )
        shown = os.read(near, 65536).decode()
    finally:
        os.close(near)
        os.close(far)
    encoded = base64.b64encode(done.stdout.strip()).decode()
    assert f"\x1b]52;c;{encoded}\x07" in shown
    assert "OSC 52" in shown


def test_clip_without_any_clipboard(tmp_path: Path) -> None:
    env = environment(PATH=str(tmp_path), DISPLAY="", WAYLAND_DISPLAY="", HVSOCK_DIR=str(tmp_path / "f"))
    for arguments, code in ((["guid", "--clip"], 1), (["service", "register", "a", "--clip"], 0)):
        done = subprocess.run(
            [PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=env,
            start_new_session=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == code
        assert GUID.fullmatch(done.stdout.decode().strip())
        assert b"no clipboard" in done.stderr
        assert done.stderr.count(b"\n") == 1


def test_register_with_clip_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []

    def copy(text: str) -> str:
        copied.append(text)
        return "copied"

    monkeypatch.setattr("hvsock.cli.clipboard.copy", copy)
    result = invoke("service", "register", "a", "--clip", env={"HVSOCK_DIR": str(tmp_path / "f")})
    assert copied == [result.stdout.strip()]
