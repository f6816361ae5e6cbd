"""Archives that are made once and kept: each has a key, a digest of all that goes into it.

::

    $HVSOCK_IMAGES/            by default hvsock/images in the user's cache folder
      lock                     held by who makes something
      packages/                Debian's packages as they came
      wheels/                  Python's packages for the guest, where those that are installed do not run there
      recipe-SERIES.json       which of them the image with a kernel of that series is made of
      layers/NAME-KEY.cpio     an archive, and beside it
      layers/NAME-KEY.json     what it was made of; for a kernel's modules also
      layers/NAME-KEY.kernel   the kernel, unpacked

A file takes its name in one step, when it is finished. So who finds one needs no lock, and who is killed while
making one leaves nothing that counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import platformdirs

from hvsock.errors import StateError

from .cpio import Entry, pack

if sys.platform != "linux":
    raise ImportError("the guest image is made by apt and dpkg")

IMAGES_VARIABLE: Final = "HVSOCK_IMAGES"
"""Environment variable: the folder of what the guest image is made of."""
_ARCHIVE, _FACTS = ".cpio", ".json"
KEY_DIGITS: Final = 24
"""Hexadecimal digits of a key: 96 bits."""


KEPT_LAYERS: Final = 4
"""How many archives of one name are kept: of both kernels, and of two versions each."""


class Layer(NamedTuple):
    """A finished archive.

    Attributes:
        path: its file.
        facts: what it was made of, for people and for `--json`; with its own "sha256" and "bytes".
    """

    path: str
    facts: dict[str, Any]


def images_folder(environ: Mapping[str, str] | None = None) -> str:
    """The folder of what guest images are made of: HVSOCK_IMAGES, else in the user's cache folder."""
    environ = os.environ if environ is None else environ
    if chosen := environ.get(IMAGES_VARIABLE):
        return os.path.abspath(chosen)
    return os.path.join(platformdirs.user_cache_dir("hvsock"), "images")


def key_of(*parts: Any) -> str:
    """The key of what is made of `parts`, which JSON takes."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


class Store:
    """The folder of the layers.

    Args:
        folder: its path; made if it is not there.

    Raises:
        StateError: it cannot be made.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        try:
            os.makedirs(self._layers, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"{error.filename or folder} cannot be made: {error.strerror}; set {IMAGES_VARIABLE}"
            ) from None

    @property
    def packages(self) -> str:
        """Where the files of packages are kept."""
        return os.path.join(self.folder, "packages")

    @property
    def wheels(self) -> str:
        """Where the files of Python's packages are kept."""
        return os.path.join(self.folder, "wheels")

    @property
    def _layers(self) -> str:
        return os.path.join(self.folder, "layers")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one that makes something; waits for others."""
        descriptor = os.open(os.path.join(self.folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def find(self, name: str, key: str) -> Layer | None:
        """The layer `name` with that key, if it is finished."""
        facts = self.read(self.path(name, key, _FACTS))
        path = self.path(name, key, _ARCHIVE)
        return None if facts is None or not os.path.exists(path) else Layer(path, facts)

    def make(self, name: str, key: str, entries: Iterable[Entry], facts: Mapping[str, Any]) -> Layer:
        """Make a layer of `entries`; the caller holds the lock."""
        checksum, size = hashlib.sha256(), 0
        path = self.path(name, key, _ARCHIVE)
        with open(path + ".new", "wb") as file:
            for piece in pack(entries):
                file.write(piece)
                checksum.update(piece)
                size += len(piece)
        os.replace(path + ".new", path)
        full = {**facts, "sha256": checksum.hexdigest(), "bytes": size}
        self.write(self.path(name, key, _FACTS), full)
        self._prune(name)
        return Layer(path, full)

    def _prune(self, name: str) -> None:
        """Remove all but the newest KEPT_LAYERS of the layers `name`."""
        times: dict[str, list[int]] = {}
        for entry in os.scandir(self._layers):
            head, _, tail = entry.name.rpartition("-")
            if head == name:
                times.setdefault(tail.partition(".")[0], []).append(entry.stat().st_mtime_ns)
        old = sorted(times, key=lambda key: max(times[key]))[:-KEPT_LAYERS]
        for entry in os.scandir(self._layers):
            if entry.name.startswith(tuple(f"{name}-{key}." for key in old)):
                os.unlink(entry.path)

    def read(self, path: str) -> Any:
        """What is in a JSON file of the folder; None where it is not there or damaged."""
        try:
            with open(os.path.join(self.folder, path), encoding="utf-8") as file:
                return json.load(file)
        except (FileNotFoundError, ValueError):
            return None

    def write(self, path: str, value: Any) -> None:
        """Put `value` into a JSON file of the folder; the caller holds the lock."""
        path = os.path.join(self.folder, path)
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
        os.replace(path + ".new", path)

    def path(self, name: str, key: str, suffix: str) -> str:
        """The path of a file of a layer."""
        return os.path.join(self._layers, f"{name}-{key}{suffix}")
