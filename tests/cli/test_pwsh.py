"""`hvsock pwsh`, as a program, to an agent whose PowerShell is the server of hvsock.testing."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from click.testing import CliRunner

assert sys.platform == "linux"

from hvsock.cli.main import cli
from hvsock.testing.fabric import fabric
from tests.cli.helpers import PATIENCE, PROGRAM, assert_one_line, ended, environment, invoke, line_of, started
from tests.cli.helpers import hvsock as run
from tests.support import sample

Environment = dict[str, str]
AGAIN_SECONDS = 5.0
"""When to press a key again that may not have been seen."""


def pwsh_in(folder: Path) -> str:
    """A folder for PATH with a `pwsh` that is the server of hvsock.testing."""
    path = folder / "pwsh"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m hvsock.testing.psrp_server "$@"\n')
    path.chmod(0o755)
    return str(folder)


@pytest.fixture(scope="module")
def web01(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment of a host whose partition web01 has an agent."""
    programs = pwsh_in(tmp_path_factory.mktemp("programs"))
    with fabric() as made:
        made.create_partition("web01")
        env = environment(HVSOCK_DIR=made.folder, PATH=programs)
        env.pop("HVSOCK_PARTITION", None)
        state = str(tmp_path_factory.mktemp("state"))
        with started("run", "--partition", "web01", "--", PROGRAM, "agent", "--state", state, env=env) as agent:
            while "the agent is ready" not in (line := line_of(agent.stderr)):
                assert line, "the agent has ended"
            yield env


Inside = Callable[..., tuple[str, str]]


