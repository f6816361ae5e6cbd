"""One program of Windows, asked once: bounded in time and in what it may say."""

from __future__ import annotations

import ntpath
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Final

from hvsock.errors import NotReadyError, RemoteError

ANSWER_SECONDS: Final = 60.0
"""How long a program may take; PowerShell with Hyper-V's module takes some seconds, and more when it is cold."""
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of an answer; a thousand VMs are some hundred thousand."""

LEFT_OVER_SECONDS: Final = 2.0
"""How long a killed program's own children may keep its output open; then its reader is left behind."""


def in_system(*parts: str) -> str:
    """The path of a program of Windows itself: a bare name would be looked for in the current folder first."""
    return ntpath.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", *parts)


def output_of(arguments: Sequence[str], seconds: float = ANSWER_SECONDS) -> bytes:
    """What a program writes, whatever its exit code is; it has ended when this returns or raises.

    Args:
        arguments: the program and its arguments.
        seconds: how long it may take.

    Raises:
        NotReadyError: there is no such program, or it took too long.
        RemoteError: it wrote too much.
    """
    name = arguments[0]
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.CREATE_NO_WINDOW
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=flags,
        )
    except OSError as error:
        raise NotReadyError(f"{name} cannot be run: {error.strerror or error}") from None
    assert process.stdout is not None
    output = process.stdout
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(output.read(MAX_ANSWER_BYTES + 1)), daemon=True)
    reader.start()
    try:
        reader.join(seconds)
        answered = not reader.is_alive()
    finally:
        process.kill()  # one that has ended is not harmed
        process.wait()
    reader.join(LEFT_OVER_SECONDS)
    if not reader.is_alive():
        output.close()
    if not answered:
        raise NotReadyError(f"{name} did not answer in {seconds:g} s")
    if len(found[0]) > MAX_ANSWER_BYTES:
        raise RemoteError(f"{name} said more than {MAX_ANSWER_BYTES} bytes")
    return found[0]
