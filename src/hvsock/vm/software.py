"""hvsock in the guest: this very package and the Python packages that it needs there.

They are copied from this Python, pure ones as they are. Few have compiled parts that the guest should have: those
are copied too where they run there, else the wheel of the same version for the guest's Python is fetched.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Final

from hvsock.errors import StateError

from .wheels import Wheels, fits

if sys.platform != "linux":
    raise ImportError("the guest image is made by apt and dpkg")

SITE: Final = "usr/lib/python3/dist-packages"
"""Where Debian's Python looks for packages."""
COMPILED: Final = frozenset(("cffi", "cryptography", "protobuf"))
"""The packages whose compiled parts the guest has; of others, which do without, it has what is pure."""
NOT_IN_GUEST: Final = frozenset(
    (
        *("qemu-qmp", "starlette", "uvicorn", "backports-zstd"),  # what hosts do
        *("pygments", "markdown-it-py"),  # rich's, for source code and Markdown, which hvsock does not print
        "pycparser",  # cffi's, for declarations in C, which are none in what is compiled already
    )
)
"""The packages that nothing needs in the guest; nor what only they need."""
_PARTS: Final = {"cffi": "_cffi_backend"}
"""Of these packages, the guest has only what begins so: programs that are compiled already load no more."""
_UNUSED: Final = {"cryptography": ("cryptography", "x509")}
"""Of these packages, the guest lacks a folder: asyncssh loads it where it is there, for a quarter of a second in
an emulated guest, and does without it as well; it is for certificates, of which Direct has none."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LIBRARY: Final = ".so"
_LEFT_OUT: Final = (".pyc", ".pyd", ".pyi", ".pyx", ".pxd", ".c", ".h", ".typed")
"""Endings of what is made again, and of what compilers and type checkers read."""
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def requirements() -> dict[str, str]:
    """The versions, by name, of the packages that the guest's hvsock needs, as this Python has them.

    Raises:
        StateError: one that hvsock itself needs is not installed.
    """
    return {name: distribution.version for name, distribution in _distributions().items()}


def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """The packages that hvsock needs in the guest, and those that they need, by name.

    Raises:
        StateError: one that hvsock itself needs is not installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [(name, True) for name in _needed_by(importlib.metadata.distribution("hvsock"))]
    while todo:
        name, direct = todo.pop()
        if name in found or name in NOT_IN_GUEST:
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
            yield re.sub(r"[-_.]+", "-", name[0]).lower()


def copy_requirements(target: str, wheels: Wheels) -> None:
    """Put the packages that hvsock needs in the guest into the folder `target`.

    Args:
        target: the folder; made if it is not there.
        wheels: has what does not run in the guest as it is here.

    Raises:
        StateError: a wheel is needed, and cannot be fetched.
    """
    for name, distribution in _distributions().items():
        files = distribution.files or ()
        tags = re.findall(r"^Tag: (.*)$", distribution.read_text("WHEEL") or "", re.MULTILINE)
        if files and (name not in COMPILED or fits(tags)):
            for path in files:
                if _is_wanted(path, name):
                    _copy(str(distribution.locate_file(path)), os.path.join(target, path))
        else:
            for inside, data in wheels.files(name, distribution.version):
                if _is_wanted(PurePosixPath(inside), name):
                    _write(os.path.join(target, inside), data)


def _is_wanted(path: PurePosixPath, name: str) -> bool:
    """Whether the guest has the file `path` of the package `name`."""
    top = path.parts[0]
    if path.is_absolute() or ".." in path.parts or top.endswith((".dist-info", ".data")) or "tests" in path.parts:
        return False
    if not top.startswith(_PARTS.get(name, "")) or path.parts[:2] == _UNUSED.get(name):
        return False
    return path.suffix not in _LEFT_OUT and (path.suffix != _LIBRARY or name in COMPILED)


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


def _write(target: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "wb") as file:
        file.write(data)