@pytest.fixture
def inside(web01: Environment, capfd: pytest.CaptureFixture[str]) -> Inside:
    """Runs the command in this process, which saves the start of one; what it prints on either stream."""

    def run_inside(*words: str, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        done = CliRunner().invoke(cli, ["pwsh", *words], env=web01)
        out, err = capfd.readouterr()  # the console writes to the descriptors themselves
        assert done.exit_code == code, (done, out, err)
        return out + done.stdout, err + done.stderr

    return run_inside


def test_a_script_prints_what_it_writes(web01: Environment) -> None:
    script = """
    1..2; Write-Host hello; [pscustomobject]@{Name = 'web01'; Size = 5}
    Write-Warning careful; Write-Verbose more -Verbose; Write-Information 'not shown'; Write-Output Grüße
    """
    done = run("pwsh", "web01", "--wait", "30", "-c", script, env=web01)
    assert done.stdout.decode() == "1\n2\nhello\n\nName : web01\nSize : 5\n\nGrüße\n"
    assert done.stderr.decode() == "WARNING: careful\nVERBOSE: more\n"


@pytest.mark.soak
def test_objects_as_json(web01: Environment) -> None:
    script = """
    1; Write-Host hello; [pscustomobject]@{Name='x'; Sizes=1,2}; 'Grüße'; $null; Write-Error bad; Get-TestValue
    """
    done = run("pwsh", "web01", "--json", "-c", script, env=web01, code=1)
    values = [json.loads(line) for line in done.stdout.splitlines()]
    assert values[:7] == [1, {"Name": "x", "Sizes": [1, 2]}, "Grüße", None, None, True, False]
    assert 1.5 in values
    assert "AP8=" in values
    assert "2026-01-02T03:04:05.678901+00:00" in values
    assert done.stderr == b"hello\nbad\n"


@pytest.mark.parametrize(
    ("script", "code", "error"),
    [
        ("throw 'oops'", 1, "hvsock: oops\n"),
        ("Write-Error 'not so'; 'goes on'", 1, "not so\n"),
        ("exit 7", 7, ""),
        ("Stop-TestServer", 1, None),
    ],
)
def test_how_it_ends(inside: Inside, script: str, code: int, error: str | None) -> None:
    _, told = inside("web01", "-c", script, code=code)
    if error is None:
        assert_one_line(told)
    else:
        assert told == error


@pytest.mark.soak
def test_scripts_from_files_and_standard_input(web01: Environment, tmp_path: Path) -> None:
    file = tmp_path / "script.ps1"
    file.write_bytes("\ufeffRead-Host Name\r\nRead-Host\n".encode())
    done = run("pwsh", "web01", "-f", str(file), env=web01, input="Grüße\r\nlast".encode())
    assert done.stdout.decode() == "Name: Grüße\nlast\n"
    assert run("pwsh", "web01", env=web01, input=b"1\n'two'").stdout == b"1\ntwo\n"
    assert b"nobody answers" in run("pwsh", "web01", "-c", "Read-Host", env=web01, code=1).stderr
    file.write_bytes(b"\xff")
    assert b"is not UTF-8" in run("pwsh", "web01", "-f", str(file), env=web01, code=2).stderr


def test_what_cannot_be_meant(web01: Environment, tmp_path: Path) -> None:
    empty, large = tmp_path / "empty", tmp_path / "large"
    empty.touch()
    large.write_bytes(bytes(5000))
    for words in (
        ("-c", "1", "-f", str(empty)),
        ("--key", "--password-file", str(empty)),
        ("--password-file", str(empty)),
        ("--container", "--user", "root"),
        ("--user", "root", "--password-file", "-"),
        ("-c", "1", "--user", "root"),
        ("-c", "1", "--user", "a\\", "--password-file", str(empty)),
        ("-c", "1", "--user", "root", "--password-file", str(large)),
    ):
        invoke("pwsh", "web01", *words, env=web01, code=2)


def test_who_is_not_let_in(inside: Inside, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_bytes(b"wrong\n")
    user = ("--user", "no-such-user", "--password-file", str(password))
    assert "does not let 'no-such-user' in" in inside("web01", *user, "-c", "1", code=4)[1]
    inside("nobody", "-c", "1", code=5)


def test_a_guest_without_powershell_says_so(web01: Environment, inside: Inside) -> None:
    program = Path(web01["PATH"]) / "pwsh"
    away = program.rename(program.with_name("away"))
    try:
        assert "pwsh is not installed in this guest" in inside("web01", "-c", "1", code=1)[1]
    finally:
        away.rename(program)


@pytest.mark.soak
def test_much_output_takes_little_memory(web01: Environment) -> None:
    mebibytes = sample(3, 50)
    command = [PROGRAM, "pwsh", "web01", "-c", f"New-TestText {mebibytes} -Characters 100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=web01) as process:
        assert process.stdout is not None
        size, most = 0, 0
        while data := process.stdout.read(1 << 20):
            size += len(data)
            most = max(most, resident(process.pid))
        assert process.wait(PATIENCE) == 0
    assert size >= mebibytes << 20
    assert most < 120 << 20  # psrpcore and what it needs take half of it


def resident(pid: int) -> int:
    """The bytes that a process has in memory."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.soak
def test_output_that_nobody_reads_stops_the_script(web01: Environment) -> None:
    for script in ("New-TestText 1000", "Write-Host x; Write-Host y; New-TestText 1000 | Out-Null"):
        with started("pwsh", "web01", "-c", script, env=web01) as process:
            assert process.stdout is not None
            process.stdout.close()
            process.stdout = None
            assert process.wait(PATIENCE) == 141


def test_ctrl_c_stops_a_script(web01: Environment) -> None:
    near, far = os.pipe()
    try:
        for script in ("'begun'; New-TestText 1000", "'begun'; Read-Host")[: sample(1, 2)]:
            with started("pwsh", "web01", "-c", script, env=web01, stdin=near) as process:
                assert line_of(process.stdout) == "begun\n"
                process.send_signal(signal.SIGINT)
                assert process.stdout is not None
                assert ended(process)[0] == 130
    finally:
        os.close(near)
        os.close(far)


class Terminal:
    """A terminal with `hvsock pwsh` on it, which has ended at the end.

    Args:
        words: its arguments.
        env: its environment.
        code: the exit code that it must have.
    """

    def __init__(self, *words: str, env: Environment, code: int) -> None:
        self._near, far = pty.openpty()
        self._seen = b""
        self._code = code
        env = {**env, "TERM": "dumb"}
        self.process = subprocess.Popen(
            [PROGRAM, "pwsh", *words],
            stdin=far,
            stdout=far,
            stderr=far,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(far)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                assert self.process.wait(PATIENCE) == self._code
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._near)

    def expect(self, text: str) -> str:
        """Wait for a text, and take everything up to it."""
        deadline = time.monotonic() + PATIENCE
        while text.encode() not in self._seen:
            assert select.select([self._near], [], [], max(0, deadline - time.monotonic()))[0], self._seen
            try:
                data = os.read(self._near, 65536)
            except OSError:
                data = b""
            assert data, self._seen
            self._seen += data
        before, _, self._seen = self._seen.partition(text.encode())
        return before.decode()

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._near, text.encode())

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C until a text comes: Python does not see it just before it waits for a line."""
        deadline, again = time.monotonic() + PATIENCE, 0.0
        while text.encode() not in self._seen:
            now = time.monotonic()
            assert now < deadline, self._seen
            if now >= again:
                self.type("\x03")
                again = now + AGAIN_SECONDS
            if select.select([self._near], [], [], again - now)[0]:
                self._seen += os.read(self._near, 65536)
        self.expect(text)

    def expect_no_echo(self) -> None:
        """Wait until what is typed is not shown."""
        deadline = time.monotonic() + PATIENCE
        while termios.tcgetattr(self._near)[3] & termios.ECHO:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_conversation_at_a_terminal(web01: Environment) -> None:
    prompt = "[web01]: PS "
    with Terminal("web01", env=web01, code=5) as terminal:
        terminal.expect(prompt)
        terminal.type("$x = 'kept'\n")
        terminal.expect(prompt)
        terminal.type('"it is $x"\n')
        terminal.expect("it is kept\r\n")
        terminal.expect(prompt)
        terminal.type("throw 'oops'; 1\n")
        terminal.expect("hvsock: oops\r\n")
        terminal.expect(prompt)
        terminal.type("Read-Host Name\n")
        terminal.expect("Name: ")
        terminal.type("typed\n")
        terminal.expect("typed\r\ntyped\r\n")
        terminal.expect(prompt)
        terminal.type("Read-Host Word -AsSecureString\n")
        terminal.expect("\nWord: ")
        terminal.expect_no_echo()
        terminal.type("hush\n")
        assert "hush" not in terminal.expect(prompt)
        terminal.type("'sleeps'; Start-Sleep 1000\n")
        terminal.expect("\nsleeps\r\n")
        terminal.type("\x03")
        terminal.expect(prompt)
        terminal.type("Read-Host Gone\n")
        terminal.expect("\nGone: ")
        terminal.type("\x03")
        terminal.expect(prompt)
        terminal.type("'goes on'\n")
        terminal.expect("goes on\r\n")
        terminal.expect(prompt)
        terminal.type("not finished")
        # Ctrl-C takes away what is typed and not read yet, and readline would then wait for it
        terminal.expect("not finished")
        terminal.interrupt_until(prompt)
        terminal.type("exit 5\n")


@pytest.mark.soak
def test_a_conversation_ends_with_its_terminal_or_its_session(web01: Environment) -> None:
    with Terminal("web01", "--json", env=web01, code=0) as terminal:
        terminal.expect("PS ")
        terminal.type("\x04")
    with Terminal("web01", env=web01, code=1) as terminal:
        terminal.expect("PS ")
        terminal.type("Stop-TestServer\n")
        terminal.expect("hvsock: ")


@pytest.mark.soak
def test_progress_is_a_line_of_a_terminal(web01: Environment) -> None:
    script = "Write-Progress Copying -Status half -PercentComplete 50; 'done'"
    with Terminal("web01", "-c", script, env=web01, code=0) as terminal:
        terminal.expect("Copying: half 50 %")
        terminal.expect("\r\x1b[Kdone\r\n")


def test_the_command_is_listed() -> None:
    assert "PowerShell" in invoke("pwsh", "--help").stdout
