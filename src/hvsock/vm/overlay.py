"""What a user adds to the default guest: a folder, and a command in place of its program."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Final

from hvsock.errors import UsageError

from . import cpio
from .cpio import Entry
from .userland import from_folder

if sys.platform != "linux":
    raise ImportError("VMs need Linux")

START: Final = "etc/hvsock/start"
"""The program that runs in the guest in place of its own, where an overlay brings it."""


def overlay(folder: str | None = None, command: str | None = None) -> Iterator[bytes]:
    """The pieces of an archive that goes over the default guest.

    Args:
        folder: what is in it is put over the guest's /.
        command: a line for the guest's shell, which runs in place of its program.

    Raises:
        UsageError: there is no such folder, or it has a program of its own.
    """
    entries: list[Entry] = []
    if folder is not None:
        if not os.path.isdir(folder):
            raise UsageError(f"there is no folder {folder}")
        entries += from_folder(folder)
    if command is not None:
        if any(entry.name == START for entry in entries):
            raise UsageError(f"{folder} has a program of its own, {START}; it or a command runs, not both")
        entries.append(cpio.file(START, f"#!/bin/sh\n{command}\n".encode(), executable=True))
    return cpio.pack(entries)
