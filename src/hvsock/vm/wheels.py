"""Wheels of the Python Package Index for the guest's Python, where what is installed here does not run there.

They are fetched by pip, in the very versions that are installed here, and kept; what is in one is checked against
the checksums that it carries itself.
"""

from __future__ import annotations

import base64
import csv
import glob
import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from hvsock.errors import StateError

from .debian import Progress

if sys.platform != "linux":
    raise ImportError("the guest image is made by apt and dpkg")

GUEST_PYTHON: Final = (3, 11)
"""The version of the guest's Python, which is Debian 12's."""
GUEST_GLIBC: Final = (2, 36)
"""The version of the guest's C library."""
OLDEST_GLIBC: Final = (2, 5)
"""The oldest C library that wheels are made for."""
FIRST_STABLE: Final = (3, 2)
"""The first Python with a stable ABI: what is compiled for that of an older Python runs with a newer one."""
PIP_SECONDS: Final = 300
"""How long pip may take: the largest wheel has 5 MB, and some networks are slow."""

_PYTHON: Final = "cp{}{}".format(*GUEST_PYTHON)
_INTERPRETERS: Final = frozenset(
    (
        *("py3-none", "py2.py3-none", f"{_PYTHON}-none", f"{_PYTHON}-{_PYTHON}"),
        *(f"cp3{minor}-abi3" for minor in range(FIRST_STABLE[1], GUEST_PYTHON[1] + 1)),
    )
)
_PLATFORMS: Final = (
    *(f"manylinux_2_{minor}_x86_64" for minor in range(GUEST_GLIBC[1], OLDEST_GLIBC[1] - 1, -1)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)
_BUNDLED: Final = ("/usr/share/python-wheels", os.path.join(sysconfig.get_path("stdlib"), "ensurepip", "_bundled"))
"""Where Pythons keep pip for new environments: Debian's, and others."""


def fits(tags: Iterable[str]) -> bool:
    """Whether what is in a wheel runs with the guest's Python (pure).

    Args:
        tags: those of the wheel, each like "cp311-abi3-manylinux_2_34_x86_64"; parts may be sets, with dots.
    """
    for tag in tags:
        parts = [part.split(".") for part in tag.strip().split("-")]
        if len(parts) != 3:
            continue
        for interpreter, abi, platform in itertools.product(*parts):
            if f"{interpreter}-{abi}" in _INTERPRETERS and platform in ("any", *_PLATFORMS):
                return True
    return False


class Wheels:
    """The folder of the wheels that were fetched.

    Args:
        folder: its path; made when there is something to keep.
        progress: is told what is done.
    """

    def __init__(self, folder: str, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress

    def files(self, name: str, version: str) -> Iterator[tuple[str, bytes]]:
        """What is in the wheel of a package, which is fetched if it is not here: paths and contents.

        Raises:
            StateError: it cannot be fetched, or is damaged, and removed.
        """
        path = os.path.join(self._folder, f"{name}-{version}-{_PYTHON}.whl")
        if not os.path.exists(path):
            self._progress(f"fetching {name} {version} for the guest's Python")
            self._fetch(f"{name}=={version}", path)
        try:
            yield from contents(path)
        except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError) as error:
            os.unlink(path)
            raise StateError(f"the wheel of {name} {version} was damaged, try again: {error}") from None

    def _fetch(self, requirement: str, path: str) -> None:
        fresh = os.path.join(self._folder, f"new-{os.getpid()}")
        os.makedirs(fresh, mode=0o700)
        try:
            if reason := _download(requirement, fresh):
                python = "Python {}.{}".format(*GUEST_PYTHON)
                raise StateError(
                    f"the guest needs {requirement} for {python}, which pip cannot fetch: {reason}; "
                    f"with a network and an index that has it, try again, or run hvsock by {python}"
                )
            (name,) = os.listdir(fresh)
            os.replace(os.path.join(fresh, name), path)
        finally:
            shutil.rmtree(fresh)


def contents(path: str) -> Iterator[tuple[str, bytes]]:
    """The files in the wheel at `path` that go into a folder of packages, and what is in them.

    Raises:
        ValueError: a file is not what the wheel's list says.
        zipfile.BadZipFile, zlib.error, EOFError, KeyError: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        (listed,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", name))
        for name, checksum, *_ in csv.reader(archive.read(listed).decode().splitlines()):
            if name == listed or not checksum:
                continue
            data = archive.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            if checksum != f"sha256={digest}":
                raise ValueError(f"{name} has not the checksum {checksum}")
            yield name, data


def _pip() -> Sequence[str]:
    """The command of a pip: this environment's, that which new ones get, or the machine's; empty for none."""
    if importlib.util.find_spec("pip"):
        return sys.executable, "-P", "-m", "pip"
    for folder in _BUNDLED:
        for wheel in sorted(glob.glob(os.path.join(folder, "pip-*.whl")))[-1:]:
            return sys.executable, "-P", os.path.join(wheel, "pip")
    found = shutil.which("pip3")
    return (found,) if found else ()


def _download(requirement: str, folder: str) -> str:
    """Have pip fetch a wheel into an empty folder; returns "", or the reason why it is not there."""
    pip = _pip()
    if not pip:
        return "there is none; as root, on Debian and Ubuntu: apt-get install -y python3-pip"
    command = [
        *(*pip, "download", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"),
        *("--only-binary", ":all:", "--implementation", "cp", "--python-version", "{}.{}".format(*GUEST_PYTHON)),
        *(word for platform in _PLATFORMS for word in ("--platform", platform)),
        *("--dest", folder, requirement),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"pip took more than {PIP_SECONDS} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
    return lines[-1].removeprefix("ERROR:").strip() if lines else f"pip ended with code {done.returncode}"
