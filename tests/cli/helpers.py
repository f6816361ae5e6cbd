"""Running the command: in this process where that is enough, and as the installed program."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from click.testing import CliRunner, Result

from hvsock.cli.main import cli

PROGRAM = os.path.join(sysconfig.get_path("scripts"), "hvsock")
PATIENCE = 30.0
"""Seconds that anything may take here; nothing takes one."""


def invoke(*arguments: str, code: int = 0, env: Mapping[str, str | None] | None = None) -> Result:
    """Run the command in this process; its exit code must be `code`.

    Where that is not 0 there is one line on standard error; but doctor and selftest tell on standard output.
    """
    result = CliRunner().invoke(cli, list(arguments), env=env)
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    if code and (code != 1 or arguments[0] not in ("doctor", "selftest")):
        assert_one_line(result.stderr)
    return result


def invoke_json(*arguments: str, code: int = 0) -> Any:
    """What the command prints with --json."""
    return json.loads(invoke(*arguments, "--json", code=code).stdout)


def assert_one_line(text: str) -> None:
    """An error is one line that says who it comes from."""
    assert text.startswith("hvsock"), text
    assert text.count("\n") == 1, text
    assert text.endswith("\n"), text


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child: this one, with `changes`, and no coverage or colour by chance."""
    return {**os.environ, **changes}


def hvsock(
    *arguments: str,
    input: bytes = b"",
    code: int = 0,
    env: Mapping[str, str] | None = None,
    seconds: float = PATIENCE,
) -> subprocess.CompletedProcess[bytes]:
    """Run the installed program to its end; its exit code must be `code`."""
    done = subprocess.run(
        [PROGRAM, *arguments], input=input, capture_output=True, timeout=seconds, env=env, check=False
    )
    assert done.returncode == code, (done.returncode, done.stdout[:1000], done.stderr)
    return done


@contextlib.contextmanager
def started(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
) -> Iterator[subprocess.Popen[bytes]]:
    """The installed program, under way; it is killed at the end if it runs still."""
    command = [PROGRAM, *arguments]
    with subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, env=env) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line_of(stream: IO[bytes] | None) -> str:
    """The next line of a child's pipe."""
    assert stream is not None
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(stream.readline()), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert found, "no line came"
    return found[0].decode()


@contextlib.contextmanager
def listening(*arguments: str, **keywords: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`hvsock listen --verbose` with `arguments`, once it listens."""
    with started("listen", "--verbose", *arguments, **keywords) as process:
        first = line_of(process.stderr)
        assert first.startswith("hvsock: listening on "), first
        yield process


@contextlib.contextmanager
def broker(folder: str, *options: str, **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """`hvsock up` in `folder`, once it is ready."""
    with started("up", *options, env=environment(HVSOCK_DIR=folder, **changes)) as process:
        line = line_of(process.stderr)
        assert line == f"hvsock: the fabric is up in {folder} (process {process.pid})\n", line
        yield process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Wait for the end: exit code, and what came on standard output and error."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def told_until_it_ends(process: subprocess.Popen[bytes], number: int) -> int:
    """Send a signal again and again until the process has ended; its exit code."""
    deadline = time.monotonic() + PATIENCE
    while (code := process.poll()) is None:
        assert time.monotonic() < deadline, "it does not end"
        process.send_signal(number)
        time.sleep(0.001)
    return code


@contextlib.contextmanager
def feeding(
    process: subprocess.Popen[bytes], size: int, pause_at: int, pause: threading.Event
) -> Iterator[list[str]]:
    """Feed `size` bytes to a child, and wait for `pause` at some point; yields a list that gets the checksum."""
    digests: list[str] = []

    def feed() -> None:
        assert process.stdin is not None
        block = os.urandom(1 << 20)
        checksum, done = hashlib.sha256(), 0
        while done < size:
            if done >= pause_at:
                pause.wait(PATIENCE)
            block = block[1:] + block[:1]
            checksum.update(block)
            process.stdin.write(block)
            done += len(block)
        process.stdin.close()
        process.stdin = None
        digests.append(checksum.hexdigest())

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield digests
    finally:
        pause.set()
        thread.join()
