"""The smallest set of programs that reach what all of them reach."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import hvsock.virtio
from fuzz.programs import play

_FOLDER: Final = str(Path(hvsock.virtio.__file__).parent)

Jump = tuple[str, int, int]
"""A file, a line of it, and the line that was next in the same call."""


def minimise(name: str, programs: Iterable[bytes]) -> list[bytes]:
    """Of these programs short ones that reach every jump between lines of hvsock.virtio that any of them does."""
    kept: list[bytes] = []
    known: set[Jump] = set()
    for program in sorted(set(programs), key=lambda one: (len(one), one)):
        reached = jumps(name, program)
        if not reached <= known:
            known |= reached
            kept.append(program)
    # what a short one reached, a longer one that is needed anyway may reach too
    known.clear()
    needed = []
    for program in reversed(kept):
        reached = jumps(name, program)
        if not reached <= known:
            known |= reached
            needed.append(program)
    return needed


def jumps(name: str, program: bytes) -> set[Jump]:
    """The jumps between lines that a program reaches."""
    found: set[Jump] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(_FOLDER):
            return None
        last = frame.f_lineno

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            found.add((file, last, frame.f_lineno))
            last = frame.f_lineno
            return step

        return step

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        play(name, program)
    finally:
        sys.settrace(before)
    return found
