"""hvsock in the guest: this very package and the pure Python packages that it needs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Final

from hvsock.errors import StateError

if sys.platform != "linux":
    raise ImportError("the guest image is made by apt and dpkg")

SITE: Final = "usr/lib/python3/dist-packages"
"""Where Debian's Python looks for packages."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMPILED: Final = (".so", ".pyd", ".pyc")
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def requirements() -> dict[str, str]:
    """The versions, by name, of the packages that hvsock needs and those that they need, as this Python has them.

    Raises:
        StateError: one that hvsock itself needs is not installed.
    """
    return {name: distribution.version for name, distribution in _distributions().items()}


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """The packages that hvsock needs, and those that they need, by name.

    Raises:
        StateError: one that hvsock itself needs is not installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [(name, True) for name in _needed_by(importlib.metadata.distribution("hvsock"))]
    while todo:
        name, direct = todo.pop()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if direct:
                raise StateError(f"hvsock needs the package {name}, which is not installed") from None
            continue  # for other systems or versions
        todo += [(one, False) for one in _needed_by(found[name])]
    return {name: found[name] for name in sorted(found)}


def _needed_by(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    for text in distribution.requires or ():
        requirement, _, marker = text.partition(";")
        name = _NAME.match(requirement.strip())
        if name and "extra" not in marker:
            yield name[0].lower().replace("_", "-")


def copy_requirements(target: str) -> None:
    """Copy the packages that hvsock needs into the folder `target`, without what is compiled for this machine."""
    for distribution in _distributions().values():
        for path in distribution.files or ():
            outside = path.parts[0] == ".." or path.parts[0].endswith(".dist-info")
            if not outside and path.suffix not in _COMPILED and "tests" not in path.parts:
                _copy(str(distribution.locate_file(path)), os.path.join(target, *path.parts))


def own_files() -> Iterator[tuple[str, str]]:
    """The files of hvsock itself: the path of each, and its name inside the package."""
    for folder, folders, files in os.walk(_HERE):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            path = os.path.join(folder, name)
            yield path, os.path.relpath(path, _HERE)


def own_checksums() -> dict[str, str]:
    """The checksums of hvsock's files, by name."""
    found = {}
    for path, name in own_files():
        with open(path, "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def copy_own(target: str) -> None:
    """Copy hvsock itself into the folder `target`."""
    for path, name in own_files():
        _copy(path, os.path.join(target, "hvsock", name))


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)
