"""The clipboard: by a program of the desktop where there is one, else by the terminal (OSC 52)."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Final

OSC_52 = "\033]52;c;{}\a"
"""What tells a terminal to put text (in base64) on its clipboard (xterm, "Operating System Commands")."""

NOWHERE: Final = "there is no clipboard here: neither a clipboard program nor a terminal"


def copy(text: str) -> str | None:
    """Put `text` on the clipboard; says by what, or None where there is no way."""
    if _by_program(text):
        return "copied to the clipboard"
    if _by_terminal(text):
        return "sent to the terminal's clipboard (OSC 52)"
    return None


def _by_program(text: str) -> bool:
    """Try pyperclip, and look whether the text is there: a program without a display fails without a word."""
    import pyperclip

    with contextlib.suppress(pyperclip.PyperclipException, OSError), _silent():
        pyperclip.copy(text)
        return bool(pyperclip.paste().strip() == text)
    return False


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep standard output and error from programs started inside.

    xclip and its like stay to serve the clipboard; with a pipe in their hands its reader would wait for them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
        for descriptor in (nowhere, *kept):
            os.close(descriptor)


def _by_terminal(text: str) -> bool:
    sequence = OSC_52.format(base64.b64encode(text.encode()).decode("ascii"))
    with contextlib.suppress(OSError), open("/dev/tty", "w", encoding="ascii") as terminal:
        terminal.write(sequence)
        return True
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(sequence)
        sys.stderr.flush()
        return True
    return False
