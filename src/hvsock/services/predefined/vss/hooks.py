"""Hooks: programs in a folder that run before a freeze with "freeze", and after the thaw with "thaw".

This module is loaded by the keeper, which has to be small: nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import stat
import subprocess
import sys
import time
from typing import Final, NamedTuple

if sys.platform != "linux":
    raise ImportError("file systems are frozen by Linux")

FOLDER: Final = "/etc/hvsock/vss.d"
"""Where hooks are."""
HOOK_SECONDS: Final = 20.0
"""How long one hook may take; then it is killed."""
MAX_OUTPUT_BYTES: Final = 1024
"""What is kept of a hook's output, for the reason of its failure; the rest is read and dropped."""
MAX_FOUND: Final = 64
"""Most hooks; with more, no freeze begins."""
_LOOK_SECONDS: Final = 0.05
"""Pause between two looks whether a hook has ended that has closed its output before."""


class Found(NamedTuple):
    """A hook.

    Attributes:
        path: its file.
        obstacle: why it may not be run; empty where it may.
    """

    path: str
    obstacle: str = ""

    @property
    def name(self) -> str:
        """Its file's name."""
        return os.path.basename(self.path)


class HookError(Exception):
    """A hook failed; the text says which, and why."""


class InterruptError(Exception):
    """Somebody ended the freeze while a hook ran."""


def find(folder: str = FOLDER) -> list[Found]:
    """The hooks in a folder, in order: executable files, except hidden ones and those that end in a tilde."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Found(folder, f"it cannot be read: {error.strerror}")]
    found = []
    unsafe_folder = _unsafe(os.stat(folder))
    for name in names:
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            if name.startswith(".") or name.endswith("~"):
                continue
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
                found.append(Found(path, (f"in its folder {unsafe_folder}" if unsafe_folder else _unsafe(status))))
    if len(found) > MAX_FOUND:
        return [Found(folder, f"{len(found)} hooks; {MAX_FOUND} are the most")]
    return found


def _unsafe(status: os.stat_result) -> str:
    if status.st_uid not in (0, os.geteuid()):
        return "somebody else than root owns it"
    return "others than its owner may write to it" if status.st_mode & 0o022 else ""


def run(hook: Found, word: str, interrupted: int | None = None, *, seconds: float = HOOK_SECONDS) -> None:
    """Run a hook and wait for it.

    Args:
        hook: which one.
        word: "freeze" or "thaw".
        interrupted: a descriptor that becomes readable when it is to be given up; None to go on whatever happens.
        seconds: how long it may take.

    Raises:
        HookError: it failed, or took too long, and is killed.
        InterruptError: it was given up, and is killed.
    """
    if hook.obstacle:
        raise HookError(f"hook {hook.name}: {hook.obstacle}")
    try:
        process = subprocess.Popen(
            [hook.path, word],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise HookError(f"hook {hook.name} cannot be run: {error.strerror}") from None
    with process:
        try:
            output = _wait(process, hook, word, interrupted, seconds)
        finally:
            # also what it left behind in its session, which would keep this from reading to the end
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        said = " ".join(output.decode("utf-8", "replace").split())
        raise HookError(
            f"hook {hook.name} failed at {word} with {process.returncode}: {said or 'it said nothing'}"
        )


def _wait(
    process: subprocess.Popen[bytes], hook: Found, word: str, interrupted: int | None, seconds: float
) -> bytes:
    assert process.stdout is not None
    output = b""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if interrupted is not None:
            selector.register(interrupted, selectors.EVENT_READ)
        while process.poll() is None:
            if time.monotonic() >= deadline:
                raise HookError(f"hook {hook.name} took more than {seconds:g} s at {word}, and was killed")
            for key, _ in selector.select(_LOOK_SECONDS):
                if key.fd == interrupted:
                    raise InterruptError
                data = os.read(key.fd, 65536)
                output += data[: MAX_OUTPUT_BYTES - len(output)]
                if not data:
                    selector.unregister(process.stdout)
        os.set_blocking(process.stdout.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while len(output) < MAX_OUTPUT_BYTES and (data := os.read(process.stdout.fileno(), 65536)):
                output += data[: MAX_OUTPUT_BYTES - len(output)]
    return output
